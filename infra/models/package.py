"""model.json of the packages beside this file: from declaration.json and what was measured.

    python -m infra.models.package NAME …

writes it anew after a change of analyse.py that changes no finding, with the accuracy that is there. Training measures anew.
"""

import json
import sys
from pathlib import Path

from rapha.canonical import digest

HERE = Path(__file__).parent


def write_model(folder: Path, *, distance: float, found: float, false_per_image: float) -> None:
    """`folder`/model.json with the digests of analyse.py and weights.safetensors as they are now."""
    declared = json.loads((folder / "declaration.json").read_bytes())
    declared["code"] = digest((folder / "analyse.py").read_bytes())
    declared["weights"] = digest((folder / "weights.safetensors").read_bytes())
    measured = {"distance": distance, "found": round(found, 4), "false_per_image": round(false_per_image, 4)}
    declared["accuracy"] = {**measured, "on": declared["accuracy"]["on"]}
    (folder / "model.json").write_text(json.dumps(declared, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    for name in names:
        accuracy = json.loads((HERE / name / "model.json").read_bytes())["accuracy"]
        del accuracy["on"]
        write_model(HERE / name, **accuracy)


if __name__ == "__main__":
    main(sys.argv[1:])
