"""STOW-RS (PS3.18 section 10.5): objects to the archive, in requests of bounded size, and what it says of each."""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import urllib3

from blocks.dimse.services import ToStore
from blocks.pacs import MAX_NESTING, Timeouts, WebTls, web_failure, web_status
from rapha.canonical import nesting
from rapha.errors import PeerError

BATCH_OBJECTS, BATCH_BYTES = 50, 64 << 20
MAX_ANSWER = 4 << 20
NO_SERVICE = (401, 403, 404, 405, 501)
STORED, FAILED = "00081199", "00081198"  # Referenced, Failed SOP Sequence


def stow(
    base_url: str,
    study: str,
    objects: Sequence[ToStore],
    *,
    ca: Path | None = None,
    token: str | None = None,
    timeouts: Timeouts | None = None,
    tls: WebTls | None = None,
) -> dict[str, int]:
    """SOP instance -> 0 for stored, else the warning or failure reason (PS3.18 table I.2-2; 0x0111: it has one of this UID).

    Raises `PeerError` stow-status for an answer that is none of 200, 202 and 409, stow-answer-odd, stow-unreachable, tls-…. An
    instance that the answer does not name is not stored.
    """
    limits = timeouts or Timeouts()
    secured = tls.pool() if tls else {"ca_certs": str(ca) if ca else None}
    pool = urllib3.PoolManager(retries=False, **secured)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    found: dict[str, int] = {}
    for batch in _batches(objects):
        try:
            found |= _sent(pool, f"{base_url.rstrip('/')}/studies/{study}", batch, headers, limits)
        except urllib3.exceptions.HTTPError as error:
            raise web_failure("stow-unreachable", "broke off a STOW", error, tls) from None
    return found


def offers_stow(base_url: str, *, token: str | None, timeouts: Timeouts, ca: Path | None, tls: WebTls | None) -> bool:
    """Whether there is a store service: asked with a request that holds no object. Raises `PeerError` stow-unreachable, tls-…."""
    secured = tls.pool() if tls else {"ca_certs": str(ca) if ca else None}
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=none', "Accept": "application/dicom+json"}
    headers |= {"Authorization": f"Bearer {token}"} if token else {}
    try:
        answer = urllib3.PoolManager(retries=False, **secured).request(
            "POST",
            f"{base_url.rstrip('/')}/studies",
            body=b"--none--\r\n",
            headers=headers,
            timeout=urllib3.Timeout(connect=timeouts.connect, read=timeouts.idle),
            redirect=False,
            preload_content=False,
        )
        answer.close()
    except urllib3.exceptions.HTTPError as error:
        raise web_failure("stow-unreachable", "did not answer a STOW", error, tls) from None
    return answer.status not in NO_SERVICE


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
    response = pool.request(
        "POST",
        url,
        body=_body(batch, boundary),
        headers={**headers, "Content-Type": kind, "Content-Length": str(length), "Accept": "application/dicom+json"},
        timeout=urllib3.Timeout(connect=limits.connect, read=limits.idle),
        redirect=False,
        preload_content=False,
    )
    raw, end = b"", time.monotonic() + limits.whole
    while len(raw) <= MAX_ANSWER and (block := response.read1(1 << 16)):
        raw += block
        if time.monotonic() > end:
            raise PeerError("stow-slow", "the archive's answer to a STOW does not end", peer="pacs")
    response.close()
    if response.status not in (200, 202, 409):
        raise web_status("stow", "a STOW", response.status)
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
        stored = {_uid(item): _reason(item, "00081196", 0) for item in _items(answer, STORED)}
        failed = {_uid(item): _reason(item, "00081197", 0x0110) or 0x0110 for item in _items(answer, FAILED)}
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        raise odd from None
    return {**stored, **failed}


def _items(answer: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = answer.get(tag, {}).get("Value", [])
    return items


def _reason(item: dict[str, Any], tag: str, otherwise: int) -> int:
    """Warning Reason or Failure Reason; `otherwise` where the archive gives none."""
    values = item.get(tag, {}).get("Value") or [otherwise]
    return int(values[0])


def _uid(item: dict[str, Any]) -> str:
    return str(item["00081155"]["Value"][0])
