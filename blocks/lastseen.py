"""The newest counters that each enrolled machine has shown, in one durable file: what makes a rollback visible after a
restart."""

import dataclasses
from pathlib import Path

from policies.attestation_evidence import LastSeen
from rapha.canonical import canonical, parse
from rapha.errors import Refusal
from rapha.files import replace_durably

_FIELDS = tuple(field.name for field in dataclasses.fields(LastSeen))


class LastSeenFile:
    """`path` holds {platform digest: {clock, reset_count, restart_count, number, at}}. An absent file means: never seen."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, platform: str) -> LastSeen:
        """The newest numbers of this machine. Raises `Refusal` last-seen-unreadable: a damaged file is not a first time."""
        found = self._all().get(platform, dict.fromkeys(_FIELDS, 0))
        if set(found) != set(_FIELDS) or not all(type(value) is int for value in found.values()):
            raise Refusal(["last-seen-unreadable"], "the record of what this machine showed last is damaged", gate="attestation")
        return LastSeen(**found)

    def write(self, platform: str, seen: LastSeen) -> None:
        """Keeps the newer of each number; flushed to disk before this returns. Raises `Refusal` last-seen-unwritable."""
        old = self.read(platform)
        boot = max((old.reset_count, old.restart_count), (seen.reset_count, seen.restart_count))
        newest = LastSeen(
            clock=max(old.clock, seen.clock),
            reset_count=boot[0],
            restart_count=boot[1],
            number=max(old.number, seen.number),
            at=max(old.at, seen.at),
        )
        document = {**self._all(), platform: dataclasses.asdict(newest)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_durably(self.path, canonical(document) + b"\n")
        except OSError as error:
            raise Refusal(["last-seen-unwritable"], f"what this machine showed cannot be kept: {error.strerror}") from None

    def _all(self) -> dict[str, dict[str, int]]:
        try:
            raw = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Refusal(["last-seen-unreadable"], f"the last-seen file cannot be read: {error.strerror}") from None
        document = parse(raw, what="last-seen file")
        if not isinstance(document, dict) or not all(isinstance(value, dict) for value in document.values()):
            raise Refusal(["last-seen-unreadable"], "the record of what machines showed last is damaged", gate="attestation")
        return document
