"""`python -m infra.hospital --root DIR --port P [--fd N …]`: the demo's archive, on loopback and on open sockets.

Prints a line `port N` (with --dimse-port `dimse N` too) and a line `ready` when it serves. Port 0 takes a free one.
"""

import argparse
import asyncio
import ipaddress
import socket
import sys
from pathlib import Path

import uvicorn

from infra.hospital.archive import application
from infra.hospital.index import Index


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
    options.root.mkdir(parents=True, exist_ok=True)
    options.incoming = options.incoming or options.root
    options.incoming.mkdir(parents=True, exist_ok=True)
    index = Index(options.root, options.incoming)
    if options.dimse_port is not None:
        _dimse(options, index)
    config = uvicorn.Config(application(options.incoming, index), log_level="critical", access_log=False, lifespan="off")
    server = _Server(config)
    server.port = port
    asyncio.run(server.serve(sockets=sockets))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.hospital", description="The demo's archive.")
    parser.add_argument("--root", type=Path, required=True, help="folder of .dcm files; made where it is missing")
    parser.add_argument("--incoming", type=Path, help="folder for what is stored; the root, where it is left out")
    parser.add_argument("--port", type=int, help="TCP port on --host; 0 takes a free one")
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--fd", type=int, action="append", default=[], help="a listening socket's descriptor; may be repeated")
    parser.add_argument("--dimse-port", type=int, help="serve DIMSE on this port of --host too; 0 takes a free one")
    parser.add_argument("--ae", default="HOSPITAL", help="the archive's AE title")
    parser.add_argument("--destination", action="append", default=[], help="AE=host:port, for C-MOVE; may be repeated")
    return parser.parse_args(arguments)


def _dimse(options: argparse.Namespace, index: Index) -> None:
    from infra.hospital.dimse import DimseArchive  # pynetdicom's tables, for those who ask

    _refuse_beyond_loopback(options.host)
    named = (text.partition("=") for text in options.destination)
    destinations = {name: (address.rpartition(":")[0], int(address.rpartition(":")[2])) for name, _, address in named}
    port = DimseArchive(options.incoming, index, options.ae, destinations).start(options.host, options.dimse_port)
    print(f"dimse {port}", flush=True)


def _refuse_beyond_loopback(host: str) -> None:
    if not ipaddress.ip_address(host).is_loopback:
        sys.exit("the demo's archive listens on loopback only; give it an open socket for anything else")


def _loopback(host: str, port: int) -> socket.socket:
    _refuse_beyond_loopback(host)
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64)
    listener.set_inheritable(False)
    return listener


if __name__ == "__main__":
    sys.exit(main())
