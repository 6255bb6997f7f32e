"""`python -m infra.webhook`: serves the webhook until it is told to stop; prints `ready` when it does."""

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

import uvicorn

from blocks.register import Register
from infra.webhook.app import Desk, build
from infra.webhook.event import announce
from infra.webhook.signature import load_keys
from policies.intake import IntakeLimits
from policies.site import read_section
from rapha.canonical import parse
from rapha.errors import ConfigurationError
from rapha.signing import load_trusted


class Server(uvicorn.Server):
    """Says `ready` once the socket listens."""

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        print("ready", flush=True)


def _limits(path: Path | None) -> IntakeLimits:
    if path is None:
        return IntakeLimits()
    site = parse(path.read_bytes(), what="site policy")
    if not isinstance(site, dict) or not isinstance(site.get("intake"), dict):
        raise ConfigurationError(["site-policy-section-missing"], "the site policy has no section 'intake'")
    return read_section(IntakeLimits, site["intake"], "intake")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.webhook")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--path", required=True, help="the path of the node's callback URL")
    parser.add_argument("--register", required=True, help="the register's database URL")
    parser.add_argument("--keys", type=Path, required=True, help="RAPHA_WEBHOOK_KEYS_PATH")
    parser.add_argument("--teams", type=Path, required=True, help="folder <owner>/*.pem of the AI teams' public keys")
    parser.add_argument("--node-id", required=True)
    parser.add_argument("--mode", choices=["development", "production"], required=True)
    parser.add_argument("--site-policy", type=Path)
    return parser.parse_args()


def main() -> None:
    given = _arguments()
    os.umask(0o077)
    desk = Desk(
        register=Register(given.register),
        keys=load_keys(given.keys),
        owner_keys=load_trusted(given.teams),
        node_id=given.node_id,
        mode=given.mode,
        limits=_limits(given.site_policy),
        announce=announce,
    )
    config = uvicorn.Config(
        build(desk, given.path),
        host=given.host,
        port=given.port,
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=64,
        timeout_keep_alive=5,
        h11_max_incomplete_event_size=16 << 10,
    )
    asyncio.run(Server(config).serve())


if __name__ == "__main__":
    main()
