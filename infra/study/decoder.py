"""Compressed frames, decoded elsewhere: the private key's process never runs a decoder on foreign bytes.

One process of `infra.study.codec` for a study, started with its first compressed frame, in bubblewrap without network, without
the host's files but the interpreter's, and with the sandbox's own list of system calls. It gets a frame and the few numbers that
a decoder needs, and is ended with the study, after a failure, and after FRAME_SECONDS without an answer.

A frame whose decoder died, fell silent or had no memory is put before a fresh one, and then the study fails as a peer does: it is
tried again later, and after the register's tries it is a dead letter. So also for a file that ends every decoder: who was killed
for want of memory looks the same from here, and an image that is left out of a study without a person's word would be the worse
mistake. Only what a living decoder calls broken is "undecodable".
"""

import io
import os
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from infra.launcher.bare import bare
from infra.launcher.syscalls import filter_file
from infra.study.codec import HEAD, MAX_FRAME, NO_MEMORY
from rapha.errors import PeerError, Refusal
from rapha.protocol import carries

FRAME_SECONDS = 120.0
_FORM = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated",
         "BitsStored", "HighBit", "PixelRepresentation")  # fmt: skip


@dataclass(frozen=True)
class Form:
    """What a decoder must know of a frame, and no more of the data set. syntax: the transfer syntax."""

    syntax: str
    values: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, dataset: Dataset, syntax: str) -> "Form":
        return cls(syntax, tuple((name, dataset[name].value) for name in _FORM if name in dataset))

    def file(self, frame: bytes) -> bytes:
        """A file of PS3.10 with this one frame in it, and nobody's name."""
        bare = Dataset()
        for name, value in self.values:
            setattr(bare, name, value)
        bare.NumberOfFrames = 1
        if UID(self.syntax).is_encapsulated:
            bare.add_new(0x7FE00010, "OB", encapsulate([frame]))
            bare["PixelData"].is_undefined_length = True
        else:
            bare.add_new(0x7FE00010, "OW", frame)
        bare.SOPClassUID = bare.SOPInstanceUID = UID("2.25.1")
        bare.file_meta = FileMetaDataset()
        bare.file_meta.TransferSyntaxUID = UID(self.syntax)
        bare.file_meta.MediaStorageSOPClassUID = bare.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
        stream = io.BytesIO()
        dcmwrite(stream, bare, enforce_file_format=True)
        return stream.getvalue()


class Decoder:
    """The decoding process of one study."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, form: Form, frame: bytes) -> np.ndarray[Any, Any]:
        """The frame's values; colours as RGB. Raises `Refusal` record-malformed; `PeerError` study-no-decoder: none starts,
        study-decoder-failed: two gave no answer."""
        raw = form.file(frame)
        with self._lock:
            for _ in range(2):
                line = self._line or self._start()
                try:
                    line.sendall(len(raw).to_bytes(4, "big") + raw)
                    return _array(line)
                except (ValueError, TypeError):
                    self._end()  # it speaks nonsense: the next frame meets a new one
                    raise Refusal(["record-malformed"], "a compressed frame cannot be decoded") from None
                except (OSError, EOFError, MemoryError):
                    self._end()
        raise PeerError("study-decoder-failed", "two decoding processes ended over a frame, or gave no answer", peer="study")

    def close(self) -> None:
        with self._lock:
            self._end()

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        calls = filter_file()
        try:
            shown = {Path(__file__).with_name("codec.py"): "/codec/start.py"}
            argv = [*bare(calls, shown), sys.executable, "-I", "/codec/start.py", str(theirs.fileno())]
            quiet = subprocess.DEVNULL
            self._process = subprocess.Popen(argv, pass_fds=(theirs.fileno(), calls), stdin=quiet, stdout=quiet, stderr=quiet)
        except OSError:
            ours.close()
            raise PeerError("study-no-decoder", "the decoding process does not start", peer="study") from None
        finally:
            theirs.close()
            os.close(calls)
        ours.settimeout(FRAME_SECONDS)
        self._line = ours
        return ours

    def _end(self) -> None:
        if self._line is not None:
            self._line.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._line = self._process = None


def _array(line: socket.socket) -> np.ndarray[Any, Any]:
    status, kind, dimensions, *shape = HEAD.unpack(_exactly(line, HEAD.size))
    if status == NO_MEMORY:
        raise MemoryError
    if status != 0:
        raise Refusal(["record-malformed"], "a compressed frame cannot be decoded")
    dtype = np.dtype(kind.decode("ascii"))
    size = int(np.prod(shape[:dimensions], dtype=np.uint64)) * dtype.itemsize
    if not carries(dtype) or not 2 <= dimensions <= 4 or size > MAX_FRAME:
        raise ValueError("an array that cannot travel")
    return np.frombuffer(_exactly(line, size), dtype=dtype).reshape(shape[:dimensions])


def _exactly(line: socket.socket, count: int) -> bytearray:
    found, view = bytearray(count), 0
    while view < count:
        got = line.recv_into(memoryview(found)[view:])
        if got == 0:
            raise EOFError
        view += got
    return found
