"""Made-up images of bodies and of tissue, with lesions planted where they are said to be: what the two models learn from, and
what shows that they have learnt.

A scan is a body with two dark lungs, vessels (thin, bright, long), noise; a lesion is a soft round spot in a lung. Tissue is
stained pink with dark nuclei on white glass, and folds (dark, without nuclei); a lesion is a nest of crowded, large nuclei.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Planted:
    """A lesion: its centre and radius in pixels, x along the row."""

    x: float
    y: float
    radius: float


def scan(random: np.random.Generator, rows: int, columns: int, lesions: int) -> tuple[Floats, tuple[Planted, ...]]:
    """([rows, columns] from 0, air, to 1; the lesions). Radii are 2 to 4 in a hundred of the longer side."""
    scale = max(rows, columns) / 256
    y, x = np.mgrid[0:rows, 0:columns].astype(np.float64)
    body = _ellipse(x, y, columns / 2, rows / 2, columns * 0.46, rows * 0.42)
    centres = [(columns * 0.30, rows * 0.48), (columns * 0.70, rows * 0.48)]
    radii = (columns * 0.15, rows * 0.27)
    lungs = sum(_ellipse(x, y, cx, cy, *radii) for cx, cy in centres)
    image = 0.55 * body - 0.38 * np.minimum(lungs, 1.0) + 0.03 * _waves(random, rows, columns) * body
    for _ in range(int(random.integers(6, 14))):
        image += _vessel(random, x, y, centres, radii, scale)
    planted: list[Planted] = []
    while len(planted) < lesions:
        spot = _place(random, centres, radii, random.uniform(5, 10) * scale)
        if all(np.hypot(spot.x - one.x, spot.y - one.y) > 3 * (spot.radius + one.radius) / 2 + 8 * scale for one in planted):
            planted.append(spot)
            soft = np.hypot(x - spot.x, y - spot.y) - spot.radius
            image += random.uniform(0.28, 0.42) / (1 + np.exp(np.clip(soft / scale, -40, 40)))
    image += random.normal(0, random.uniform(0.01, 0.025), image.shape)
    return np.clip(image, 0, 1), tuple(planted)


def tissue(random: np.random.Generator, size: int, lesions: int) -> tuple[NDArray[np.uint8], tuple[Planted, ...]]:
    """([size, size, 3] RGB as a scanner at 1 µm a pixel sees it; the nests of crowded nuclei, radius 60 to 110 pixels)."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    centre, reach = size / 2, size * 0.44
    edge = 1 + 0.05 * _rim(random, np.arctan2(y - centre, x - centre))
    inside = (np.hypot(x - centre, y - centre) < reach * edge).astype(np.float32)
    stain = 0.55 + 0.25 * _clouds(random, size)
    planted: list[Planted] = []
    while len(planted) < lesions:
        spot = _in_disc(random, centre, reach * 0.72, random.uniform(60, 110))
        if all(np.hypot(spot.x - one.x, spot.y - one.y) > 1.5 * (spot.radius + one.radius) for one in planted):
            planted.append(spot)
    folds = np.zeros_like(x)
    for _ in range(int(random.integers(1, 4))):
        fold = _in_disc(random, centre, reach * 0.72, random.uniform(50, 100))
        if all(np.hypot(fold.x - one.x, fold.y - one.y) > fold.radius + one.radius + 60 for one in planted):
            folds = np.maximum(folds, np.clip(1.2 - np.hypot(x - fold.x, y - fold.y) / fold.radius, 0, 1))
    nuclei = np.zeros_like(x)
    _scatter(random, nuclei, _spread(random, int(size * size * 0.0010), size), (2.6, 4.0))
    for spot in planted:
        _scatter(random, nuclei, _crowd(random, spot), (4.0, 6.0))
    return _stained(random, inside, stain, np.minimum(folds, 1), np.minimum(nuclei, 1)), tuple(planted)


def _ellipse(x: Floats, y: Floats, cx: float, cy: float, rx: float, ry: float) -> Floats:
    inner = 1 - np.hypot((x - cx) / rx, (y - cy) / ry)
    return np.asarray(1 / (1 + np.exp(np.clip(-inner * 40, -40, 40))))


