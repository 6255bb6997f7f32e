"""Whole slides, out of sealed files: wsidicom reads tiles and levels from streams that decrypt as they are asked."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from upath import UPath
from wsidicom import WsiDicom
from wsidicom import errors as wsi_errors
from wsidicom.file.io.wsidicom_io import WsiDicomReadIO
from wsidicom.file.wsidicom_file_source import WsiDicomFileSource

from infra.reader.decode import PARSER_ERRORS
from infra.study.images import Stream
from rapha.errors import Refusal

MAX_REGION = 64 << 20  # bytes of one region
_WSI_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(wsi_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
ERRORS = (*PARSER_ERRORS, *_WSI_ERRORS)


@dataclass(frozen=True, slots=True)
class Level:
    """rows, columns: of its whole matrix; members: indexes of the instances that it is made of."""

    rows: int
    columns: int
    members: tuple[int, ...]
    exponent: int


class Slide:
    """The pyramid of one slide. levels: finest first, those alone that the archive holds."""

    def __init__(self, streams: Mapping[int, Stream], names: Mapping[str, int]) -> None:
        """streams: by the instances' indexes; names: their SOP Instance UIDs. Raises `Refusal` slide-unreadable."""
        self._lock = threading.Lock()
        self._streams = dict(streams)
        try:
            opened = [WsiDicomReadIO(cast(BinaryIO, stream), UPath(f"memory://{index}")) for index, stream in streams.items()]
            self._slide = WsiDicom(WsiDicomFileSource(opened), True)
            self.levels = tuple(_level(one, names) for one in self._slide.levels)
        except ERRORS:
            self.close()
            raise Refusal(["slide-unreadable"], "the levels of a slide do not make a pyramid") from None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray[Any, Any] | None:
        """[height, width, 3] of a level, or None when the region is not inside it.

        Raises `Refusal` record-too-large, record-malformed.
        """
        found = self.levels[level]
        if not (width > 0 and height > 0 and x + width <= found.columns and y + height <= found.rows):
            return None
        if width * height * 3 > MAX_REGION:
            raise Refusal(["record-too-large"], "a region of this size is handed over in parts")
        try:
            with self._lock:
                region = self._slide.read_region((x, y), found.exponent, (width, height), threads=1, as_array=True)
        except ERRORS:
            raise Refusal(["record-malformed"], "a slide's tiles cannot be decoded") from None
        array = np.asarray(region)
        if array.shape[:2] != (height, width) or array.dtype != np.uint8:
            raise Refusal(["record-malformed"], "a slide's tiles are not of eight bits")
        return array

    def close(self) -> None:
        for stream in self._streams.values():
            cast(BinaryIO, stream).close()


def _level(level: Any, names: Mapping[str, int]) -> Level:
    members = tuple(sorted(names[str(dataset.uids.instance)] for dataset in level.datasets))
    return Level(int(level.size.height), int(level.size.width), members, int(level.level))
