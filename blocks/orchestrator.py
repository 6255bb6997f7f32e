"""The orchestrator: where a job's artefacts come from and where sealed results, receipts and reports go. Over HTTP.

    GET  {base}/blobs/sha256:<hex>                              the bytes with that digest
    PUT  {base}/jobs/<job hex>/attempts/<n>/result|receipt|report   the same content again is 200, other content 409

No redirect is followed and no proxy of the environment is used: bytes go to the configured base and nowhere else.
"""

import hashlib
import os
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from rapha.canonical import is_digest
from rapha.errors import ConfigurationError, PeerError, Refusal

Kind = Literal["result", "receipt", "report"]
_TYPES = {"result": "application/octet-stream", "receipt": "application/json", "report": "application/json"}
_CHUNK = 1 << 20
_MAX_ANSWER = 64 * 1024


@dataclass(frozen=True)
class Orchestrator:
    """base: `http(s)://host[:port][/path]` without query; token: the node's bearer token (visible ASCII); timeout: seconds for
    each read; patience: seconds for the whole of a body, so that a drip does not hold a stage for ever.
    """

    base: str
    token: str = field(repr=False)
    ca_bundle: Path | None = None
    timeout: float = 30.0
    patience: float = 3600.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.base)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
            raise ConfigurationError(["orchestrator-base"], "RAPHA_ORCHESTRATOR_API_BASE must be a plain http or https URL")
        if not re.fullmatch(r"[\x21-\x7e]{16,512}", self.token):
            raise ConfigurationError(
                ["orchestrator-token"], "the orchestrator's token must be 16 visible ASCII characters or more"
            )

    def fetch_blob(self, digest: str, folder: Path, cap: int) -> Path:
        """The artefact with this digest as `folder/<hex>`, once its bytes are hashed; already there and right, it is not
        fetched again.

        Raises `Refusal(blob-too-large)` beyond `cap` bytes; `PeerError` orchestrator-unreachable, -status, -blob-missing,
        -blob-mismatch.
        """
        if not is_digest(digest):
            raise Refusal(["blob-digest"], "an artefact is asked for by its whole digest", side="job")
        target = folder / digest.removeprefix("sha256:")
        folder.mkdir(parents=True, exist_ok=True)
        if target.is_file() and _hash_of(target) == digest:
            return target
        found = self._fetch(digest, target, cap)
        if found != digest:
            target.unlink()
            raise PeerError("orchestrator-blob-mismatch", "the orchestrator sent bytes of another digest", peer="orchestrator")
        return target

    def fetch_image(self, digest: str, folder: Path, cap: int) -> Path:
        """An OCI archive as `folder/<hex>`. It is named by the image manifest inside, so the caller judges what came.

        Raises as `fetch_blob` does, but for the digest.
        """
        if not is_digest(digest):
            raise Refusal(["blob-digest"], "an artefact is asked for by its whole digest", side="job")
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / digest.removeprefix("sha256:")
        self._fetch(digest, target, cap)
        return target

    def _fetch(self, digest: str, target: Path, cap: int) -> str:
        """Puts the blob's bytes at `target`, whole or not at all; the digest of what came."""
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".fetch-", delete=False) as stream:
            temporary = Path(stream.name)
            try:
                found = self._stream(f"/blobs/{digest}", stream, cap)
                stream.flush()
                os.fsync(stream.fileno())
                temporary.replace(target)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        return found

    def put(self, job: str, attempt: int, kind: Kind, content: bytes | Path) -> None:
        """Stores one document of an attempt; the same again is no change. `PeerError` orchestrator-conflict for other content
        there.
        """
        if not is_digest(job) or attempt < 1 or kind not in _TYPES:
            raise ValueError("not an attempt's document")
        path = f"/jobs/{job.removeprefix('sha256:')}/attempts/{attempt}/{kind}"
        if isinstance(content, Path):
            with content.open("rb") as stream:
                self._put(path, stream, content.stat().st_size, kind)
        else:
            self._put(path, content, len(content), kind)

    def get(self, job: str, attempt: int, kind: Kind, target: Path, cap: int) -> str:
        """Writes a delivered document to the new file `target` and gives its digest: the AI team's side of `put`."""
        with target.open("xb") as stream:
            return self._stream(f"/jobs/{job.removeprefix('sha256:')}/attempts/{attempt}/{kind}", stream, cap)

    def _put(self, path: str, body: bytes | BinaryIO, size: int, kind: Kind) -> None:
        headers = {"Content-Length": str(size), "Content-Type": _TYPES[kind]}
        with self._request("PUT", path, body=body, headers=headers) as answer:
            answer.read(_MAX_ANSWER)
            if answer.status == 409:
                raise PeerError(
                    "orchestrator-conflict", f"the orchestrator holds another {kind} for this attempt", peer="orchestrator"
                )
            if answer.status not in (200, 201):
                raise _status(answer.status)

    def _stream(self, path: str, target: "BinaryIO | tempfile._TemporaryFileWrapper[bytes]", cap: int) -> str:
        h, size = hashlib.sha256(), 0
        with self._request("GET", path) as answer:
            if answer.status == 404:
                raise PeerError("orchestrator-blob-missing", "the orchestrator does not have it", peer="orchestrator")
            if answer.status != 200:
                raise _status(answer.status)
            try:
                until = time.monotonic() + self.patience
                while block := answer.read1(_CHUNK, decode_content=False):  # what has come: a drip is judged drop by drop
                    size += len(block)
                    if time.monotonic() > until:
                        raise PeerError("orchestrator-slow", "the orchestrator's answer takes too long", peer="orchestrator")
                    if size > cap:
                        raise Refusal(["blob-too-large"], f"an artefact is larger than {cap} bytes", side="job")
                    h.update(block)
                    target.write(block)
            except HTTPError:
                raise PeerError("orchestrator-unreachable", "the orchestrator's answer broke off", peer="orchestrator") from None
        return "sha256:" + h.hexdigest()

    def _request(
        self, method: str, path: str, *, body: bytes | BinaryIO | None = None, headers: dict[str, str] | None = None
    ) -> "_Answer":
        sent = {**(headers or {}), "Authorization": f"Bearer {self.token}", "Accept-Encoding": "identity"}
        certificates = str(self.ca_bundle) if self.ca_bundle else None
        wait = urllib3.Timeout(connect=10.0, read=self.timeout)
        pool = urllib3.PoolManager(num_pools=1, retries=False, timeout=wait, ca_certs=certificates)
        url = self.base.rstrip("/") + path
        try:
            answer = pool.request(method, url, body=body, headers=sent, redirect=False, preload_content=False)
        except (HTTPError, OSError):
            raise PeerError("orchestrator-unreachable", "the orchestrator does not answer", peer="orchestrator") from None
        return _Answer(pool, answer)


class _Answer:
    """A response whose connection is closed with it."""

    def __init__(self, pool: urllib3.PoolManager, answer: urllib3.BaseHTTPResponse) -> None:
        self._pool, self._answer = pool, answer
        self.status, self.read, self.read1 = answer.status, answer.read, answer.read1

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, *_: object) -> None:
        self._answer.close()
        self._pool.clear()


def _status(status: int) -> PeerError:
    return PeerError("orchestrator-status", f"the orchestrator answered {status}", peer="orchestrator")


def _hash_of(path: Path) -> str:
    h = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_CHUNK):
            h.update(block)
    return "sha256:" + h.hexdigest()