def _waves(random: np.random.Generator, rows: int, columns: int) -> Floats:
    y, x = np.mgrid[0:rows, 0:columns] / max(rows, columns)
    waves = np.zeros((rows, columns))
    for _ in range(6):
        angle, cycles, phase = random.uniform(0, 2 * np.pi, 3)
        waves += np.cos(2 * np.pi * (1 + cycles) * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return waves / 2.5


def _vessel(
    random: np.random.Generator,
    x: Floats,
    y: Floats,
    centres: list[tuple[float, float]],
    radii: tuple[float, float],
    scale: float,
) -> Floats:
    """A line through a lung, thinner than any lesion."""
    start = _place(random, centres, radii, 1.0)
    angle, length = random.uniform(0, np.pi), random.uniform(12, 40) * scale
    along = (x - start.x) * np.cos(angle) + (y - start.y) * np.sin(angle)
    across = -(x - start.x) * np.sin(angle) + (y - start.y) * np.cos(angle)
    width = random.uniform(0.7, 1.5) * scale
    line: Floats = np.exp(-((across / width) ** 2) / 2 - np.maximum(np.abs(along) - length / 2, 0) ** 2 / (2 * width**2))
    return float(random.uniform(0.15, 0.35)) * line


def _place(random: np.random.Generator, centres: list[tuple[float, float]], radii: tuple[float, float], radius: float) -> Planted:
    cx, cy = centres[int(random.integers(len(centres)))]
    angle, far = random.uniform(0, 2 * np.pi), np.sqrt(random.uniform(0, 1)) * 0.75
    return Planted(cx + radii[0] * far * np.cos(angle), cy + radii[1] * far * np.sin(angle), radius)


def _in_disc(random: np.random.Generator, centre: float, reach: float, radius: float) -> Planted:
    angle, far = random.uniform(0, 2 * np.pi), np.sqrt(random.uniform(0, 1)) * reach
    return Planted(centre + far * np.cos(angle), centre + far * np.sin(angle), radius)


def _rim(random: np.random.Generator, angle: "NDArray[np.float32]") -> "NDArray[np.float32]":
    waves = sum(np.cos(k * angle + random.uniform(0, 2 * np.pi)) / k for k in range(2, 7))
    return np.asarray(waves, dtype=np.float32)


def _clouds(random: np.random.Generator, size: int) -> "NDArray[np.float32]":
    """Smooth from -1 to 1: noise on a coarse grid, drawn large."""
    from PIL import Image

    coarse = random.uniform(-1, 1, (max(4, size // 64), max(4, size // 64))).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def _spread(random: np.random.Generator, count: int, size: int) -> Floats:
    return random.uniform(0, size, (count, 2))


def _crowd(random: np.random.Generator, spot: Planted) -> Floats:
    count = int(np.pi * spot.radius**2 * 0.010)
    angle, far = random.uniform(0, 2 * np.pi, count), np.sqrt(random.uniform(0, 1, count)) * spot.radius
    return np.stack([spot.x + far * np.cos(angle), spot.y + far * np.sin(angle)], axis=1)


def _scatter(random: np.random.Generator, canvas: "NDArray[np.float32]", places: Floats, radii: tuple[float, float]) -> None:
    """Draws round nuclei; one that would pass the edge is left out."""
    size = canvas.shape[0]
    for (x, y), radius in zip(places, random.uniform(*radii, len(places)), strict=True):
        reach = int(radius) + 2
        left, top = int(x) - reach, int(y) - reach
        if left < 0 or top < 0 or left + 2 * reach + 1 > size or top + 2 * reach + 1 > size:
            continue
        window = canvas[top : top + 2 * reach + 1, left : left + 2 * reach + 1]
        v, u = np.mgrid[0 : 2 * reach + 1, 0 : 2 * reach + 1]
        np.maximum(window, np.clip(radius + 0.5 - np.hypot(u + left - x, v + top - y), 0, 1), out=window)


def _stained(
    random: np.random.Generator,
    inside: "NDArray[np.float32]",
    stain: "NDArray[np.float32]",
    folds: "NDArray[np.float32]",
    nuclei: "NDArray[np.float32]",
) -> NDArray[np.uint8]:
    """Beer and Lambert: what eosin (pink) and haematoxylin (violet) let through."""
    eosin, haematoxylin = np.array([0.05, 0.45, 0.20]), np.array([0.60, 0.70, 0.25])
    amount = inside * (stain + 0.9 * folds)
    density = amount[..., None] * eosin + (inside * (nuclei * (1 - folds) * 1.1 + 0.5 * folds))[..., None] * haematoxylin
    light = 243 * np.exp(-density) + random.normal(0, 2.5, density.shape)
    return np.asarray(np.clip(light, 0, 255), dtype=np.uint8)
