"""The keeper as a process: `python -m infra.keeper`, inside the node's namespace."""

import argparse
import threading
from pathlib import Path

from infra.daemon import serve
from infra.keeper.network import Line
from infra.keeper.service import Keeper, KeeperSession
from infra.keeper.state import State


def main() -> None:
    """Parses the options, cuts first if anything was held, then serves."""
    parser = argparse.ArgumentParser(prog="python -m infra.keeper", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--state", type=Path, required=True, help="file of the tokens; must outlive this process")
    parser.add_argument("--wan", required=True, help="port B: the outside line's interface")
    parser.add_argument("--lan", default="", help="port A: the hospital's interfaces, with commas; lo is always allowed")
    parser.add_argument("--lan-route", action="append", default=[], help="a network behind port A, in CIDR form")
    parser.add_argument("--probe", required=True, help="HOST:PORT beyond port B that answers TCP")
    parser.add_argument("--ledger", type=Path, required=True, help="the ledger's folder")
    parser.add_argument("--launcher", type=Path, required=True, help="the launcher's socket: asked before the line comes back")
    parser.add_argument("--reader", type=Path, required=True, help="the reader's socket: asked before the line comes back")
    options = parser.parse_args()
    host, _, port = options.probe.rpartition(":")
    lan = tuple(name for name in options.lan.split(",") if name and name != "lo")
    sockets = (options.socket, options.launcher, options.reader)
    run = tuple({str(folder) for path in sockets for folder in (path.absolute().parent, path.resolve().parent)})
    line = Line(options.wan, lan, tuple(options.lan_route), (host.strip("[]"), int(port)), run)
    holders = {"launcher": options.launcher, "reader": options.reader}
    keeper = Keeper(line, State(options.state), options.ledger, holders)
    threading.Thread(target=keeper.watch_for_ever, daemon=True, name="watchdog").start()
    serve(options.socket, lambda: KeeperSession(keeper), ready=lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
