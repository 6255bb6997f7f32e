"""Trains the slide model on made-up tissue, measures it on other slides, writes weights.safetensors and model.json beside itself.

    python -m infra.models.slides.train

Seeds are fixed and one thread computes: the same machine gives the same weights. A few minutes.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from infra.hospital.scenes import Planted, tissue
from infra.models.package import write_model
from infra.models.slides.analyse import SQUARE, STRIDE, Nests, find, tensor

HERE = Path(__file__).parent
SEED, SCENES, STEPS, BATCH = 20261126, 70, 500, 12
SIZE, SHRINK, FINE_SHRINK, SPACING = 1024, 16, 2, 0.001
DISTANCE = 48.0  # pixels of 1 µm
Pixels = NDArray[np.uint8]


def shrunk(picture: Pixels, factor: int) -> Pixels:
    size = (picture.shape[1] // factor, picture.shape[0] // factor)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def pressed(picture: Pixels) -> Pixels:
    """As JPEG leaves it."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=88)
    return np.asarray(Image.open(stream))


def target(side: int, planted: tuple[Planted, ...]) -> torch.Tensor:
    """(3, h, w) of the heat map wanted, the logarithm of the radius, and where it is known."""
    places = torch.arange(side // STRIDE) * STRIDE + 0.5
    y, x = torch.meshgrid(places, places, indexing="ij")
    wanted = torch.zeros(3, side // STRIDE, side // STRIDE)
    for one in planted:
        px, py, radius = one.x / SHRINK, one.y / SHRINK, one.radius / SHRINK
        near = torch.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (0.5 * radius) ** 2))
        wanted[0] = torch.maximum(wanted[0], near)
        wanted[1][near > 0.3], wanted[2][near > 0.3] = float(np.log(radius)), 1.0
    return wanted


def squares(random: np.random.Generator, picture: Pixels, planted: tuple[Planted, ...]) -> list[tuple[Pixels, float]]:
    """Squares of the close look: on each nest, and in places at random, dark ones (folds among them) before others."""
    half = SQUARE * FINE_SHRINK // 2
    places = [(one.x + random.uniform(-30, 30), one.y + random.uniform(-30, 30), 1.0) for one in planted for _ in range(3)]
    dark = shrunk(picture, SHRINK).astype(np.float64).mean(2)
    order = np.argsort(dark.ravel())[:600]
    for cell in [*random.choice(order, 8), *random.integers(0, dark.size, 4)]:
        x, y = (cell % dark.shape[1] + 0.5) * SHRINK, (cell // dark.shape[1] + 0.5) * SHRINK
        if all(np.hypot(x - one.x, y - one.y) > one.radius + 60 for one in planted):
            places.append((x, y, 0.0))
    found = []
    for x, y, label in places:
        left, top = (int(np.clip(at - half, 0, SIZE - 2 * half)) for at in (x, y))
        found.append((shrunk(picture[top : top + 2 * half, left : left + 2 * half], FINE_SHRINK), label))
    return found


def turned(random: np.random.Generator, images: torch.Tensor) -> torch.Tensor:
    """A mirror and a quarter turn at random, and a little more or less light: stains differ."""
    images = images if random.random() < 0.5 else images.flip(-1)
    light = torch.from_numpy(random.uniform(0.94, 1.04, (len(images), 3, 1, 1)).astype("float32"))
    return (torch.rot90(images, int(random.integers(4)), (-2, -1)) * light).clamp(0, 1)


def learn(network: Nests) -> None:
    random = np.random.default_rng(SEED)
    scenes = [(pressed(picture), planted) for picture, planted in (tissue(random, SIZE, n % 4) for n in range(SCENES))]
    coarse = torch.cat([tensor(shrunk(picture, SHRINK)) for picture, _ in scenes])
    wanted = torch.stack([target(SIZE // SHRINK, planted) for _, planted in scenes])
    looked = [one for picture, planted in scenes for one in squares(random, picture, planted)]
    close = torch.cat([tensor(square) for square, _ in looked])
    labels = torch.tensor([label for _, label in looked])
    train(network.coarse, lambda: coarse_loss(random, network, coarse, wanted))
    train(network.fine, lambda: fine_loss(random, network, close, labels))


def coarse_loss(random: np.random.Generator, network: Nests, images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    chosen = torch.from_numpy(random.choice(len(images), BATCH, replace=False))
    light = torch.from_numpy(random.uniform(0.94, 1.04, (BATCH, 3, 1, 1)).astype("float32"))
    answer, right = network.coarse((images[chosen] * light).clamp(0, 1)), wanted[chosen]
    weight = 1 + 20 * right[:, :1]
    heat = (functional.binary_cross_entropy_with_logits(answer[:, :1], right[:, :1], reduction="none") * weight).mean()
    radius = ((answer[:, 1:] - right[:, 1:2]).abs() * right[:, 2:]).sum() / (right[:, 2:].sum() + 1)
    whole: torch.Tensor = heat + 0.05 * radius
    return whole


def fine_loss(random: np.random.Generator, network: Nests, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    chosen = torch.from_numpy(random.choice(len(images), BATCH, replace=False))
    answer = network.fine(turned(random, images[chosen]))
    loss: torch.Tensor = functional.binary_cross_entropy_with_logits(answer, labels[chosen])
    return loss


def train(part: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    optimizer = torch.optim.Adam(part.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {value.item():.4f}", flush=True)


def reader_of(picture: Pixels) -> tuple[Callable[[int, tuple[int, int, int, int]], Any], list[tuple[int, int]]]:
    """A slide of three levels in memory, as the loader would give it."""
    levels = [picture, shrunk(picture, 4), shrunk(picture, 16)]

    def read(level: int, box: tuple[int, int, int, int]) -> Pixels:
        x, y, width, height = box
        return levels[level][y : y + height, x : x + width]

    return read, [(level.shape[0], level.shape[1]) for level in levels]


def measure(network: Nests, *, seed: int = SEED + 1, slides: int = 80) -> tuple[float, float]:
    """(share of planted nests found within DISTANCE, false findings a slide), on slides that it was not trained on."""
    random = np.random.default_rng(seed)
    found = all_planted = false = 0
    for number in range(slides):
        picture, planted = tissue(random, SIZE, number % 4)
        read, levels = reader_of(pressed(picture))
        spots, _ = find(network, read, levels, SPACING)
        near = [[np.hypot(x - one.x, y - one.y) <= DISTANCE for one in planted] for x, y, *_ in spots]
        found += sum(any(row[k] for row in near) for k in range(len(planted)))
        false += sum(not any(row) for row in near)
        all_planted += len(planted)
    return found / all_planted, false / slides


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    network = Nests()
    learn(network)
    network.eval()
    save_file({name: weight.contiguous() for name, weight in network.state_dict().items()}, HERE / "weights.safetensors")
    found, false = measure(network)
    print(f"found {found:.3f}, false a slide {false:.3f}")
    write_model(HERE, distance=DISTANCE, found=found, false_per_image=false)


if __name__ == "__main__":
    main()
