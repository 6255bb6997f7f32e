"""The errors of the project, as one tree.

    RaphaError
    ├── Refusal             a rule said no: exit 3; ends the attempt, never retried
    ├── PeerError           an outside party failed: exit 4; retried with backoff, then a dead letter
    └── ConfigurationError  a setting, a file or the command line is wrong: exit 2
    anything else           our bug: exit 1

Messages and codes are safe to store anywhere: they hold names of settings, codes, counts and digests, never a value
that came from a patient's record or from a job's free text.
"""

from collections.abc import Sequence


class RaphaError(Exception):
    """Root of the tree. `codes` are kebab-case names that a program may rely on."""

    exit_status = 1

    def __init__(self, codes: Sequence[str], message: str) -> None:
        super().__init__(message)
        self.codes: tuple[str, ...] = tuple(codes)
        self.message = message

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...], str]]:
        return type(self), (self.codes, self.message)


class Refusal(RaphaError):
    """A gate said no. `gate` names it, `side` who can mend it: "job" (the AI team) or "node" (the hospital)."""

    exit_status = 3

    def __init__(self, codes: Sequence[str], message: str = "", *, gate: str = "", side: str = "node", subject: str = "") -> None:
        super().__init__(codes, message or ", ".join(codes))
        self.gate, self.side, self.subject = gate, side, subject

    def __reduce__(self) -> tuple[type, tuple[tuple[str, ...], str]]:
        # Crosses a process boundary as codes alone.
        return Refusal, (self.codes, self.message)


class PeerError(RaphaError):
    """An outside party did not answer, or not in its protocol. `peer` names the block."""

    exit_status = 4

    def __init__(self, code: str, message: str, *, peer: str = "") -> None:
        super().__init__([code], message)
        self.peer = peer

    def __reduce__(self) -> tuple[type, tuple[str, str]]:  # type: ignore[override]
        return PeerError, (self.codes[0], self.message)


class ConfigurationError(RaphaError):
    """A required setting is missing or wrong. One code for each thing."""

    exit_status = 2
