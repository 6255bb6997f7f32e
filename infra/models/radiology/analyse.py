"""Finds round soft lesions on CT slices and radiographs: a heat map by a small convolutional network, and its peaks.

Runs in the sandbox, on what `RaphaDataLoader` hands over; writes /out/findings.json. Every frame of every record is looked at.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

from rapha import RaphaDataLoader
from rapha.canonical import canonical, digest, digest_of
from rapha.errors import RaphaError

OUT = os.environ.get("RAPHA_OUT", "/out")
SIDE = 256  # the longer side of an image as the network sees it
STRIDE = 4
THRESHOLD = 0.68
SMALLEST = 32


class Spots(nn.Module):
    """(n, 1, h, w) from 0 to 1 -> (n, 2, h/4, w/4): logit of a lesion's centre, logarithm of its radius in input pixels."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 12, 5, stride=2, padding=2)
        self.second = nn.Conv2d(12, 24, 3, padding=1)
        self.third = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(32, 32, 3, padding=2, dilation=2)
        self.wider = nn.Conv2d(32, 32, 3, padding=3, dilation=3)
        self.answer = nn.Conv2d(32, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(images - 0.3))))
        x = torch.relu(self.third(x))
        x = torch.relu(self.wider(torch.relu(self.wide(x)))) + x
        answer: torch.Tensor = self.answer(x)
        return answer


def prepared(pixels: Any, *, inverted: bool = False) -> tuple[torch.Tensor, float]:
    """((1, 1, h, w) from 0 to 1 with the longer side SIDE, image pixels a network pixel) of a frame, whatever its values mean."""
    image = torch.from_numpy(pixels.astype("float32"))
    if image.ndim == 3:
        image = image.mean(2)
    few = image.flatten()[:: max(1, image.numel() // 20_000)]
    low, high = torch.quantile(few, 0.005), torch.quantile(few, 0.995)
    image = ((image - low) / (high - low + 1e-6)).clamp(0, 1)
    scale = max(image.shape) / SIDE
    size = [max(SMALLEST, round(side / scale)) for side in image.shape]
    small = functional.interpolate((1 - image if inverted else image)[None, None], size, mode="bilinear", antialias=True)
    return small, scale


def peaks(answer: torch.Tensor, threshold: float = THRESHOLD) -> list[tuple[float, float, float, float]]:
    """(x, y, radius, confidence) in network pixels of each local maximum above `threshold`, its centre of gravity."""
    heat = torch.sigmoid(answer[0, 0])
    top = functional.max_pool2d(heat[None, None], 7, stride=1, padding=3)[0, 0]
    padded = functional.pad(heat, (1, 1, 1, 1))
    found = []
    for row, column in ((heat == top) & (heat > threshold)).nonzero().tolist():
        window = padded[row : row + 3, column : column + 3]
        weight = float(window.sum())
        dy = float((window.sum(1) * torch.tensor([-1.0, 0.0, 1.0])).sum()) / weight
        dx = float((window.sum(0) * torch.tensor([-1.0, 0.0, 1.0])).sum()) / weight
        radius = float(torch.exp(answer[0, 1, row, column].clamp(0, 4)))
        found.append(((column + dx) * STRIDE, (row + dy) * STRIDE, radius, float(heat[row, column])))
    return found


def find(network: nn.Module, pixels: Any, *, inverted: bool = False) -> list[tuple[float, float, float, float]]:
    """(x, y, radius, confidence) of each lesion on one frame, in the frame's own pixels."""
    image, scale = prepared(pixels, inverted=inverted)
    with torch.no_grad():
        spots = peaks(network(image))
    # A network pixel's centre is at a half: (0.5, 0.5) is the centre of an image's first pixel.
    return [((x + 0.5) * scale, (y + 0.5) * scale, radius * scale, confidence) for x, y, radius, confidence in spots]


def findings_of(network: nn.Module, loader: RaphaDataLoader, index: int) -> list[dict[str, Any]]:
    """Every finding on every frame of record `index`. Raises what the loader raises."""
    facts = loader.facts(index)
    rows, columns = facts["levels"][0][:2]
    found = []
    for frame in range(facts["frames"]):
        sample = loader.read(index, frame=frame)
        inverted = sample.attributes.get("PhotometricInterpretation") == "MONOCHROME1"
        for x, y, radius, confidence in find(network, sample.array, inverted=inverted):
            edge = x + radius if x + radius <= columns else x - radius
            if 0 <= x <= columns and 0 <= y <= rows and 0 <= edge <= columns:
                found.append(_finding(index, frame + 1, confidence, [[x, y], [edge, y]], 2 * radius, facts["spacing"]))
    return found


def _finding(
    index: int, frame: int, confidence: float, points: list[list[float]], diameter: float, spacing: list[float] | None
) -> dict[str, Any]:
    measured = [{"name": "diameter", "value": round(diameter * sum(spacing) / 2, 2), "unit": "mm"}] if spacing else []
    return {
        "index": index,
        "frame": frame,
        "kind": "lesion",
        "confidence": round(confidence, 4),
        "shape": "circle",
        "points": [[round(x, 2), round(y, 2)] for x, y in points],
        "measurements": measured,
    }


def named(weights: Path) -> dict[str, str]:
    """What this package is called: name, version, and the digest over its three files."""
    here = Path(__file__).parent
    files = {"analyse.py": here / "analyse.py", "model.json": here / "model.json", "weights.safetensors": weights}
    said = json.loads(files["model.json"].read_bytes())
    package = digest_of({name: digest(path.read_bytes()) for name, path in files.items()})
    return {"name": said["name"], "version": said["version"], "digest": package}


def main() -> None:
    weights = Path(os.environ["RAPHA_BASE_WEIGHTS"])
    network = Spots()
    network.load_state_dict(load_file(weights))
    loader = RaphaDataLoader(batch_size=1)
    instances: list[dict[str, Any]] = []
    findings: list[dict[str, Any]] = []
    for index in loader.indices:
        try:
            findings += findings_of(network, loader, index)
            instances.append({"index": index, "status": "analysed"})
        except RaphaError as error:
            if error.codes != ("loader-record-malformed",):
                raise
            instances.append({"index": index, "status": "not-applicable", "reason": "undecodable"})
    said = {"version": 1, "model": named(weights), "instances": instances, "findings": findings}
    Path(OUT, "findings.json").write_bytes(canonical(said))


if __name__ == "__main__":
    main()
