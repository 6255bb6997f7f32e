"""A sealed result: weights and metrics under the recipient's X25519 key, in one file, opened with nothing of the node at hand.

    magic   "rapha sealed v1\\n"
    length  4 bytes, big-endian, of the header
    header  canonical JSON: {"attempt", "chunk", "job", "recipient", "suite", "version"}
    key     80 bytes: HPKE (RFC 9180, base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM) of a fresh 32-byte content
            key; `info` is the magic and the digest of the header, so a key does not open under another job's header
    chunks  AES-256-GCM of at most `chunk` bytes each; nonce = 4 zero bytes, 7-byte counter, 1-byte "last" flag (as in STREAM,
            Hoang et al. 2015); associated data = the header: chunks cannot be moved, dropped, cut off or put elsewhere

The content is one canonical JSON line [{"digest", "name", "size"}, …] and the files, in that order.
"""

import base64
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from rapha.canonical import canonical, digest, is_digest, parse
from rapha.errors import ConfigurationError, Refusal

MAGIC = b"rapha sealed v1\n"
SUITE = "hpke-x25519-hkdf-sha256-aes-256-gcm"
CHUNK = 1 << 20
NAMES = ("metrics.json", "weights.safetensors")
_HPKE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_WRAPPED = 32 + 32 + 16
_TAG = 16
_MAX_HEADER = 4096


@dataclass(frozen=True, slots=True)
class Opened:
    """What a sealed result held: the job and attempt it is bound to, and the files written, name -> digest."""

    job: str
    attempt: int
    files: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"job": self.job, "attempt": self.attempt, "files": self.files}


def recipient_key(text: str) -> X25519PublicKey:
    """The declaration's `recipient` (base64 of 32 bytes) as a key; `Refusal(recipient-key)` for what is none or a weak one."""
    try:
        raw = base64.b64decode(text, validate=True)
        key = X25519PublicKey.from_public_bytes(raw)
        X25519PrivateKey.generate().exchange(key)  # raises for points whose shared secret is zero (RFC 7748 section 6.1)
    except ValueError:
        raise Refusal(["recipient-key"], "the recipient's key is not an X25519 public key", gate="seal", side="job") from None
    return key


def recipient_id(key: X25519PublicKey) -> str:
    """Digest of the raw public key."""
    return digest(key.public_bytes(Encoding.Raw, PublicFormat.Raw))


