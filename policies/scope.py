"""Three scopes, each inside the one before: the environment's query, the hospital's manifest, the job's intent.

A scope bounds a query by modality, body part and study date. What widens, what is only wildcards, and what is bound by neither
date nor body part has no query: it refuses before anything is sent.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date

from policies.gate import Reason

KEYS = frozenset({"Modality", "ModalitiesInStudy", "BodyPartExamined", "StudyDate"})
OPEN_FROM, OPEN_TO = "00010101", "99991231"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """modalities, body_parts: terms, empty for "any"; date_from, date_to: YYYYMMDD, both included, empty for "any"."""

    modalities: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()
    date_from: str = ""
    date_to: str = ""

    def admits(self, modality: str, body_part: str, study_date: str) -> bool:
        """Whether an instance with these attributes is inside. What is bound and absent is outside."""
        return (
            (not self.modalities or modality in self.modalities)
            and (not self.body_parts or body_part in self.body_parts)
            and (not (self.date_from or self.date_to) or _within(study_date, self.date_from, self.date_to))
        )

    def contains(self, other: "Scope") -> bool:
        """Whether everything that `other` admits is admitted here."""
        dated = bool(self.date_from or self.date_to)
        return (
            (not self.modalities or (bool(other.modalities) and set(other.modalities) <= set(self.modalities)))
            and (not self.body_parts or (bool(other.body_parts) and set(other.body_parts) <= set(self.body_parts)))
            and (not dated or _within(other.date_from, self.date_from, self.date_to))
            and (not dated or _within(other.date_to, self.date_from, self.date_to))
        )

    def queries(self) -> tuple[dict[str, str], ...]:
        """QIDO-RS filters that cover the scope: one for each modality and body part, because lists of terms are not portable."""
        dates = {"StudyDate": f"{self.date_from}-{self.date_to}"} if self.date_from or self.date_to else {}
        return tuple(
            {
                **({"Modality": modality} if modality else {}),
                **({"BodyPartExamined": body_part} if body_part else {}),
                **dates,
            }
            for modality in self.modalities or ("",)
            for body_part in self.body_parts or ("",)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """The three scopes of one query. `unknown_keys`: keys of the environment's query that no rule here understands."""

    outer: Scope
    manifest: Scope
    intent: Scope
    unknown_keys: int = 0


SCOPE_REASONS: Mapping[str, Reason] = {
    "query-outer-unknown-key": Reason(
        "node",
        "The node's study query has a key that this node cannot hold answers against.",
        "Use Modality, BodyPartExamined and StudyDate only.",
    ),
    "query-outer-broad": Reason(
        "node",
        "The node's study query is empty, holds a wildcard, or bounds neither date nor body part.",
        "Name modalities and at least a body part or a date range in the node's study query.",
    ),
    "query-broad": Reason(
        "node",
        "The query that results is a broad scan of the archive.",
        "Bound the manifest's scope by modality, body part and date as the site's policy asks.",
    ),
    "query-date-odd": Reason("node", "A date of the scope is no date, or the range is reversed.", "Write the dates as YYYYMMDD."),
    "query-manifest-beyond-outer": Reason(
        "node", "The manifest's scope reaches beyond the node's study query.", "Narrow the manifest, or widen the node's query."
    ),
    "query-job-beyond-manifest": Reason(
        "job", "The job asks for more than the hospital's manifest covers.", "Narrow the job's dataset to the manifest's scope."
    ),
}


def outer_scope(query: Mapping[str, str]) -> tuple[Scope, int]:
    """The scope of the environment's query, and how many of its keys are unknown. Lists use a comma or a backslash."""
    unknown = sum(key not in KEYS for key in query)
    first, dash, last = query.get("StudyDate", "").strip().partition("-")
    last = last if dash else first
    modality = query.get("Modality", "") or query.get("ModalitiesInStudy", "")
    dated = {"date_from": first or OPEN_FROM, "date_to": last or OPEN_TO} if first or last else {}
    scope = Scope(modalities=_terms(modality), body_parts=_terms(query.get("BodyPartExamined", "")), **dated)
    return scope, unknown


def scope_codes(bounds: Bounds, *, need_date: bool, need_body_part: bool, max_days: int) -> tuple[str, ...]:
    """The codes for which no query may be sent; none when the intent is inside the manifest inside the environment's query."""
    outer, manifest, intent = bounds.outer, bounds.manifest, bounds.intent
    wrong: set[str] = set()
    if bounds.unknown_keys:
        wrong.add("query-outer-unknown-key")
    if _wild(outer) or not (outer.body_parts or outer.date_from):
        wrong.add("query-outer-broad")
    for scope in (manifest, intent):
        if _wild(scope) or not (scope.body_parts or scope.date_from) or not scope.modalities:
            wrong.add("query-broad")
        if (need_date and not scope.date_from) or (need_body_part and not scope.body_parts):
            wrong.add("query-broad")
    days = [_days(scope) for scope in (outer, manifest, intent)]
    if None in days:
        wrong.add("query-date-odd")
    elif any(count is not None and count > max_days for count in days[1:]):
        wrong.add("query-broad")
    if not outer.contains(manifest):
        wrong.add("query-manifest-beyond-outer")
    if not manifest.contains(intent):
        wrong.add("query-job-beyond-manifest")
    return tuple(sorted(wrong))


def _terms(text: str) -> tuple[str, ...]:
    return tuple(sorted({term.strip() for term in text.replace("\\", ",").split(",") if term.strip()}))


def _wild(scope: Scope) -> bool:
    texts: Iterable[str] = (*scope.modalities, *scope.body_parts, scope.date_from, scope.date_to)
    return any(mark in text for text in texts for mark in "*?") or not any(texts)


def _within(day: str, first: str, last: str) -> bool:
    return len(day) == 8 and day.isascii() and day.isdecimal() and (first or OPEN_FROM) <= day <= (last or OPEN_TO)


def _days(scope: Scope) -> int | None:
    """Length of the scope's date range; 0 when it has none, None when it is no range."""
    if not scope.date_from and not scope.date_to:
        return 0
    try:
        first, last = (date.fromisoformat(text) for text in (scope.date_from, scope.date_to))
    except ValueError:
        return None
    if not (len(scope.date_from) == len(scope.date_to) == 8) or first > last:
        return None
    return (last - first).days + 1
