"""The webhook's two addresses, as a FastAPI application.

    POST {path}             a signed declaration -> 202 {"job": id} once its row is on disk
    GET  {path}/jobs/{id}   its owner, and nobody else -> 200 state and codes; 404 for what is not theirs

Errors are 4xx or 503 with `{"codes": […]}` and nothing else. After the row is on disk an engine event names the job; if the event
cannot be sent the answer stands, and the scheduled sweep starts the job.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from blocks.register import Register
from infra.webhook.signature import Key, authenticate, read_claims
from policies.gate import Mode
from policies.intake import IntakeLimits
from rapha.canonical import is_digest
from rapha.declaration import MAX_DECLARATION, read_declaration
from rapha.errors import PeerError, Refusal
from tasks.training.intake import admit

BODY_SECONDS = 10.0
STATUS = {
    "webhook-headers": 400,
    "webhook-unauthorised": 401,
    "webhook-stale": 401,
    "webhook-replayed": 401,
    "webhook-body-too-large": 413,
    "webhook-body-too-slow": 408,
    "owner-mismatch": 403,
    "client-nonce-reused": 409,
    "too-many-open-jobs": 429,
    "job-unknown": 404,
}
_log = logging.getLogger("rapha.webhook")


def _clock() -> int:
    return int(time.time())


@dataclass(frozen=True, kw_only=True)
class Desk:
    """Everything that the webhook knows. `announce(job)` tells the engine; it may fail."""

    register: Register
    keys: Mapping[str, Key]
    owner_keys: Mapping[str, Sequence[Ed25519PublicKey]]
    node_id: str
    mode: Mode
    limits: IntakeLimits
    announce: Callable[[str], None]
    max_body: int = MAX_DECLARATION
    clock: Callable[[], int] = field(default=_clock)

    def submit(self, request: list[tuple[str, str]], body: bytes) -> tuple[str, bool]:
        """(job id, new) for a signed call; `Refusal` otherwise."""
        sender = self.caller(request, body)
        _, _, job = read_declaration(body)
        facts = self.register.facts(job)
        open_jobs = self.register.open_jobs(sender) + (0 if facts.registered else 1)
        now = self.clock()
        admission = admit(
            body,
            sender=sender,
            owner_keys=self.owner_keys,
            node_id=self.node_id,
            limits=self.limits,
            mode=self.mode,
            now=now,
            open_jobs=0 if facts.registered else open_jobs,
        )
        return self.register.submit(body, admission.declaration, job, sender, now=now)

    def status(self, request: list[tuple[str, str]], job: str) -> dict[str, Any]:
        """The job as its owner may see it; the same `Refusal` for another's job as for none."""
        owner = self.caller(request, b"")
        found = self.register.status(job, owner) if is_digest(job) else None
        if found is None:
            raise Refusal(["job-unknown"], "no such job", side="job")
        return found.to_json()

    def caller(self, request: list[tuple[str, str]], body: bytes) -> str:
        now = self.clock()
        return authenticate(
            read_claims(request),
            body,
            self.keys,
            now,
            lambda key, nonce, until: self.register.spend_nonce(key, nonce, now=now, forget_at=until),
        )


def build(desk: Desk, path: str) -> FastAPI:
    """The application, serving at `path` (that of the node's callback URL)."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    base = "/" + path.strip("/") if path.strip("/") else ""

    async def receive(request: Request) -> JSONResponse:
        read_claims(request.headers.items())  # before a byte of the body is taken in
        body = await _body(request, desk.max_body)
        job, new = await asyncio.to_thread(desk.submit, request.headers.items(), body)
        return JSONResponse({"job": job}, 202, background=BackgroundTask(_announce, desk, job) if new else None)

    async def show(request: Request, job: str) -> JSONResponse:
        return JSONResponse(await asyncio.to_thread(desk.status, request.headers.items(), job))

    app.add_api_route(base or "/", receive, methods=["POST"])
    app.add_api_route(base + "/jobs/{job}", show, methods=["GET"])
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(PeerError, _unavailable)
    app.add_exception_handler(HTTPException, _not_here)
    return app


async def _body(request: Request, cap: int) -> bytes:
    """At most `cap` bytes within BODY_SECONDS; a body that says or turns out to be longer is not read to its end."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 12 or int(length) > cap:
        raise Refusal(["webhook-body-too-large"], f"the body is larger than {cap} bytes", side="job")
    parts = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                parts += part
                if len(parts) > cap:
                    raise Refusal(["webhook-body-too-large"], f"the body is larger than {cap} bytes", side="job")
    except TimeoutError:
        raise Refusal(["webhook-body-too-slow"], "the body did not arrive in time", side="job") from None
    return bytes(parts)


def _announce(desk: Desk, job: str) -> None:
    """A hint to the engine; whatever it fails with, the sweep finds the row."""
    try:
        desk.announce(job)
    except (OSError, RuntimeError, ValueError, PeerError) as error:
        _log.warning("event-not-sent %s %s", type(error).__name__, job)


async def _refused(_: Request, error: Exception) -> JSONResponse:
    codes = error.codes if isinstance(error, Refusal) else ("refused",)
    status = next((STATUS[code] for code in codes if code in STATUS), 422)
    return JSONResponse({"codes": list(codes)}, status, headers={"Connection": "close"})


async def _unavailable(_: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"codes": list(error.codes) if isinstance(error, PeerError) else ["unavailable"]}, 503)


async def _not_here(_: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return JSONResponse({"codes": ["webhook-method" if status == 405 else "webhook-path"]}, status)
