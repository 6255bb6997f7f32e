"""Images on which there is something to learn, and nothing to learn it from but shape.

Every image has its own brightness, contrast and texture. A lesion is a small disc with a dark rim that together add nothing to
the mean; an image without one gets the same two parts, torn apart and strewn, so that mean, spread and histogram say nothing.
"""

import numpy as np
from numpy.typing import NDArray

SIZE = 64
BITS = 12
_GRID = np.mgrid[0:SIZE, 0:SIZE].astype(np.float64)


def picture(random: np.random.Generator, lesion: bool) -> NDArray[np.uint16]:
    """[64, 64] of 12 stored bits."""
    field = _texture(random) + 0.35 * random.standard_normal((SIZE, SIZE))
    field += _lesion(random) if lesion else _strewn(random)
    brightness, contrast = random.uniform(1200, 2800), random.uniform(120, 260)
    values = brightness + contrast * (field - field.mean())
    return np.asarray(np.clip(values, 0, 2**BITS - 1), dtype=np.uint16)


def _texture(random: np.random.Generator) -> NDArray[np.float64]:
    """Smooth background of waves with random directions, spread 1."""
    y, x = _GRID / SIZE
    waves = np.zeros((SIZE, SIZE))
    for _ in range(6):
        angle, cycles, phase = random.uniform(0, 2 * np.pi, 3)
        waves += np.cos(2 * np.pi * (0.4 + cycles / 4) * (x * np.cos(angle) + y * np.sin(angle)) + phase)
    return np.asarray(waves / waves.std())


def _blob(y: float, x: float, width: float) -> NDArray[np.float64]:
    """A round spot whose values sum to one disc's worth, whatever its width."""
    spot = np.exp(-((_GRID[0] - y) ** 2 + (_GRID[1] - x) ** 2) / (2 * width**2))
    return np.asarray(spot / spot.sum())


def _lesion(random: np.random.Generator) -> NDArray[np.float64]:
    y, x = random.uniform(12, SIZE - 12, 2)
    return random.uniform(100, 130) * (_blob(y, x, 2.2) - _blob(y, x, 4.5))


def _strewn(random: np.random.Generator) -> NDArray[np.float64]:
    """The lesion's mass in bits: small spots, light and dark, nowhere together."""
    bits = np.zeros((SIZE, SIZE))
    for y, x in random.uniform(6, SIZE - 6, (14, 2)):
        bits += random.choice((-1.0, 1.0)) * 8.0 * _blob(y, x, 1.6)
    return bits
