"""`python -m infra.hospital --root DIR --port P [--fd N …]`: the demo's archive, on loopback and on open sockets.

Prints a line `port N` and a line `ready` when it serves. Port 0 takes a free one.
"""

import argparse
import asyncio
import ipaddress
import socket
import sys
from pathlib import Path

import uvicorn

from infra.hospital.archive import application


class _Server(uvicorn.Server):
    """Says `ready` once it really serves."""

    port = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"port {self.port}\nready", flush=True)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    sockets = [socket.socket(fileno=fd) for fd in options.fd]
    port = 0
    if options.port is not None:
        sockets.append(_loopback(options.host, options.port))
        port = sockets[-1].getsockname()[1]
    if not sockets:
        print("give --port or --fd", file=sys.stderr)
        return 2
    # No access log and no messages: request lines hold UIDs.
    config = uvicorn.Config(application(options.root), log_level="critical", access_log=False, lifespan="off")
    server = _Server(config)
    server.port = port
    asyncio.run(server.serve(sockets=sockets))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.hospital", description="The demo's archive.")
    parser.add_argument("--root", type=Path, required=True, help="folder of .dcm files; made where it is missing")
    parser.add_argument("--port", type=int, help="TCP port on --host; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--fd", type=int, action="append", default=[], help="a listening socket's descriptor; may be repeated")
    return parser.parse_args(arguments)


def _loopback(host: str, port: int) -> socket.socket:
    if not ipaddress.ip_address(host).is_loopback:
        sys.exit("the demo's archive listens on loopback only; give it an open socket for anything else")
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64)
    listener.set_inheritable(False)
    return listener


if __name__ == "__main__":
    sys.exit(main())
