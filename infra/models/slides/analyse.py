"""Finds nests of crowded nuclei on whole slides: suspicious places by a heat map at a coarse level, each then looked at closely.

Runs in the sandbox, on what `RaphaDataLoader` hands over; writes /out/findings.json. A slide is read through the record of its
finest level: the coarse level in pieces with an overlap, then small squares of the finest level around the suspicious places.
"""

import json
import os
from collections.abc import Callable, Iterator
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
COARSE = 0.016  # mm a pixel of the heat map's input
FINE = 0.002  # mm a pixel of the close look
PIECE, OVERLAP = 384, 48  # coarse pixels
WIDEST = 4000  # pixels of a level that are asked for at once, across and down
SQUARE = 160  # fine pixels
STRIDE = 2
SUSPICIOUS, CERTAIN = 0.35, 0.5
ALWAYS = 2  # places that are looked at closely even where nothing is suspicious
MOST = 400


class Coarse(nn.Module):
    """(n, 3, h, w) from 0 to 1 -> (n, 2, h/2, w/2): logit of a nest's centre, logarithm of its radius in input pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.second = nn.Conv2d(16, 24, 3, padding=1)
        self.wide = nn.Conv2d(24, 24, 3, padding=2, dilation=2)
        self.answer = nn.Conv2d(24, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(images - 0.8))))
        x = torch.relu(self.wide(x)) + x
        answer: torch.Tensor = self.answer(x)
        return answer


class Fine(nn.Module):
    """(n, 3, SQUARE, SQUARE) from 0 to 1 -> (n,) the logit of a nest in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 5, stride=2, padding=2)
        self.second = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.third = nn.Conv2d(24, 24, 3, stride=2, padding=1)
        self.answer = nn.Linear(48, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.second(torch.relu(self.first(images - 0.8))))
        x = torch.relu(self.third(x))
        side = x.shape[-1]
        middle = x[:, :, side // 3 : side - side // 3, side // 3 : side - side // 3]
        answer: torch.Tensor = self.answer(torch.cat([middle.mean((2, 3)), x.mean((2, 3))], 1))
        return answer[:, 0]


class Nests(nn.Module):
    """Both networks, as they are kept in one file."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine = Coarse(), Fine()


def tensor(pixels: Any) -> torch.Tensor:
    """[h, w, 3] of eight bits -> (1, 3, h, w) from 0 to 1."""
    return torch.from_numpy(pixels.astype("float32") / 255).permute(2, 0, 1)[None]


def resized(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.interpolate(image, size, mode="area") if image.shape[-2:] != size else image


def peaks(answer: torch.Tensor) -> list[tuple[float, float, float, float]]:
    """(x, y, radius, confidence) in coarse pixels of each local maximum, the most suspicious first; every place has one."""
    heat = torch.sigmoid(answer[0, 0])
    top = functional.max_pool2d(heat[None, None], 7, stride=1, padding=3)[0, 0]
    padded = functional.pad(heat, (1, 1, 1, 1))
    offsets = torch.tensor([-1.0, 0.0, 1.0])
    found = []
    for row, column in (heat == top).nonzero().tolist():
        window = padded[row : row + 3, column : column + 3]
        dy, dx = (float((window.sum(axis) * offsets).sum() / window.sum()) for axis in (1, 0))
        radius = float(torch.exp(answer[0, 1, row, column].clamp(0, 4)))
        # Strides of 2: the answer's place k stands over the input's pixel 2k, whose centre is at a half.
        found.append(((column + dx) * STRIDE + 0.5, (row + dy) * STRIDE + 0.5, radius, float(heat[row, column])))
    return sorted(found, key=lambda one: -one[3])


Read = Callable[[int, tuple[int, int, int, int]], Any]  # (level, (x, y, width, height)) -> [h, w, 3] of eight bits


def find(
    network: Nests, read: Read, levels: list[tuple[int, int]], spacing: float
) -> tuple[list[tuple[float, float, float, float]], set[int]]:
    """((x, y, radius, confidence) of each nest in pixels of level 0, the levels that were read). levels: (rows, columns).

    spacing: mm a pixel at level 0.
    """
    coarse = level_for(levels, spacing, COARSE)
    boxes = pieces(levels[coarse], spacing_of(levels, coarse, spacing))
    seen = [place for box in boxes for place in suspects(network, read, coarse, box)]
    scale = levels[0][1] / levels[coarse][1]
    places = sorted(((x * scale, y * scale, r * scale, c) for x, y, r, c in seen), key=lambda one: -one[3])
    chosen = distinct(places)
    found = []
    for place, (x, y, radius, confidence) in enumerate(chosen):
        if place >= ALWAYS and confidence < SUSPICIOUS:
            break
        certain = closely(network, read, levels[0], spacing, (x, y))
        if certain >= CERTAIN and confidence >= SUSPICIOUS:
            found.append((x, y, radius, certain))
    return found, {0, coarse}


def suspects(network: Nests, read: Read, level: int, box: "Box") -> list[tuple[float, float, float, float]]:
    """(x, y, radius, confidence) in pixels of `level`, of one piece; the places in its overlap belong to its neighbour."""
    x, y, width, height, scale, inner = box
    image = resized(tensor(read(level, (x, y, width, height))), (max(8, round(height / scale)), max(8, round(width / scale))))
    with torch.no_grad():
        spots = peaks(network.coarse(image))
    across, down = width / image.shape[-1], height / image.shape[-2]
    placed = [(x + px * across, y + py * down, radius * across, sure) for px, py, radius, sure in spots]
    left, top, right, bottom = inner
    return [one for one in placed if left <= one[0] < right and top <= one[1] < bottom]


Box = tuple[int, int, int, int, float, tuple[float, float, float, float]]


def pieces(size: tuple[int, int], spacing: float) -> Iterator[Box]:
    """(x, y, width, height, pixels of the level a coarse pixel, the part that is this piece's own) over a level."""
    rows, columns = size
    scale = max(1.0, COARSE / spacing)
    margin = min(int(OVERLAP * scale), WIDEST // 4)
    step = min(int(PIECE * scale), WIDEST - 2 * margin)
    for top in range(0, rows, step):
        for left in range(0, columns, step):
            x, y = max(0, left - margin), max(0, top - margin)
            right, bottom = min(columns, left + step + margin), min(rows, top + step + margin)
            own = (left, top, min(left + step, columns), min(top + step, rows))
            yield x, y, right - x, bottom - y, scale, own


def closely(network: Nests, read: Read, size: tuple[int, int], spacing: float, place: tuple[float, float]) -> float:
    """Confidence of a nest around `place`, from a square of the finest level."""
    side = min(round(SQUARE * FINE / spacing), *size)
    x, y = (int(min(max(0, at - side / 2), most - side)) for at, most in ((place[0], size[1]), (place[1], size[0])))
    with torch.no_grad():
        return float(torch.sigmoid(network.fine(resized(tensor(read(0, (x, y, side, side))), (SQUARE, SQUARE)))))


def distinct(places: list[tuple[float, float, float, float]]) -> list[tuple[float, float, float, float]]:
    """The most suspicious of those that lie in each other."""
    kept: list[tuple[float, float, float, float]] = []
    for one in places[: 10 * MOST]:
        if all((one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2 > max(one[2], other[2]) ** 2 for other in kept):
            kept.append(one)
    return kept[:MOST]


def spacing_of(levels: list[tuple[int, int]], level: int, spacing: float) -> float:
    return spacing * levels[0][1] / levels[level][1]


def level_for(levels: list[tuple[int, int]], spacing: float, wanted: float) -> int:
    """The coarsest level that is not coarser than `wanted` mm a pixel; level 0 if all are."""
    fits = [level for level in range(len(levels)) if spacing_of(levels, level, spacing) <= wanted * 1.05]
    return fits[-1] if fits else 0


def findings_of(network: Nests, loader: RaphaDataLoader, index: int) -> tuple[list[dict[str, Any]], set[int]]:
    """(the findings on the slide whose finest level is record `index`, the records that were read for them)."""
    facts = loader.facts(index)
    levels = [(rows, columns) for rows, columns, _ in facts["levels"]]
    spots, read = find(network, lambda level, box: loader.read(index, level=level, region=box).array, levels, facts["spacing"][1])
    found = [_finding(index, spot, levels[0], facts["spacing"][1]) for spot in spots]
    return found, {facts["levels"][level][2] for level in read}


def _finding(index: int, spot: tuple[float, float, float, float], size: tuple[int, int], spacing: float) -> dict[str, Any]:
    x, y, radius, confidence = spot
    edge = x + radius if x + radius <= size[1] else x - radius
    return {
        "index": index,
        "frame": 1,
        "kind": "nest",
        "confidence": round(confidence, 4),
        "shape": "circle",
        "points": [[round(x, 2), round(y, 2)], [round(max(edge, 0.0), 2), round(y, 2)]],
        "measurements": [{"name": "diameter", "value": round(2 * radius * spacing, 4), "unit": "mm"}],
    }


def named(weights: Path) -> dict[str, str]:
    """What this package is called: name, version, and the digest over its three files."""
    here = Path(__file__).parent
    files = {"analyse.py": here / "analyse.py", "model.json": here / "model.json", "weights.safetensors": weights}
    said = json.loads(files["model.json"].read_bytes())
    package = digest_of({name: digest(path.read_bytes()) for name, path in files.items()})
    return {"name": said["name"], "version": said["version"], "digest": package}


def analysed(network: Nests, loader: RaphaDataLoader) -> tuple[dict[int, str], list[dict[str, Any]]]:
    """(record -> "" for analysed, or why not; the findings)."""
    said = dict.fromkeys(loader.indices, "level-not-needed")
    findings: list[dict[str, Any]] = []
    for index in loader.indices:
        facts = loader.facts(index)
        if facts["base"] != index:
            continue
        if facts["spacing"] is None or facts["spacing"][0] != facts["spacing"][1]:
            said[index] = "no-spacing"
            continue
        try:
            found, read = findings_of(network, loader, index)
        except RaphaError as error:
            if error.codes != ("loader-record-malformed",):
                raise
            said[index] = "undecodable"
            continue
        findings += found
        said |= {record: "" for record in read if record >= 0}
    return said, findings


def main() -> None:
    weights = Path(os.environ["RAPHA_BASE_WEIGHTS"])
    network = Nests()
    network.load_state_dict(load_file(weights))
    said, findings = analysed(network, RaphaDataLoader(batch_size=1))
    instances = [
        {"index": index, "status": "not-applicable", "reason": why} if why else {"index": index, "status": "analysed"}
        for index, why in said.items()
    ]
    whole = {"version": 1, "model": named(weights), "instances": instances, "findings": findings}
    Path(OUT, "findings.json").write_bytes(canonical(whole))


if __name__ == "__main__":
    main()
