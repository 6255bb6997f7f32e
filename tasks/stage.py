"""The boundary of a stage: what the engine may see of an exception.

The engine stores a failed task's message and traceback on its server. A library's exception may quote a header of a DICOM
object, so nothing but codes crosses: our own errors as they are, anything else as its type's name, `from None`.
"""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rapha.errors import ConfigurationError, PeerError, RaphaError, Refusal

P = ParamSpec("P")
R = TypeVar("R")


class StageBug(RaphaError):
    """A bug of ours, by its type and place; never its text."""


def coded(stage: Callable[P, R]) -> Callable[P, R]:
    """Wraps a stage's plain function so that only codes leave it."""

    @functools.wraps(stage)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return stage(*args, **kwargs)
        except Refusal as refusal:
            error: RaphaError = Refusal(
                refusal.codes, ", ".join(refusal.codes), gate=refusal.gate, side=refusal.side, subject=refusal.subject
            )
        except PeerError as peer:
            error = PeerError(peer.codes[0], peer.codes[0], peer=peer.peer)
        except ConfigurationError as wrong:
            error = ConfigurationError(wrong.codes, ", ".join(wrong.codes))
        except StageBug as bug:  # of a stage inside this one
            error = StageBug(bug.codes, bug.message)
        except Exception as bug:  # the stage's boundary: see the module
            error = StageBug([f"bug-{type(bug).__name__.lower()}"], f"{type(bug).__name__} in {_place(bug)}")
        raise error from None

    return run


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    if trace is None:
        return "an unknown place"
    return f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
