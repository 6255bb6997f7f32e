"""The query gate: what was asked of the archive was bounded, and what it answered is the manifest's, whole and unchanged."""

from collections.abc import Collection
from dataclasses import dataclass

from policies.gate import Evidence, Gate, check, check_each, limits_json
from policies.scope import SCOPE_REASONS, Bounds, scope_codes
from rapha.canonical import is_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryLimits:
    """A site's numbers. max_days: longest date range; min_patients: smallest cohort that may be trained on."""

    need_date: bool = True
    need_body_part: bool = True
    max_days: int = 7320
    min_patients: int = 8
    max_records: int = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryEvidence(Evidence):
    """What was asked and answered, as counts and digests.

    manifest_…: what the signed manifest says; records_…: the hospital's records file, hashed again; query, results: digests of
    the filters and of the selected set; answered: instances in the archive's answers; outside: of them, not within what was
    asked; ignored: within it, but not in the manifest; missing, changed: of the manifest's records, not answered, or of another
    patient; selected: records within the job's intent; patients: how many they belong to.
    """

    limits: QueryLimits
    bounds: Bounds
    manifest_root: str
    manifest_count: int
    manifest_max_records: int
    manifest_min_patients: int
    records_root: str
    records_count: int
    sent: bool
    query: str
    results: str
    answered: int
    outside: int
    ignored: int
    missing: int
    changed: int
    selected: int
    patients: int


@check_each("query-scope", SCOPE_REASONS)
def _scope(e: QueryEvidence) -> Collection[str]:
    limits = e.limits
    return scope_codes(e.bounds, need_date=limits.need_date, need_body_part=limits.need_body_part, max_days=limits.max_days)


@check(
    "query-not-sent",
    "node",
    "The archive was not asked, so nothing is known of the cohort.",
    "Mend the query's scope; then start a new attempt.",
)
def _sent(e: QueryEvidence) -> bool:
    return e.sent is True and is_digest(e.query) and is_digest(e.results)


@check(
    "query-records-differ",
    "node",
    "The hospital's records file is not the one that the manifest was signed over.",
    "Put the records file of this manifest beside it.",
)
def _records(e: QueryEvidence) -> bool:
    return is_digest(e.records_root) and e.records_root == e.manifest_root and e.records_count == e.manifest_count > 0


@check(
    "query-missing",
    "node",
    "The archive no longer has every record of the manifest.",
    "Ask the data custodian for a new version of the manifest.",
)
def _missing(e: QueryEvidence) -> bool:
    return e.missing == 0


@check(
    "query-changed",
    "node",
    "A record of the manifest now belongs to another patient.",
    "Ask the data custodian to look into the archive and to sign a new version of the manifest.",
)
def _changed(e: QueryEvidence) -> bool:
    return e.changed == 0


@check("query-nothing", "job", "No record of the manifest is within the job's dataset.", "Widen the job's dataset.")
def _something(e: QueryEvidence) -> bool:
    return e.selected > 0


@check(
    "query-cohort-small",
    "job",
    "The cohort has so few patients that its size alone could name one.",
    "Widen the job's dataset until it holds at least the manifest's smallest cohort.",
)
def _cohort(e: QueryEvidence) -> bool:
    return e.patients >= max(e.limits.min_patients, e.manifest_min_patients, 1)


@check(
    "query-too-many",
    "job",
    "The job's dataset holds more records than the manifest or the site allows in one job.",
    "Narrow the job's dataset.",
)
def _many(e: QueryEvidence) -> bool:
    return 0 <= e.selected <= min(e.limits.max_records, e.manifest_max_records)


@check(
    "query-counts-odd",
    "node",
    "The counts of the query do not add up.",
    "Report this to the node's operator: the reader's answer is not to be trusted.",
)
def _counts(e: QueryEvidence) -> bool:
    counts = (e.answered, e.outside, e.ignored, e.missing, e.changed, e.selected, e.patients, e.records_count)
    matched = e.records_count - e.missing
    return min(counts) >= 0 and e.patients <= e.selected <= matched and e.answered == e.outside + e.ignored + matched


CHECKS = (_scope, _sent, _records, _missing, _changed, _something, _cohort, _many, _counts)


def query_gate(limits: QueryLimits) -> Gate[QueryEvidence]:
    return Gate("query", CHECKS, site=limits_json(limits))
