"""`python -m infra.chain --port P --state DIR`: prints `ready` once the contracts stand; DIR/chain.json has the rest."""

import argparse
import threading
import time
from pathlib import Path

from infra.chain.deploy import deploy, describe
from infra.chain.evm import Evm
from infra.chain.rpc import Rpc, server


def main() -> None:
    parser = argparse.ArgumentParser(prog="infra.chain", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--state", type=Path, required=True, help="holds the journal, chain.json and the development keys")
    parser.add_argument("--block-time", type=float, default=0.5, help="seconds between the empty blocks that make things final")
    parser.add_argument("--depth", type=int, default=4, help="how many empty blocks follow a transaction")
    parser.add_argument("--idle", type=float, default=60, help="seconds between empty blocks when nothing happens")
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    rpc = Rpc(Evm(options.state / "journal.jsonl"))
    front = server(rpc, options.port)
    threading.Thread(target=front.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{front.server_address[1]}"
    describe(options.state, {**deploy(url, options.state), "rpc_url": url})
    print("ready", flush=True)
    while True:
        time.sleep(options.block_time)
        rpc.tick(options.depth, options.idle)


if __name__ == "__main__":
    main()
