"""Which attempts hold the line cut: one small file, replaced whole and flushed at every change.

A marker beside it says that the file has been in use, and which routes the line had. A file that cannot be read, or is missing
though the marker is there, is a token of an unknown attempt: the line is cut until `sweep` proves that nothing of any attempt
is left (C14).
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rapha.canonical import canonical, is_digest, parse
from rapha.errors import Refusal
from rapha.files import replace_durably


@dataclass(slots=True)
class Token:
    """One attempt's hold on the line. pidns: inode of its sandbox's process namespace, 0 before one was registered."""

    job: str
    attempt: int
    value: str
    control: str
    control_at: int
    sent: int
    pidns: list[int] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.job}#{self.attempt}"


@dataclass(slots=True)
class Held:
    """Everything the keeper must not forget. routes: those that went down with the line; unknown: see the module's text."""

    tokens: dict[str, Token] = field(default_factory=dict)
    routes: list[dict[str, str]] = field(default_factory=list)
    unknown: bool = False

    @property
    def any(self) -> bool:
        return self.unknown or bool(self.tokens)


class State:
    """The file. `load` never raises for a bad one: it answers with the unknown token."""

    def __init__(self, path: Path) -> None:
        self._path, self._marker = path, path.with_suffix(path.suffix + ".used")

    def load(self) -> Held:
        """What was held; an empty one where the keeper has never run."""
        if not self._path.exists() and not self._marker.exists():
            return Held()
        try:
            return _read(parse(self._path.read_bytes(), what="keeper state"))
        except (OSError, Refusal, KeyError, TypeError, ValueError):
            return Held(routes=self._known_routes(), unknown=True)

    def save(self, held: Held) -> None:
        """Durable before it returns. Raises `OSError`: the caller must not go on without its record."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "version": 1,
            "tokens": [asdict(token) for token in held.tokens.values()],
            "routes": held.routes,
            "unknown": held.unknown,
        }
        if not self._marker.exists() or self._known_routes() != held.routes:
            replace_durably(self._marker, canonical({"routes": held.routes}) + b"\n")
        replace_durably(self._path, canonical(content) + b"\n")

    def _known_routes(self) -> list[dict[str, str]]:
        try:
            return list(parse(self._marker.read_bytes(), what="keeper marker")["routes"])
        except (OSError, Refusal, KeyError, TypeError):
            return []


def _read(value: Any) -> Held:
    if set(value) != {"version", "tokens", "routes", "unknown"} or value["version"] != 1:
        raise ValueError("other fields than a state's")
    tokens = [Token(**item) for item in value["tokens"]]
    for token in tokens:
        if not is_digest(token.job) or type(token.attempt) is not int or not all(type(inode) is int for inode in token.pidns):
            raise ValueError("not a token")
    return Held({token.name: token for token in tokens}, list(value["routes"]), value["unknown"] is not False)
