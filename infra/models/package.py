"""What both training scripts write beside their weights: model.json, from declaration.json and what was measured."""

import json
from pathlib import Path

from rapha.canonical import digest


def write_model(folder: Path, *, distance: float, found: float, false_per_image: float) -> None:
    """`folder`/model.json with the digests of analyse.py and weights.safetensors as they are now."""
    declared = json.loads((folder / "declaration.json").read_bytes())
    declared["code"] = digest((folder / "analyse.py").read_bytes())
    declared["weights"] = digest((folder / "weights.safetensors").read_bytes())
    measured = {"distance": distance, "found": round(found, 4), "false_per_image": round(false_per_image, 4)}
    declared["accuracy"] = {**measured, "on": declared["accuracy"]["on"]}
    (folder / "model.json").write_text(json.dumps(declared, indent=2, sort_keys=True) + "\n", encoding="utf-8")
