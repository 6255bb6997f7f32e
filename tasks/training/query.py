"""The query stage: asks the archive, through the reader, for the manifest's records and selects the job's."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from blocks.reader import QueryFacts, Reader
from policies.gate import Evidence
from policies.manifest import Manifest
from policies.query import QueryEvidence, QueryLimits, query_gate
from policies.scope import Bounds, Scope, outer_scope, scope_codes
from rapha.declaration import Declaration
from tasks.attempt import Attempt
from tasks.gate import Cleared, require


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFacts:
    """What this stage needs of the signed manifest, as plain values."""

    modalities: tuple[str, ...]
    body_parts: tuple[str, ...]
    date_from: str
    date_to: str
    root: str
    count: int
    max_records: int
    min_patients: int
    burned_in_checked: bool

    @classmethod
    def of(cls, manifest: Manifest) -> "ManifestFacts":
        """The facts of a manifest that its gate has cleared."""
        scope, limits, records = manifest.scope, manifest.limits, manifest.record_set
        return cls(
            modalities=scope.modalities,
            body_parts=scope.body_parts,
            date_from=scope.date_from,
            date_to=scope.date_to,
            root=records.root,
            count=records.count,
            max_records=limits.max_records,
            min_patients=limits.min_patients,
            burned_in_checked=manifest.burned_in_checked,
        )


def query(
    previous: Cleared[Evidence],
    attempt: Attempt,
    reader: Reader,
    declaration: Declaration,
    manifest: ManifestFacts,
    outer_query: Mapping[str, str],
    limits: QueryLimits,
) -> Cleared[QueryEvidence]:
    """Binds environment ⊇ manifest ⊇ job into one query, and asks only when they are bound.

    Raises `Refusal` query-…, records-…; `PeerError` pacs-… when the archive fails.
    """
    bounds = bounds_of(outer_query, manifest, declaration)
    wide = scope_codes(bounds, need_date=limits.need_date, need_body_part=limits.need_body_part, max_days=limits.max_days)
    facts = NOT_ASKED if wide else _ask(attempt, reader, declaration, bounds)
    evidence = QueryEvidence(
        **attempt.facts(previous.subject),
        **asdict(facts),
        limits=limits,
        bounds=bounds,
        sent=not wide,
        manifest_root=manifest.root,
        manifest_count=manifest.count,
        manifest_max_records=manifest.max_records,
        manifest_min_patients=manifest.min_patients,
    )
    return require(query_gate(limits), evidence, attempt)


def bounds_of(outer_query: Mapping[str, str], manifest: ManifestFacts, declaration: Declaration) -> Bounds:
    """The three scopes of one query."""
    outer, unknown = outer_scope(outer_query)
    wanted = declaration.dataset
    return Bounds(
        outer=outer,
        manifest=Scope(
            modalities=manifest.modalities,
            body_parts=manifest.body_parts,
            date_from=manifest.date_from,
            date_to=manifest.date_to,
        ),
        intent=Scope(
            modalities=wanted.modalities, body_parts=wanted.body_parts, date_from=wanted.date_from, date_to=wanted.date_to
        ),
        unknown_keys=unknown,
    )


NOT_ASKED = QueryFacts(
    records_root="",
    records_count=0,
    query="",
    results="",
    answered=0,
    outside=0,
    ignored=0,
    missing=0,
    changed=0,
    selected=0,
    patients=0,
)


def _ask(attempt: Attempt, reader: Reader, declaration: Declaration, bounds: Bounds) -> QueryFacts:
    reader.begin(
        job=attempt.job,
        attempt=attempt.number,
        nonce=attempt.nonce,
        project=declaration.dataset.project,
        manifest=bounds.manifest,
        intent=bounds.intent,
        cap=declaration.budget.max_records,
    )
    return reader.query()
