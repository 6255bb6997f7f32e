"""Decodes compressed frames, in a process that holds nothing: `python codec.py DESCRIPTOR`, inside bubblewrap.

    request   length u32 · a file of PS3.10 with one frame
    reply     status u8 (0: decoded, 1: broken, 2: no memory) · dtype 3 bytes · dimensions u8 · shape 4 × u32 · the array's bytes,
              C-ordered, little-endian

What a decoder's fault could take over here has no network, no key, no name and no file of the hospital's. It is copied in alone:
pydicom, its decoders and numpy are all that it imports.
"""

import io
import resource
import socket
import struct
import sys

import numpy as np
from pydicom import config
from pydicom.pixels.utils import pixel_array

HEAD = struct.Struct(">B3sB4I")
MAX_FRAME = 512 << 20
BROKEN, NO_MEMORY = 1, 2
# What decoders raise at foreign bytes. Anything else ends the process, which answers the same question.
FAULTS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, OSError, struct.error)


def main() -> None:
    for name, most in (("CORE", 0), ("FSIZE", 0), ("NOFILE", 64), ("AS", 8 << 30)):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    config.settings.reading_validation_mode = config.IGNORE
    with socket.socket(fileno=int(sys.argv[1])) as line:
        while (head := _exactly(line, 4)) is not None:
            raw = _exactly(line, int.from_bytes(head, "big"))
            if raw is None:
                return
            for block in _answer(raw):
                line.sendall(block)


def _answer(raw: bytes) -> list[bytes]:
    try:
        array = np.ascontiguousarray(pixel_array(io.BytesIO(raw)))
        kind = array.dtype.newbyteorder("<").str.encode()
        shape = (*array.shape, 0, 0, 0, 0)[:4]
        return [HEAD.pack(0, kind, array.ndim, *shape), array.astype(kind.decode()).tobytes()]
    except MemoryError:
        return [HEAD.pack(NO_MEMORY, b"   ", 0, 0, 0, 0, 0)]
    except FAULTS:
        return [HEAD.pack(BROKEN, b"   ", 0, 0, 0, 0, 0)]


def _exactly(line: socket.socket, count: int) -> bytes | None:
    found = bytearray()
    while len(found) < count:
        block = line.recv(min(count - len(found), 1 << 20))
        if not block:
            return None
        found += block
    return bytes(found)


if __name__ == "__main__":
    main()
