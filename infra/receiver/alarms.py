"""What was turned away at our door, counted and kept until a worker has written it into the audit trail: the receiver has no
key of the trail.

An alarm is a code, the peer's address, times, a count and the AE titles that were called, those of them that are plain names:
nothing of a patient. Equal ones are one. What is kept is bounded, in memory and in its file, whatever comes.
"""

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rapha.errors import ConfigurationError
from rapha.files import read_regular, replace_durably, unfinished

MOST = 200  # alarms that are told apart; what comes from further addresses is counted by its code alone
MOST_TITLES = 4
QUIET_SECONDS = 300.0  # what goes on is told again after so long, with its count
WRITE_SECONDS = 1.0  # between two writes of the file; a kill costs what was counted since the last one
MAX_FILE = 1 << 20
_PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,16}")  # of the characters of an AE title (PS3.5 section 6.2) those of a machine's name
log = logging.getLogger("rapha.receiver")
Key = tuple[str, str]


@dataclass
class Alarm:
    """name: random, new after each time that it was written into the trail; first, last: seconds since the epoch.

    told: how many of `count` were handed over; fresh: when the first came that was not, 0 where all were.
    """

    code: str
    address: str
    first: int
    last: int = 0
    count: int = 0
    titles: list[str] = field(default_factory=list)
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    told: int = 0
    fresh: int = 0

    @property
    def key(self) -> Key:
        return self.code, self.address


class Alarms:
    """Threads may share it. path: where they are kept over a restart."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._changed = threading.Event()
        self._alarms = {one.key: one for one in _kept(path)}
        self._quiet: dict[Key, float] = {}
        threading.Thread(target=self._keep, daemon=True).start()

    def note(self, code: str, address: str, title: str = "") -> None:
        """It happened now. code: one of ours; address, title: the peer's, as it came. Neither raises nor waits for a disk."""
        now = int(time.time())
        with self._lock:
            key = self._key(code, address)
            if key not in self._alarms:
                log.warning("%s from %s", code, key[1] or "further addresses")
            one = self._alarms.setdefault(key, Alarm(code, key[1], now))
            one.count, one.last, one.fresh = one.count + 1, now, one.fresh or now
            if _PLAIN.fullmatch(title) and title not in one.titles and len(one.titles) < MOST_TITLES:
                one.titles.append(title)
        self._changed.set()

    def _key(self, code: str, address: str) -> Key:
        known = self._alarms.keys() | self._quiet.keys()
        return (code, address) if (code, address) in known or len(known) < MOST else (code, "")

    def due(self) -> list[dict[str, Any]]:
        """What is to be written into the trail now. It is due until `written`: whoever asks may die."""
        with self._lock:
            now = time.monotonic()
            self._quiet = {key: until for key, until in self._quiet.items() if until > now}
            found = [one for key, one in self._alarms.items() if key not in self._quiet]
            for one in found:
                one.told, one.fresh = one.count, 0
            return [{name: value for name, value in asdict(one).items() if name not in ("told", "fresh")} for one in found]

    def written(self, counts: Mapping[str, int]) -> None:
        """name -> the count that stands in the trail now; what came since stays, and is due after some quiet."""
        with self._lock:
            for one in [one for one in self._alarms.values() if one.name in counts]:
                self._quiet[one.key] = time.monotonic() + QUIET_SECONDS
                one.count -= min(counts[one.name], one.told)
                one.told, one.name = 0, secrets.token_hex(8)
                one.first = one.fresh or one.last
                if one.count <= 0:
                    del self._alarms[one.key]
        self._changed.set()

    def _keep(self) -> None:
        """Writes the file when something changed, at most once in a while: a flood costs no more than one write at a time."""
        while self._changed.wait():
            self._changed.clear()
            with self._lock:
                content = json.dumps([asdict(one) for one in self._alarms.values()]).encode()
            try:
                replace_durably(self._path, content)
            except OSError as error:
                log.error("alarms-unwritable: %s", error.strerror)
            time.sleep(WRITE_SECONDS)


def _kept(path: Path) -> list[Alarm]:
    """Those of the last run. What cannot be read is said and counted anew: alarms keep no receiver from starting."""
    unfinished(path).unlink(missing_ok=True)
    if not path.exists():
        return []
    try:
        return [Alarm(**one) for one in json.loads(read_regular(path, MAX_FILE, "alarms-unreadable"))][: 2 * MOST]
    except (ConfigurationError, ValueError, TypeError):
        log.error("alarms-unreadable: they are counted anew")
        return []
