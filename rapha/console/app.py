"""The frame of every command: one JSON object or a few lines on stdout, logs on stderr, and the exit status.

A command returns `Result`; errors of the tree become their exit status and, with --json, one object with the codes.
"""

import json as jsonlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter
from cyclopts.validators import Number

from rapha.errors import RaphaError, Refusal

AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON object and nothing else.")]
Some = Annotated[int, Parameter(validator=Number(gte=1))]
AtMost = Annotated[int, Parameter(validator=Number(gte=0))]


@dataclass(frozen=True)
class Result:
    """What a command found: `data` for --json, `lines` for a person, the exit status."""

    data: dict[str, Any]
    lines: Sequence[str] = field(default_factory=tuple)
    status: int = 0


def build(first: str | None = None) -> cyclopts.App:
    """The console, node commands included where they are installed.

    first: the first word of the command that is run; only its module is imported, and for a word that no command has, none.
    """
    app = cyclopts.App(name="rapha", help="Train on clinical images where they are; check what came of it.", version_flags=[])
    known = announced()
    modules = {module: None for name, module, _ in known if first is None or name == first}
    for module in modules:
        import_module(module).register(app)
    if not modules:
        for name, _, text in known:
            group(app, name, text)
    return app


def announced() -> list[tuple[str, str, str]]:
    """(first word, module, help) of every command, by the entry points; nothing of the commands is imported."""
    entries = sorted(entry_points(group="rapha.commands"), key=lambda entry: entry.name)
    return [(name, *found) for entry in entries for name, found in entry.load()().items()]


def group(app: cyclopts.App, name: str, help: str) -> cyclopts.App:
    """The sub-app `name`, made where it is missing: two modules may both add commands to one."""
    try:
        return app[name]
    except KeyError:
        made = cyclopts.App(name=name, help=help, version_flags=[])
        app.command(made)
        return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `rapha` script."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("DO_NOT_TRACK", "1")  # the engine's library tells its maker of its first use in a terminal
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(run(build(argv[0] if argv else ""), argv))


def run(app: cyclopts.App, argv: Sequence[str]) -> int:
    """Runs one command and prints its result; the exit status."""
    as_json = _wants_json(argv)
    try:
        result = app(argv, exit_on_error=False, print_error=not as_json, result_action="return_value")
    except cyclopts.CycloptsError as error:
        return _failed(as_json, 2, ["usage"], str(error).strip())
    except RaphaError as error:
        return _failed(as_json, error.exit_status, error.codes, error.message, _verdict(error, argv))
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # the console's boundary: a bug shows its type and place, never a value
        logging.getLogger("rapha").debug("bug", exc_info=True)
        return _failed(as_json, 1, [f"bug-{type(error).__name__.lower()}"], f"this is a bug of ours: {_place(error)}")
    return _printed(as_json, result)


def _wants_json(argv: Sequence[str]) -> bool:
    """Also where the rest of the line is wrong; as a switch is written: `--json`, `--json=true`."""
    given = [word.partition("=")[2] for word in list(argv)[: argv.index("--") if "--" in argv else None] if _is_switch(word)]
    return bool(given) and given[-1].lower() in ("", "true", "yes", "y", "t", "1", "on")


def _is_switch(word: str) -> bool:
    return word == "--json" or word.startswith("--json=")


def mode() -> str:
    """What a verdict of this console is stamped with: production only where the node is set so."""
    return "production" if os.environ.get("RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION") == "true" else "development"


def _printed(as_json: bool, result: object) -> int:
    if not isinstance(result, Result):
        return 0
    if as_json:
        stamp = {"mode": mode()} if "verdict" in result.data else {}
        _print(jsonlib.dumps({**stamp, **result.data}, ensure_ascii=False))
    else:
        _print("\n".join(result.lines))
    return result.status


def _verdict(error: RaphaError, argv: Sequence[str]) -> dict[str, str]:
    """What a refusal says beside its codes; one that no gate named is the command's own."""
    if not isinstance(error, Refusal):
        return {}
    gate = error.gate or (argv[0] if argv else "")
    return {"verdict": "refused", "gate": gate, "subject": error.subject, "side": error.side, "mode": mode()}


def _failed(as_json: bool, status: int, codes: Sequence[str], message: str, verdict: Mapping[str, str] | None = None) -> int:
    if as_json:
        _print(jsonlib.dumps({**(verdict or {}), "codes": list(codes), "error": message}, ensure_ascii=False))
    else:
        print(f"{'refused' if verdict else 'error'}: {', '.join(codes)}\n  {message}", file=sys.stderr)
    return status


def _print(text: str) -> None:
    """A file's name need not be text: what has no form in UTF-8 is shown as an escape, which JSON reads too."""
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _place(error: Exception) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown place"
    return f"{type(error).__name__} at {where}"


Register = Callable[[cyclopts.App], None]
