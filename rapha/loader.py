"""`RaphaDataLoader`: how a trainer reads its records, the only way there is.

    from rapha import RaphaDataLoader

    loader = RaphaDataLoader(batch_size=16, shuffle=True, seed=7)
    for batch in loader:
        batch.arrays      # numpy, (16, rows, columns): what the pixels hold
        batch.labels      # int64, (16,)
        batch.attributes  # allow-listed attributes, one dict a record

The records stay on the hospital's side; what arrives is arrays, allow-listed attributes and pseudonyms, over descriptors that the
sandbox inherits (RAPHA_LOADER_FDS). Every record whose array is handed over counts as used, read ahead or not.
"""

import itertools
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from rapha.errors import ConfigurationError
from rapha.protocol import ALL_FRAMES, DESCRIBE, FACTS, MAX_NAMES, NAMES, READ, Request, ask, raise_for

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Name:
    """What is known of a record without its pixels: pseudonyms (64 hex digits) and the label, if the hospital gave one."""

    record: str
    patient: str
    label: int | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One record. array: (rows, columns), (frames, rows, columns) or with samples as last dimension; attributes: by keyword."""

    index: int
    array: Array
    label: int | None
    record: str
    patient: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Records in the order of `indices`. arrays: stacked where the shapes agree, else a list; labels: int64, -1 for none."""

    indices: Array
    arrays: Any
    labels: Any
    patients: tuple[str, ...]
    attributes: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.indices)


class RaphaDataLoader:
    """Batches of records in an order that (seed, epoch) decides alone.

    batch_size, seed: default to RAPHA_BATCH_SIZE and RAPHA_SEED; indices: the records to read, default all; epochs: how often one
    iteration goes through them; num_workers: connections to read ahead with, default all inherited; tensors: torch tensors
    instead of arrays; transform: called on each `Sample`'s array; fds: descriptors, default RAPHA_LOADER_FDS.
    """

    def __init__(
        self,
        batch_size: int | None = None,
        *,
        shuffle: bool = False,
        seed: int | None = None,
        indices: Sequence[int] | None = None,
        epochs: int = 1,
        num_workers: int | None = None,
        drop_last: bool = False,
        tensors: bool = False,
        transform: Callable[[Array], Array] | None = None,
        fds: Sequence[int] | None = None,
    ) -> None:
        self.batch_size = batch_size if batch_size is not None else _whole("RAPHA_BATCH_SIZE", 1)
        if self.batch_size < 1 or epochs < 1:
            raise ConfigurationError(["loader-argument"], "batch_size and epochs must be at least 1")
        self.seed = seed if seed is not None else _whole("RAPHA_SEED", 0)
        self.shuffle, self.epochs, self.drop_last, self.tensors = shuffle, epochs, drop_last, tensors
        self.transform, self.epoch = transform, 0
        self._lines = _Lines(_inherited() if fds is None else fds, num_workers)
        self.records = Records(self._lines)
        self.indices = tuple(range(len(self.records))) if indices is None else tuple(int(index) for index in indices)

    def __len__(self) -> int:
        """Batches in one iteration."""
        count = len(self.indices)
        whole = count // self.batch_size if self.drop_last else -(-count // self.batch_size)
        return whole * self.epochs

    def __getitem__(self, index: int) -> Sample:
        """Record `index` whole: random access."""
        return self.read(index)

    def read(
        self, index: int, *, frame: int | None = None, region: tuple[int, int, int, int] | None = None, level: int = 0
    ) -> Sample:
        """A record, one of its frames, or the region (x, y, width, height) of them; of a slide, at one of its levels (0: finest).

        Raises `RaphaError` loader-out-of-range, loader-cap-reached, loader-record-malformed, loader-too-large (ask for frames).
        """
        return _Reader(self._lines, self.transform).read(index, frame, region, level)

    def facts(self, index: int) -> dict[str, Any]:
        """Of a record that is to be reported on: "frames", "spacing" (mm between rows and between columns at level 0, or null),
        "levels" ([rows, columns, record] of each, finest first; the record that stands for it alone, -1 for none), "base" (the
        record of the slide's finest level, or its own), "attributes". Raises `RaphaError` loader-unsupported in training.
        """
        with self._lines.borrowed() as sock:
            reply = ask(sock, Request(FACTS, index))
        raise_for(reply)
        return reply.attributes

    def patients(self, indices: Sequence[int] | None = None) -> tuple[str, ...]:
        """The patients' pseudonyms, by record: to split by patient. Hands over no pixels and counts nothing."""
        return tuple(self.records[index].patient for index in (self.indices if indices is None else indices))

    def labels(self, indices: Sequence[int] | None = None) -> Array:
        """The labels, int64, -1 for none. Hands over no pixels and counts nothing."""
        chosen = self.indices if indices is None else indices
        return np.array([_label(self.records[index].label) for index in chosen], dtype=np.int64)

    def order(self, epoch: int) -> tuple[int, ...]:
        """The order of the records in an epoch: a permutation by PCG64 under (seed, epoch), or as given."""
        if not self.shuffle:
            return self.indices
        shuffled = np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.indices))
        return tuple(self.indices[place] for place in shuffled)

    def __iter__(self) -> Iterator[Batch]:
        """The batches of the next `epochs` epochs. Read ahead, never beyond what this iteration hands out."""
        first, self.epoch = self.epoch, self.epoch + self.epochs
        plan = [chunk for epoch in range(first, first + self.epochs) for chunk in self._chunks(self.order(epoch))]
        ahead = _Ahead(_Reader(self._lines, self.transform), [index for chunk in plan for index in chunk])
        try:
            for chunk in plan:
                yield self._batch([ahead.next() for _ in chunk])
        finally:
            ahead.stop()

    def close(self) -> None:
        """Closes the connections to the hospital's reader, for every loader of this process that shares them."""
        self._lines.close()

    def _chunks(self, order: Sequence[int]) -> list[Sequence[int]]:
        chunks = [order[at : at + self.batch_size] for at in range(0, len(order), self.batch_size)]
        return [chunk for chunk in chunks if len(chunk) == self.batch_size or not self.drop_last]

    def _batch(self, samples: list[Sample]) -> Batch:
        arrays: Any = [sample.array for sample in samples]
        if len({(array.shape, array.dtype) for array in arrays}) == 1:
            arrays = np.stack(arrays)
        labels: Any = np.array([_label(sample.label) for sample in samples], dtype=np.int64)
        if self.tensors:
            arrays, labels = _tensors(arrays), _tensors(labels)
        return Batch(
            np.array([sample.index for sample in samples], dtype=np.int64),
            arrays,
            labels,
            tuple(sample.patient for sample in samples),
            tuple(sample.attributes for sample in samples),
        )


