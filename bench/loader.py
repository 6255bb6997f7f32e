"""`RaphaDataLoader` over the real reader's sealed staging, beside torch's DataLoader over the same arrays as .npy in memory."""

import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench.processes import begin, running_reader
from bench.row import Row, beside
from bench.studies import PROJECT, SCOPE, ct_study, write_records_file
from blocks.reader import Reader
from infra.peers.orthanc import running_orthanc
from rapha.loader import RaphaDataLoader

IMAGES, BATCH, EPOCHS, LINES = 100, 10, 3, 2


class Arrays(Dataset[Any]):
    """Records as .npy files: (array, label) by index."""

    def __init__(self, folder: Path, labels: list[int]) -> None:
        self._folder, self._labels = folder, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.from_numpy(np.load(self._folder / f"{index}.npy")), self._labels[index]


def rows() -> list[Row]:
    """Shuffled epochs of torch tensors over the same records; milliseconds a record."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapha-bench-")))
        memory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapha-bench-", dir="/dev/shm")))
        reader = stack.enter_context(Reader(_staged(stack, folder)))
        begin(reader, PROJECT, SCOPE)
        reader.query()
        reader.fetch()
        pairs = [socket.socketpair() for _ in range(LINES)]
        reader.attach([ours.detach() for ours, _ in pairs])
        fds = [stack.enter_context(theirs).fileno() for _, theirs in pairs]
        loader = RaphaDataLoader(BATCH, shuffle=True, seed=1, epochs=EPOCHS, tensors=True, fds=fds)
        for index in range(IMAGES):
            np.save(memory / f"{index}.npy", loader[index].array)
        torch.set_num_threads(1)  # the peer is slower with more: it stacks small batches
        dataset = Arrays(memory, [int(label) for label in loader.labels()])
        return [_row(loader, dataset, workers) for workers in (0, LINES)]


def _row(loader: RaphaDataLoader, dataset: Arrays, workers: int) -> Row:
    peer = DataLoader(dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
    name = f"torch's DataLoader, .npy in tmpfs, {workers} workers"

    def peers() -> None:
        for _ in range(EPOCHS):
            _drained(lambda batch: len(batch[1]), peer)

    row = beside(
        f"loader: one record of 0.5 MB, peer with {workers} workers",
        lambda: _drained(len, loader, EPOCHS),
        peers,
        peer_name=name,
        runs=7,
        per=EPOCHS * IMAGES,
    )
    note = f"records/s: {1000 / row.ours:.0f} (ours: {LINES} lines, decrypted by the reader, counted) and {1000 / row.peer:.0f}"
    return replace(row, note=note)


def _drained(length: Callable[[Any], int], batches: Any, epochs: int = 1) -> None:
    if sum(length(batch) for batch in batches) != epochs * IMAGES:
        raise RuntimeError("some records did not come")


def _staged(stack: ExitStack, folder: Path) -> Path:
    """Socket of a reader over an archive that holds the study."""
    archive = stack.enter_context(running_orthanc(folder / "orthanc"))
    study = ct_study(IMAGES)
    archive.store_all(study)
    write_records_file(folder / "records.jsonl", study)
    return stack.enter_context(running_reader(folder, archive.url, folder / "records.jsonl"))[0]