def load_recipient(path: Path) -> X25519PrivateKey:
    """The recipient's private key from a PEM file that only its owner can read."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigurationError(["key-readable-by-others"], f"{path}: only its owner may read a private key; chmod 600 it")
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(["key-unreadable"], f"{path}: not a readable PEM private key ({type(error).__name__})") from None
    if not isinstance(key, X25519PrivateKey):
        raise ConfigurationError(["key-kind"], f"{path}: not an X25519 key")
    return key


def write_recipient(path: Path, key: X25519PrivateKey | None = None) -> str:
    """Writes a (new) private key with mode 0600; the public key in base64, as the declaration's `recipient` has it."""
    key = key or X25519PrivateKey.generate()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return base64.b64encode(key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


def seal_files(files: Mapping[str, bytes], recipient: X25519PublicKey, target: BinaryIO, *, job: str, attempt: int) -> None:
    """Writes the sealed form of `files` (the two fixed names) to `target`."""
    header = _header(recipient, job, attempt)
    content_key = secrets.token_bytes(32)
    wrapped = _HPKE.encrypt(content_key, recipient, info=MAGIC + digest(header).encode())
    target.write(MAGIC + struct.pack(">I", len(header)) + header + wrapped)
    cipher = AESGCM(content_key)
    for counter, last, block in _blocks(_content(files)):
        target.write(cipher.encrypt(_nonce(counter, last), block, header))


def open_result(sealed_path: Path, key: X25519PrivateKey, out_dir: Path, *, job: str | None = None) -> Opened:
    """Opens a sealed result with the recipient's key and writes its files into `out_dir` (made; must not hold them already).

    Nothing is written unless every chunk, size and digest is right. Who sealed it is not shown by this: the receipt names the
    sealed file's digest, so verify the receipt too. Raises `Refusal` sealed-malformed, sealed-not-for-this-key, sealed-other-job,
    sealed-tampered, sealed-content, or `ConfigurationError` for files and folders that are in the way.
    """
    try:
        with sealed_path.open("rb") as stream:
            header, raw_header = _read_header(stream)
            if header["recipient"] != recipient_id(key.public_key()):
                raise _no("sealed-not-for-this-key", "the result is sealed to another key")
            if job is not None and header["job"] != job:
                raise _no("sealed-other-job", "the result belongs to another job")
            files = _files(_decrypted(stream, key, raw_header, header["chunk"]))
        _write(out_dir, files)
    except OSError as error:
        raise ConfigurationError(["sealed-file"], f"{error.filename}: {error.strerror}") from None
    return Opened(header["job"], header["attempt"], {name: digest(content) for name, content in files.items()})


def _header(recipient: X25519PublicKey, job: str, attempt: int) -> bytes:
    return canonical(
        {
            "version": 1,
            "job": job,
            "attempt": attempt,
            "suite": SUITE,
            "chunk": CHUNK,
            "recipient": recipient_id(recipient),
        }
    )


def _content(files: Mapping[str, bytes]) -> bytes:
    if set(files) != set(NAMES):
        raise ValueError("a sealed result holds exactly the two released files")
    table = [{"name": name, "size": len(files[name]), "digest": digest(files[name])} for name in NAMES]
    return b"".join([canonical(table), b"\n", *(files[name] for name in NAMES)])


def _blocks(content: bytes) -> Iterator[tuple[int, bool, bytes]]:
    count = max(1, -(-len(content) // CHUNK))
    for counter in range(count):
        yield counter, counter == count - 1, content[counter * CHUNK : (counter + 1) * CHUNK]


def _nonce(counter: int, last: bool) -> bytes:
    return b"\x00" * 4 + counter.to_bytes(7, "big") + bytes([last])


def _read_header(stream: BinaryIO) -> tuple[dict[str, Any], bytes]:
    if stream.read(len(MAGIC)) != MAGIC:
        raise _no("sealed-malformed", "the file is not a sealed result")
    length = int.from_bytes(stream.read(4), "big")
    raw = stream.read(min(length, _MAX_HEADER))
    try:
        header = parse(raw, what="sealed header")
    except Refusal:
        raise _no("sealed-malformed", "the header is not strict JSON") from None
    wanted = {"version": 1, "suite": SUITE, "chunk": CHUNK}
    if (
        not isinstance(header, dict)
        or set(header) != {*wanted, "job", "attempt", "recipient"}
        or {name: header[name] for name in wanted} != wanted
        or not (is_digest(header["job"]) and is_digest(header["recipient"]))
        or type(header["attempt"]) is not int
        or len(raw) != length
        or canonical(header) != raw
    ):
        raise _no("sealed-malformed", "the header is not a sealed result's")
    return header, raw


def _decrypted(stream: BinaryIO, key: X25519PrivateKey, header: bytes, chunk: int) -> bytes:
    try:
        content_key = _HPKE.decrypt(stream.read(_WRAPPED), key, info=MAGIC + digest(header).encode())
        cipher, out, counter = AESGCM(content_key), [], 0
        block = stream.read(chunk + _TAG)
        while True:
            following = stream.read(chunk + _TAG)
            out.append(cipher.decrypt(_nonce(counter, not following), block, header))
            if not following:
                return b"".join(out)
            block, counter = following, counter + 1
    except (InvalidTag, ValueError):
        raise _no("sealed-tampered", "the sealed result was changed, or cut short") from None


def _files(content: bytes) -> dict[str, bytes]:
    line, _, rest = content.partition(b"\n")
    files, position = {}, 0
    for name, size, wanted in _table(line):
        files[name] = rest[position : position + size]
        position += size
        if digest(files[name]) != wanted:
            raise _no("sealed-content", "a file in the sealed result does not have its digest")
    if position != len(rest):
        raise _no("sealed-content", "the sealed result holds bytes that belong to no file")
    return files


def _table(line: bytes) -> list[tuple[str, int, str]]:
    """Anyone can seal to a public key, so what comes out is as little trusted as what came in."""
    try:
        table = parse(line, what="sealed table")
    except Refusal:
        table = None
    if not isinstance(table, list) or not all(
        isinstance(item, dict) and set(item) == {"name", "size", "digest"} for item in table
    ):
        raise _no("sealed-content", "the sealed result has no table of its files")
    if [item["name"] for item in table] != list(NAMES) or not all(
        type(item["size"]) is int and item["size"] >= 0 for item in table
    ):
        raise _no("sealed-content", "the sealed result holds other files than weights and metrics")
    return [(item["name"], item["size"], item["digest"]) for item in table]


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    taken = [name for name in files if (folder / name).is_symlink() or (folder / name).exists()]
    if taken:
        raise ConfigurationError(["out-not-empty"], f"{folder}: {taken[0]} is there already")
    for name, content in files.items():
        fd = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as stream:
            stream.write(content)


def _no(code: str, message: str) -> Refusal:
    return Refusal([code], message, gate="sealed", side="node")
