"""What was handed over, counted where it is handed over: a record counts once, read ahead or not, whole or one region of it."""

import secrets
import threading
from collections.abc import Sequence

from rapha.merkle import merkle_root


class Meter:
    """cap: unique records that may be handed over in this attempt; total: records there are."""

    def __init__(self, total: int, cap: int) -> None:
        self.total, self.cap = total, cap
        self._used: dict[int, int] = {}
        self._malformed = 0
        self._lock = threading.Lock()

    def reserve(self, index: int) -> bool:
        """Counts a record before it is handed over; False, and nothing is counted, when it would pass the cap."""
        with self._lock:
            if index not in self._used and len(self._used) >= self.cap:
                return False
            self._used[index] = self._used.get(index, 0) + 1
            return True

    def release(self, index: int, *, malformed: bool) -> None:
        """Takes a reservation back: nothing was handed over."""
        with self._lock:
            self._malformed += malformed
            self._used[index] -= 1
            if not self._used[index]:
                del self._used[index]

    def counts(self) -> dict[str, int]:
        with self._lock:
            handed = sum(self._used.values())
            return {"handed": handed, "unique": len(self._used), "total": self.total, "malformed": self._malformed}

    def commitment(self, names: Sequence[str]) -> tuple[str, str]:
        """(Merkle root over the handed records' salted names, the salt, which opens it for an auditor in the hospital)."""
        salt = secrets.token_hex(32)
        with self._lock:
            leaves = sorted(names[index] for index in self._used)
        return merkle_root(f"{salt}\n{name}".encode() for name in leaves), salt
