"""Searching and counting audit entries by what stands beside their ciphertexts: kind, time, outcome, pseudonyms."""

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from policies.audit_events import PHI_KINDS


@dataclass(frozen=True, slots=True)
class Recorded:
    """One audit entry as everybody may see it.

    at: seconds since the epoch; stage: once, begin or end; operation: joins a begin to its end; person, patient, studies: their
    pseudonyms in this trail (64 hex digits), "" where there is none.
    """

    segment: int
    seq: int
    at: int
    kind: str
    stage: str
    operation: str
    outcome: int
    action: str
    person: str
    patient: str
    studies: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__} | {"studies": list(self.studies)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A search: each given field must match. since, until: seconds, both included; kinds and outcomes: any of them.

    A begin has no outcome yet: it matches no search for one.
    """

    since: int | None = None
    until: int | None = None
    kinds: Collection[str] = ()
    outcomes: Collection[int] = ()
    person: str = ""
    patient: str = ""
    study: str = ""
    pseudonym: str = ""
    operation: str = ""

    def matches(self, one: Recorded) -> bool:
        return (
            (self.since is None or one.at >= self.since)
            and (self.until is None or one.at <= self.until)
            and (not self.kinds or one.kind in self.kinds)
            and (not self.outcomes or (one.stage != "begin" and one.outcome in self.outcomes))
            and self.person in ("", one.person)
            and self.patient in ("", one.patient)
            and (not self.study or self.study in one.studies)
            and (not self.pseudonym or self.pseudonym in (one.person, one.patient, *one.studies))
            and self.operation in ("", one.operation)
        )


def report(found: Iterable[Recorded]) -> dict[str, Any]:
    """Counts of acts, not of entries: a begin and its end are one act, and a begin whose end is not there is `unfinished`.

    An act counts under its kind, person and day by its begin, and under its outcome by its end. Of a search that shows only ends,
    the ends are counted as the acts.
    """
    acts: dict[str, list[Recorded]] = {}
    for one in found:
        acts.setdefault(one.operation if one.stage != "once" else f"{one.segment}/{one.seq}", []).append(one)
    kinds, outcomes, people, days = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    patients, studies, phi = set[str](), set[str](), 0
    for entries in acts.values():
        first, last = entries[0], entries[-1]
        kinds[first.kind] += 1
        people[first.person] += 1
        days[datetime.fromtimestamp(first.at, UTC).strftime("%Y-%m-%d")] += 1
        outcomes["unfinished" if last.stage == "begin" else str(last.outcome)] += 1
        patients |= {one.patient for one in entries if one.patient}
        studies |= {study for one in entries for study in one.studies}
        phi += first.kind in PHI_KINDS
    return {
        "acts": len(acts),
        "entries": sum(len(entries) for entries in acts.values()),
        "phi_access_count": phi,
        "by_kind": dict(sorted(kinds.items())),
        "by_outcome": dict(sorted(outcomes.items())),
        "by_person": dict(sorted(people.items())),
        "by_day": dict(sorted(days.items())),
        "patients": len(patients),
        "studies": len(studies),
    }
