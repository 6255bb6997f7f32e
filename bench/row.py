"""One row of the table: a way of ours, a peer's way, the same work."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """`ours` and `peer` in `unit` (medians of `runs` interleaved runs); `ratio` = ours / peer, lower is better."""

    name: str
    ours: float
    peer: float
    runs: int
    unit: str
    peer_name: str
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.ours / self.peer if self.peer else float("nan")

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "ours": self.ours,
            "peer": self.peer,
            "ratio": self.ratio,
            "runs": self.runs,
            "unit": self.unit,
            "peer_name": self.peer_name,
            "note": self.note,
        }


def timed(work: Work) -> float:
    """Seconds that one run took."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def beside(
    name: str, ours: Work, peer: Work, *, peer_name: str, runs: int = 5, per: int = 1, note: str = "", before: Work | None = None
) -> Row:
    """Runs both, interleaved, after one unmeasured run of each; `per` divides a run into its items (ms each).

    before: what each run of ours needs first and is not measured.
    """
    prepare = before or (lambda: None)
    prepare(), ours(), peer()
    a, b = [], []
    for _ in range(runs):
        prepare()
        a.append(timed(ours))
        b.append(timed(peer))
    return Row(name, 1000 * statistics.median(a) / per, 1000 * statistics.median(b) / per, runs, "ms", peer_name, note)
