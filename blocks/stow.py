"""STOW-RS (PS3.18 section 10.5): objects to the archive, in requests of bounded size, and what it says of each."""

import json
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import urllib3

from blocks.dimse.services import ToStore
from blocks.pacs import MAX_NESTING, Timeouts
from rapha.canonical import nesting
from rapha.errors import PeerError

BATCH_OBJECTS, BATCH_BYTES = 50, 64 << 20
MAX_ANSWER = 4 << 20
STORED, FAILED = "00081199", "00081198"  # Referenced, Failed SOP Sequence


def stow(
    base_url: str,
    study: str,
    objects: Sequence[ToStore],
    *,
    ca: Path | None = None,
    token: str | None = None,
    timeouts: Timeouts | None = None,
) -> dict[str, int]:
    """SOP instance -> 0 for stored, else the failure reason (PS3.18 table I.2-2; 0x0111: it has one of this UID).

    Raises `PeerError` stow-status for an answer that is none of 200, 202 and 409, stow-answer-odd, stow-unreachable. An instance
    that the answer does not name is not stored.
    """
    limits = timeouts or Timeouts()
    pool = urllib3.PoolManager(retries=False, ca_certs=str(ca) if ca else None)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    found: dict[str, int] = {}
    for batch in _batches(objects):
        found |= _sent(pool, f"{base_url.rstrip('/')}/studies/{study}", batch, headers, limits)
    return found


def _batches(objects: Sequence[ToStore]) -> Iterator[list[ToStore]]:
    batch: list[ToStore] = []
    size = 0
    for one in objects:
        length = one.path.stat().st_size
        if batch and (len(batch) == BATCH_OBJECTS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += length
    if batch:
        yield batch


def _sent(
    pool: urllib3.PoolManager, url: str, batch: Sequence[ToStore], headers: dict[str, str], limits: Timeouts
) -> dict[str, int]:
    boundary = secrets.token_hex(16)
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    length = sum(one.path.stat().st_size + len(_head(boundary)) + 2 for one in batch) + len(_end(boundary))
    try:
        response = pool.request(
            "POST",
            url,
            body=_body(batch, boundary),
            headers={**headers, "Content-Type": kind, "Content-Length": str(length), "Accept": "application/dicom+json"},
            timeout=urllib3.Timeout(connect=limits.connect, read=limits.idle),
            redirect=False,
            preload_content=False,
        )
        raw = response.read(MAX_ANSWER + 1)
        response.close()
    except urllib3.exceptions.HTTPError as error:
        raise PeerError("stow-unreachable", f"the archive broke off a STOW ({type(error).__name__})", peer="pacs") from None
    if response.status not in (200, 202, 409):
        raise PeerError("stow-status", f"the archive answered a STOW with status {response.status}", peer="pacs")
    return _read(raw)


def _body(batch: Sequence[ToStore], boundary: str) -> Iterator[bytes]:
    for one in batch:
        yield _head(boundary)
        with one.path.open("rb") as stream:
            while block := stream.read(1 << 18):
                yield block
        yield b"\r\n"
    yield _end(boundary)


def _head(boundary: str) -> bytes:
    return f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()


def _end(boundary: str) -> bytes:
    return f"--{boundary}--\r\n".encode()


def _read(raw: bytes) -> dict[str, int]:
    odd = PeerError("stow-answer-odd", "the archive's answer to a STOW is not the DICOM JSON of one", peer="pacs")
    if len(raw) > MAX_ANSWER or nesting(raw) > MAX_NESTING:
        raise odd
    try:
        answer: Any = json.loads(raw)
        answer = answer[0] if isinstance(answer, list) else answer
        stored = {_uid(item): 0 for item in _items(answer, STORED)}
        failed = {_uid(item): int(item["00081197"]["Value"][0]) for item in _items(answer, FAILED)}
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise odd from None
    return {**stored, **failed}


def _items(answer: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = answer.get(tag, {}).get("Value", [])
    return items


def _uid(item: dict[str, Any]) -> str:
    return str(item["00081155"]["Value"][0])
