"""Trains the radiology model on made-up scans, measures it on others, writes weights.safetensors and model.json beside itself.

    python -m infra.models.radiology.train

Seeds are fixed and one thread computes: the same machine gives the same weights. A few minutes.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from infra.hospital.scenes import Floats, Planted, scan
from infra.models.package import write_model
from infra.models.radiology.analyse import SIDE, STRIDE, Spots, find, prepared

HERE = Path(__file__).parent
SEED, SCENES, STEPS, BATCH = 20261125, 600, 1200, 8
DISTANCE = 8.0  # pixels of an image whose longer side is SIDE
SHAPES = ((256, 256), (256, 208), (208, 256))


def scene(random: np.random.Generator) -> tuple[Floats, tuple[Planted, ...]]:
    """A scan with none to three lesions."""
    rows, columns = SHAPES[int(random.integers(len(SHAPES)))]
    return scan(random, rows, columns, int(random.integers(0, 4)))


def target(shape: tuple[int, int], planted: tuple[Planted, ...]) -> torch.Tensor:
    """(3, h, w) of the heat map wanted, the logarithm of the radius, and where it is known."""
    rows, columns = shape[0] // STRIDE, shape[1] // STRIDE
    y, x = torch.meshgrid(torch.arange(rows) * STRIDE + 0.5, torch.arange(columns) * STRIDE + 0.5, indexing="ij")
    wanted = torch.zeros(3, rows, columns)
    for one in planted:
        near = (1.4 * torch.exp(-((x - one.x) ** 2 + (y - one.y) ** 2) / (2 * (0.5 * one.radius) ** 2))).clamp(max=1)
        known = near > 0.3
        wanted[0] = torch.maximum(wanted[0], near)
        wanted[1][known], wanted[2][known] = float(np.log(one.radius)), 1.0
    return wanted


def padded(image: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    return functional.pad(image, (0, shape[1] - image.shape[-1], 0, shape[0] - image.shape[-2]))


def loss(answer: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Cross entropy, weighted to the few places with a lesion, and the error of the radius where there is one."""
    weight = 1 + 30 * wanted[:, :1]
    heat = (functional.binary_cross_entropy_with_logits(answer[:, :1], wanted[:, :1], reduction="none") * weight).mean()
    radius = ((answer[:, 1:] - wanted[:, 1:2]).abs() * wanted[:, 2:]).sum() / (wanted[:, 2:].sum() + 1)
    return heat + 0.05 * radius


def learn(network: nn.Module) -> None:
    random = np.random.default_rng(SEED)
    scenes = [scene(random) for _ in range(SCENES)]
    images = torch.cat([padded(prepared(image)[0], (SIDE, SIDE)) for image, _ in scenes])
    wanted = torch.stack([target((SIDE, SIDE), planted) for _, planted in scenes])
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for step in range(STEPS):
        chosen = torch.from_numpy(random.choice(SCENES, BATCH, replace=False))
        optimizer.zero_grad()
        value = loss(network(images[chosen]), wanted[chosen])
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {value.item():.4f}", flush=True)


def measure(network: nn.Module, *, seed: int = SEED + 1, scans: int = 400) -> tuple[float, float]:
    """(share of planted lesions found within DISTANCE, false findings an image), on scans that it was not trained on."""
    random = np.random.default_rng(seed)
    found = planted_all = false = 0
    for _ in range(scans):
        image, planted = scene(random)
        spots = find(network, (image * 3000).astype("uint16"))
        near = [[np.hypot(x - one.x, y - one.y) <= DISTANCE for one in planted] for x, y, *_ in spots]
        found += sum(any(row[k] for row in near) for k in range(len(planted)))
        false += sum(not any(row) for row in near)
        planted_all += len(planted)
    return found / planted_all, false / scans


def main() -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    network = Spots()
    learn(network)
    network.eval()
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, HERE / "weights.safetensors")
    found, false = measure(network)
    print(f"found {found:.3f}, false an image {false:.3f}")
    write_model(HERE, distance=DISTANCE, found=found, false_per_image=false)


if __name__ == "__main__":
    main()
