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

from infra.study.decoder import Decoder, Form
from infra.study.images import FOREIGN, NATIVE, Stream
from rapha.errors import Refusal

MAX_REGION = 64 << 20  # bytes of one region
_WSI_ERRORS: tuple[type[Exception], ...] = tuple(
    kind for kind in vars(wsi_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
)
ERRORS: tuple[type[Exception], ...] = (*FOREIGN, *_WSI_ERRORS)


@dataclass(frozen=True, slots=True)
class Level:
    """rows, columns: of its whole matrix; members: indexes of the instances that it is made of; exponent: wsidicom's number for
    it; tile: rows and columns of one; form: for the decoder."""

    rows: int
    columns: int
    members: tuple[int, ...]
    exponent: int
    tile: tuple[int, int]
    form: Form


class Slide:
    """The pyramid of one slide. levels: finest first, those alone that the archive holds."""

    def __init__(
        self, streams: Mapping[int, Stream], names: Mapping[str, int], forms: Mapping[int, Form], decoder: Decoder
    ) -> None:
        """streams: by the instances' indexes; names: their SOP Instance UIDs; forms: of their tiles.

        Raises `Refusal` slide-unreadable.
        """
        self._lock, self._decoder = threading.Lock(), decoder
        self._streams = dict(streams)
        try:
            opened = [WsiDicomReadIO(cast(BinaryIO, stream), UPath(f"memory://{index}")) for index, stream in streams.items()]
            self._slide = WsiDicom(WsiDicomFileSource(opened), True)
            self.levels = tuple(_level(one, names, forms) for one in self._slide.levels)
        except ERRORS:
            self.close()
            raise Refusal(["slide-unreadable"], "the levels of a slide do not make a pyramid") from None
        except BaseException:
            self.close()
            raise

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
                if found.form.syntax in NATIVE:
                    region = self._slide.read_region((x, y), found.exponent, (width, height), threads=1, as_array=True)
                else:
                    region = self._stitched(found, x, y, width, height)
        except ERRORS:
            raise Refusal(["record-malformed"], "a slide's tiles cannot be decoded") from None
        array = np.asarray(region)
        if array.shape[:2] != (height, width) or array.dtype != np.uint8:
            raise Refusal(["record-malformed"], "a slide's tiles are not of eight bits")
        return array

    def _stitched(self, level: Level, x: int, y: int, width: int, height: int) -> np.ndarray[Any, Any]:
        """The region from its tiles, each decoded in the decoder's process."""
        rows, columns = level.tile
        region = np.zeros((height, width, 3), dtype=np.uint8)
        for down in range(y // rows, -(-(y + height) // rows)):
            for across in range(x // columns, -(-(x + width) // columns)):
                left, top = across * columns, down * rows
                encoded = self._slide.read_encoded_tile(level.exponent, (across, down), crop_to_image_boundary=False)
                tile = self._decoder.decode(level.form, encoded)
                if tile.shape != (rows, columns, 3) or tile.dtype != np.uint8:
                    raise Refusal(["record-malformed"], "a slide's tiles are not of eight bits")
                x0, y0, x1, y1 = max(x, left), max(y, top), min(x + width, left + columns), min(y + height, top + rows)
                region[y0 - y : y1 - y, x0 - x : x1 - x] = tile[y0 - top : y1 - top, x0 - left : x1 - left]
        return region

    def close(self) -> None:
        for stream in self._streams.values():
            cast(BinaryIO, stream).close()


def _level(level: Any, names: Mapping[str, int], forms: Mapping[int, Form]) -> Level:
    members = tuple(sorted(names[str(dataset.uids.instance)] for dataset in level.datasets))
    tile = (int(level.tile_size.height), int(level.tile_size.width))
    return Level(int(level.size.height), int(level.size.width), members, int(level.level), tile, forms[members[0]])
