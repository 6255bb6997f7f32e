"""Sealed staging: each instance in chunks under AES-256-GCM, by a key that is made for one attempt and never leaves memory.

A file is a row of chunks of CHUNK bytes and a last, shorter one. The nonce is the file's number and the chunk's (both unique
under the key); the additional data names the attempt and says which chunk is the last: no chunk can be moved, swapped or cut off.
"""

import io
import os
import secrets
import shutil
import struct
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from rapha.errors import Refusal

CHUNK = 1 << 20
TAG = 16


def sealed_size(size: int) -> int:
    """Bytes on disk for `size` bytes in clear."""
    return size + TAG * max(1, -(-size // CHUNK))


class Staging:
    """The staging folder of one attempt and its key."""

    def __init__(self, root: Path, name: str) -> None:
        self.folder = root / name
        try:
            self.folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            raise Refusal(["reader-busy"], "another connection holds this attempt") from None
        self._name = name.encode()
        self._aead: AESGCM | None = AESGCM(secrets.token_bytes(32))
        self._files = 0

    def create(self) -> "SealedWriter":
        """A writer for a new file. Not safe to call from two threads at once."""
        self._files += 1
        return SealedWriter(self, self._files)

    def open(self, number: int, size: int) -> "SealedReader":
        return SealedReader(self, number, size)

    def path(self, number: int) -> Path:
        return self.folder / f"{number}.sealed"

    def cipher(self) -> AESGCM:
        if self._aead is None:
            raise Refusal(["staging-destroyed"], "the staging key of this attempt is destroyed")
        return self._aead

    def bind(self, number: int, chunk: int, last: bool) -> tuple[bytes, bytes]:
        """Nonce and additional data of a chunk."""
        return struct.pack(">IQ", number, chunk), self._name + struct.pack(">IQ?", number, chunk, last)

    def destroy(self) -> bool:
        """Lets go of the key and removes the files; True when both are gone."""
        self._aead = None
        shutil.rmtree(self.folder, ignore_errors=True)
        return not self.folder.exists()


class SealedWriter:
    """Takes blocks of any size; only ciphertext is ever written. `close` is durable, `discard` removes the file."""

    def __init__(self, staging: Staging, number: int) -> None:
        self.number, self.size = number, 0
        self._staging, self._aead = staging, staging.cipher()
        self._pending, self._chunks = bytearray(), 0
        self._fd = os.open(staging.path(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)

    def write(self, block: bytes) -> None:
        self.size += len(block)
        self._pending += block
        while len(self._pending) > CHUNK:  # the last chunk stays back, for it is sealed as the last
            self._seal(memoryview(self._pending)[:CHUNK].tobytes(), last=False)
            del self._pending[:CHUNK]

    def close(self) -> None:
        self._seal(bytes(self._pending), last=True)
        self._pending.clear()
        os.fsync(self._fd)
        self._shut()

    def discard(self) -> None:
        self._pending.clear()
        self._shut()
        self._staging.path(self.number).unlink(missing_ok=True)

    def _shut(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _seal(self, clear: bytes, *, last: bool) -> None:
        nonce, bound = self._staging.bind(self.number, self._chunks, last)
        view = memoryview(self._aead.encrypt(nonce, clear, bound))
        while view:
            view = view[os.write(self._fd, view) :]
        self._chunks += 1


class SealedReader(io.RawIOBase):
    """A sealed file in clear, as a seekable stream that holds one chunk at a time.

    `budget`: bytes that may still be read before `Refusal` record-malformed, None for any: a bound on what a header may hold.
    Raises `Refusal` staging-tampered for a chunk that is not the one that was sealed.
    """

    def __init__(self, staging: Staging, number: int, size: int) -> None:
        super().__init__()
        self._staging, self._number, self._size = staging, number, size
        self._file = staging.path(number).open("rb", buffering=0)
        self._at, self._chunk, self._clear = 0, -1, b""
        self.budget: int | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("before the start")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        self._spend(count)
        out = bytearray()
        while len(out) < count:
            clear = self._load(self._at // CHUNK)
            start = self._at % CHUNK
            piece = clear[start : start + count - len(out)]
            out += piece
            self._at += len(piece)
        return bytes(out)

    def readall(self) -> bytes:
        return self.read(-1)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._clear = b""
        self._file.close()
        super().close()

    def _spend(self, count: int) -> None:
        if self.budget is not None:
            self.budget -= count
            if self.budget < 0:
                raise Refusal(["record-malformed"], "a record's header is larger than this node reads")

    def _load(self, chunk: int) -> bytes:
        if chunk != self._chunk:
            last = chunk == max(0, (self._size - 1) // CHUNK)
            nonce, bound = self._staging.bind(self._number, chunk, last)
            self._file.seek(chunk * (CHUNK + TAG))
            sealed = self._file.read(CHUNK + TAG) or b""
            try:
                self._clear = self._staging.cipher().decrypt(nonce, sealed, bound)
            except InvalidTag:
                raise Refusal(["staging-tampered"], "a file in staging is not the one that was sealed") from None
            self._chunk = chunk
        return self._clear
