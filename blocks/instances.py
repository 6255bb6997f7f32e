"""A received instance on disk: sealed to the study reader's key as it arrives, so that whoever received it cannot read it back.

    magic   "rapha instance v1\\n"
    key     80 bytes: HPKE (RFC 9180: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM, base mode) of a fresh content key
    chunks  AES-256-GCM of 256 KiB each, the last shorter; nonce = 4 zero bytes, 7-byte counter, 1-byte "last" flag (as in STREAM,
            Hoang et al. 2015); associated data = the magic: no chunk can be moved, dropped or cut off

The content is a file of PS3.10; its name on disk is random. Removing the file destroys the only copy of its content key.
"""

import io
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from rapha.errors import Refusal
from rapha.files import sync_folder

MAGIC = b"rapha instance v1\n"
CHUNK = 1 << 18
SUFFIX, UNFINISHED = ".sealed", ".part"
_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_WRAPPED, _TAG = 80, 16
_HEAD = len(MAGIC) + _WRAPPED


@dataclass(frozen=True, slots=True)
class SealedInstance:
    """path: of the sealed file; size: of the clear file in bytes."""

    path: Path
    size: int


class SealedWriter:
    """One instance on its way to disk. `finish` makes it durable under its name; without it there is a `.part` file at most."""

    def __init__(self, folder: Path, recipient: X25519PublicKey) -> None:
        """Raises `OSError`."""
        name = secrets.token_hex(16)
        self._part, self._path = folder / f"{name}{UNFINISHED}", folder / f"{name}{SUFFIX}"
        content_key = secrets.token_bytes(32)
        self._cipher = AESGCM(content_key)
        self._file = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._pending, self._counter, self.size = bytearray(), 0, 0
        self._put(MAGIC + _HPKE.encrypt(content_key, recipient, info=MAGIC))

    def write(self, block: bytes | bytearray | memoryview) -> None:
        """Raises `OSError`, for a full disk too."""
        self._pending += block
        self.size += len(block)
        while len(self._pending) > CHUNK:  # the last chunk is not known before the end
            self._chunk(bytes(self._pending[:CHUNK]), last=False)
            del self._pending[:CHUNK]

    def write_all(self, blocks: Iterable[bytes]) -> None:
        for block in blocks:
            self.write(block)

    def finish(self) -> SealedInstance:
        """Content and name are on disk when this returns. Raises `OSError`."""
        self._chunk(bytes(self._pending), last=True)
        os.fsync(self._file)
        os.close(self._file)
        self._file = -1
        self._part.rename(self._path)
        sync_folder(self._path.parent)
        return SealedInstance(self._path, self.size)

    def discard(self) -> None:
        """Removes what was written so far; after `finish` it does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._part.unlink(missing_ok=True)

    def _chunk(self, block: bytes, *, last: bool) -> None:
        self._put(self._cipher.encrypt(_nonce(self._counter, last), block, MAGIC))
        self._counter += 1

    def _put(self, raw: bytes) -> None:
        view = memoryview(raw)
        while view:
            view = view[os.write(self._file, view) :]


class SealedReader(io.RawIOBase):
    """The clear file of a sealed instance, seekable, in the memory of one chunk."""

    def __init__(self, path: Path, private: X25519PrivateKey) -> None:
        """Raises `OSError`; `Refusal` sealed-malformed, sealed-not-for-this-key, sealed-tampered (cut short, too)."""
        super().__init__()
        self._file = path.open("rb", buffering=0)
        try:
            self._open(private)
        except BaseException:
            self._file.close()
            raise

    def _open(self, private: X25519PrivateKey) -> None:
        head = self._file.read(_HEAD) or b""
        if len(head) != _HEAD or not head.startswith(MAGIC):
            raise _no("sealed-malformed", "a file in the store is no sealed instance")
        try:
            self._cipher = AESGCM(_HPKE.decrypt(head[len(MAGIC) :], private, info=MAGIC))
        except (InvalidTag, ValueError):
            raise _no("sealed-not-for-this-key", "an instance is sealed to another key") from None
        body = self._file.seek(0, os.SEEK_END) - _HEAD
        self._count = -(-body // (CHUNK + _TAG))
        self.size = body - self._count * _TAG
        self._at, self._held, self._block = 0, -1, b""
        if self._count < 1 or self.size < 0:
            raise _no("sealed-tampered", "a sealed instance was cut short")
        self._load(self._count - 1)  # it opens as the last one, or the file was cut

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError("negative position")
        self._at = start + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        """All of what was asked for, or up to the end. Raises `Refusal(sealed-tampered)`."""
        left = max(0, self.size - self._at)
        left = left if size is None or size < 0 else min(left, size)
        out = bytearray()
        while left:
            number, offset = divmod(self._at, CHUNK)
            piece = self._load(number)[offset : offset + left]
            out += piece
            left -= len(piece)
            self._at += len(piece)
        return bytes(out)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        piece = self.read(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._block, self._held = b"", -1
        super().close()

    def _load(self, number: int) -> bytes:
        if number != self._held:
            self._file.seek(_HEAD + number * (CHUNK + _TAG))
            raw = self._file.read(CHUNK + _TAG) or b""
            try:
                self._block = self._cipher.decrypt(_nonce(number, number == self._count - 1), raw, MAGIC)
            except (InvalidTag, ValueError):
                raise _no("sealed-tampered", "a sealed instance was changed, or cut short") from None
            self._held = number
        return self._block


def sweep_unfinished(folder: Path) -> int:
    """Removes what a killed writer left; how many. Only at the start of the one process that writes into `folder`."""
    left = list(folder.glob(f"*{UNFINISHED}"))
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def sweep_finished(folder: Path, but: frozenset[str] = frozenset()) -> int:
    """Removes the sealed files in `folder` itself, which belonged to connections that ended with the process; how many.

    What was moved aside, into a folder below, stays. but: names that stay. Only at the start of the process that writes there.
    """
    left = [path for path in folder.glob(f"*{SUFFIX}") if path.name not in but]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def _nonce(counter: int, last: bool) -> bytes:
    return b"\0" * 4 + counter.to_bytes(7, "big") + bytes([last])


def _no(code: str, message: str) -> Refusal:
    return Refusal([code], message, gate="sealed")
