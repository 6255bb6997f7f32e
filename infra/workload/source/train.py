"""Learns to find lesions, and says how much better it is than three things that have learnt nothing.

Reads records through `RaphaDataLoader` alone, splits them by patient, writes /out/weights.safetensors and /out/metrics.json.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from rapha import RaphaDataLoader

OUT = os.environ.get("RAPHA_OUT", "/out")
LEARNING_RATE = 0.004


class LesionNet(nn.Module):
    """(n, 64, 64) images, standardised one by one -> (n, 2) scores. 3,458 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 5, padding=2)
        self.second = nn.Conv2d(8, 16, 5, padding=2)
        self.answer = nn.Linear(16, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = functional.avg_pool2d(images[:, None], 2)
        x = functional.max_pool2d(torch.relu(self.first(x)), 2)
        x = torch.relu(self.second(x))
        scores: torch.Tensor = self.answer(torch.amax(x, (2, 3)))
        return scores


def standardised(arrays: Any) -> torch.Tensor:
    """Each image to mean 0 and spread 1: brightness and contrast of the device are nothing to learn from."""
    images = torch.from_numpy(arrays.astype("float32"))
    mean, spread = images.mean((1, 2), keepdim=True), images.std((1, 2), keepdim=True)
    return (images - mean) / (spread + 1e-6)


def split(loader: RaphaDataLoader) -> tuple[list[int], list[int]]:
    """(training, test) record indices: every fourth patient, in the order of the pseudonyms, is for the test."""
    patients, labels = loader.patients(), loader.labels()
    held_out = set(sorted(set(patients))[::4])
    labelled = [i for i in range(len(patients)) if labels[i] >= 0]
    return [i for i in labelled if patients[i] not in held_out], [i for i in labelled if patients[i] in held_out]


def accuracy(network: nn.Module, loader: RaphaDataLoader) -> float:
    right, count = 0, 0
    with torch.no_grad():
        for batch in loader:
            said = network(standardised(batch.arrays)).argmax(1)
            right += int((said == torch.from_numpy(batch.labels)).sum())
            count += len(batch)
    return right / count


def intensities(loader: RaphaDataLoader) -> tuple[Any, Any]:
    """(mean of each image, label of each), for the simplest guess there is."""
    means: list[float] = []
    labels: list[int] = []
    for batch in loader:
        means += [float(image.mean()) for image in batch.arrays]
        labels += [int(label) for label in batch.labels]
    return np.array(means), np.array(labels)


def mean_intensity(train: RaphaDataLoader, test: RaphaDataLoader) -> float:
    """Test accuracy of the one threshold on mean intensity that is best on the training images."""
    means, labels = intensities(train)
    right = [float(((means > cut) == labels).mean()) for cut in means]
    best = int(np.argmax([max(r, 1 - r) for r in right]))
    test_means, test_labels = intensities(test)
    said = float(((test_means > means[best]) == test_labels).mean())
    return said if right[best] >= 0.5 else 1 - said


def learn(network: nn.Module, loader: RaphaDataLoader, epochs: int) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    for _ in range(epochs):
        for batch in loader:
            images = standardised(batch.arrays)
            for axis in (1, 2):  # a lesion has no left and no right
                if torch.rand(()) < 0.5:
                    images = images.flip(axis)
            loss = functional.cross_entropy(network(images), torch.from_numpy(batch.labels))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def main() -> None:
    size, seed = int(os.environ["RAPHA_BATCH_SIZE"]), int(os.environ["RAPHA_SEED"])
    torch.manual_seed(seed)
    training, held_out = split(RaphaDataLoader(batch_size=size, seed=seed))
    train = RaphaDataLoader(batch_size=size, shuffle=True, seed=seed, indices=training)
    test = RaphaDataLoader(batch_size=64, indices=held_out)
    network = LesionNet()
    base = os.environ.get("RAPHA_BASE_WEIGHTS")
    if base:
        network.load_state_dict(load_file(base))
    labels = test.labels()
    metrics = {
        "majority-accuracy": float(max((labels == 0).mean(), (labels == 1).mean())),
        "mean-intensity-accuracy": mean_intensity(train, test),
        "untrained-accuracy": accuracy(network, test),
    }
    learn(network, train, int(os.environ["RAPHA_EPOCHS"]))
    metrics["accuracy"] = accuracy(network, test)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, f"{OUT}/weights.safetensors")
    Path(OUT, "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


if __name__ == "__main__":
    main()
