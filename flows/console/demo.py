"""`rapha demo`: the main job on an embedded hospital. The demo is a program of its own; no module of a node imports it."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import cyclopts
from cyclopts import Parameter

from rapha.console.app import AsJson

HOME = Path(__file__).resolve().parent.parent.parent


def register(app: cyclopts.App) -> None:
    """Adds the command."""
    app.command(demo, name="demo")


def demo(
    *,
    only: Literal["train", "read"] | None = None,
    studies: Annotated[int, Parameter(help="How many made-up patients, one study each.")] = 120,
    serve: Annotated[bool, Parameter(negative=(), help="Stay up when the job is done.")] = False,
    workdir: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """The whole run on a made-up hospital: every gate's verdict, the receipt and who was credited what.

    Example: `rapha demo --serve --workdir ./demo`
    """
    arguments = ["--studies", str(studies)]
    arguments += ["--only", only] if only else []
    arguments += ["--serve"] if serve else []
    arguments += ["--json"] if as_json else []
    arguments += ["--workdir", str(workdir.absolute())] if workdir else []
    replace_process("infra.demo", arguments)


def replace_process(module: str, arguments: list[str]) -> NoReturn:
    """Becomes `python -m module`, from the checkout, with its exit status and signals."""
    os.chdir(HOME)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606  # our own interpreter, our own module
