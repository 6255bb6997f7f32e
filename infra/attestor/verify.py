"""`python -m infra.attestor.verify receipt verify FILE …`: the outsider's command, without the node's commands around it."""

import sys

import cyclopts

from rapha.console import app, receipt


def main() -> None:
    console = cyclopts.App(name="rapha", version_flags=[])
    receipt.register(console)
    sys.exit(app.run(console, sys.argv[1:]))


if __name__ == "__main__":
    main()