class Records(Sequence[Name]):
    """The names of all records, by index, fetched in pages as they are asked for."""

    def __init__(self, lines: "_Lines") -> None:
        self._lines = lines
        self._pages: dict[int, list[Name]] = {}
        with lines.borrowed() as sock:
            reply = ask(sock, Request(DESCRIBE))
        raise_for(reply)
        self._count = int(reply.attributes["records"])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._count))]
        place = index + self._count if index < 0 else index
        if not 0 <= place < self._count:
            raise IndexError("no such record")
        page = place // MAX_NAMES
        if page not in self._pages:
            with self._lines.borrowed() as sock:
                reply = ask(sock, Request(NAMES, page * MAX_NAMES, MAX_NAMES))
            raise_for(reply)
            self._pages[page] = [Name(*entry) for entry in reply.attributes["names"]]
        return self._pages[page][place % MAX_NAMES]


class _Line:
    """A connection to the hospital's reader: one question at a time."""

    def __init__(self, fd: int) -> None:
        self.sock = socket.socket(fileno=os.dup(fd))
        self.lock = threading.Lock()


class _Lines:
    """The connections of one loader. Loaders in one process share them, so that their questions never mix on a line."""

    _open: ClassVar[dict[tuple[int, int], _Line]] = {}
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, fds: Sequence[int], workers: int | None) -> None:
        chosen = list(fds)[: workers if workers else None]
        if not chosen:
            raise ConfigurationError(
                ["loader-no-descriptors"], "RAPHA_LOADER_FDS names no descriptor: this is not a rapha sandbox"
            )
        self._keys = [(status.st_dev, status.st_ino) for status in map(os.fstat, chosen)]
        with self._opening:
            for key, fd in zip(self._keys, chosen, strict=True):
                if key not in self._open:
                    self._open[key] = _Line(fd)
            self._lines = [self._open[key] for key in self._keys]
        self._turn = itertools.cycle(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    @contextmanager
    def borrowed(self) -> Iterator[socket.socket]:
        """A free connection, or the next one that becomes free."""
        line = next((one for one in self._lines if one.lock.acquire(blocking=False)), None)
        if line is None:
            line = next(self._turn)
            line.lock.acquire()
        try:
            yield line.sock
        finally:
            line.lock.release()

    def close(self) -> None:
        with self._opening:
            for key, line in zip(self._keys, self._lines, strict=True):
                self._open.pop(key, None)
                line.sock.close()


class _Reader:
    def __init__(self, lines: _Lines, transform: Callable[[Array], Array] | None) -> None:
        self.lines, self._transform = lines, transform

    def read(
        self, index: int, frame: int | None = None, region: tuple[int, int, int, int] | None = None, level: int = 0
    ) -> Sample:
        x, y, width, height = region or (0, 0, 0, 0)
        request = Request(READ, index, ALL_FRAMES if frame is None else frame, level, x, y, width, height)
        with self.lines.borrowed() as sock:
            reply = ask(sock, request)
        raise_for(reply)
        facts, pixels = reply.attributes, reply.array
        assert pixels is not None  # noqa: S101  # an OK reply to READ has an array: the reader's own promise
        array = self._transform(pixels) if self._transform else pixels
        return Sample(index, array, facts["label"], facts["record"], facts["patient"], facts["attributes"])


class _Ahead:
    """Reads a plan with one thread a connection, a few records ahead of the one that is asked for."""

    def __init__(self, reader: _Reader, plan: Sequence[int]) -> None:
        self._reader, self._plan = reader, iter(plan)
        self._pool = ThreadPoolExecutor(max_workers=len(reader.lines), thread_name_prefix="rapha-loader")
        self._waiting: deque[Future[Sample]] = deque()
        for _ in range(2 * len(reader.lines)):
            self._order_one()

    def next(self) -> Sample:
        self._order_one()
        return self._waiting.popleft().result()

    def stop(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _order_one(self) -> None:
        index = next(self._plan, None)
        if index is not None:
            self._waiting.append(self._pool.submit(self._reader.read, index))


def _inherited() -> list[int]:
    return [int(text) for text in os.environ.get("RAPHA_LOADER_FDS", "").split(",") if text.strip()]


def _whole(name: str, default: int) -> int:
    return int(os.environ.get(name) or default)


def _label(label: int | None) -> int:
    return -1 if label is None else label


def _tensors(value: Any) -> Any:
    import torch

    if isinstance(value, list):
        return [torch.from_numpy(np.array(item)) for item in value]
    return torch.from_numpy(np.array(value))
