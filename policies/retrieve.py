"""The retrieve gate: what lies in sealed staging is what was listed, before and after, to the byte."""

from dataclasses import dataclass

from policies.gate import Evidence, Gate, check, limits_json
from rapha.canonical import is_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveLimits:
    """A site's numbers, in bytes."""

    max_total_bytes: int = 1 << 40
    max_instance_bytes: int = 8 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrieveEvidence(Evidence):
    """What was retrieved, as counts and digests.

    results: digest of the set that the query gate saw; before, after: the same over a fresh listing before and after the
    retrieval; expected_root: Merkle root of the manifest's lines that the job's intent selects; received_root: of the same
    lines made again from the received bytes; extra: objects that came beside the listed ones and were dropped;
    undecodable: images that this node cannot decode whole; burned_in: images likely to show text; sealed: every staged
    byte is encrypted under a key that exists for this attempt only.
    """

    limits: RetrieveLimits
    results: str
    before: str
    after: str
    listed: int
    received: int
    missing: int
    changed: int
    extra: int
    undecodable: int
    burned_in: int
    burned_in_checked: bool
    expected_root: str
    received_root: str
    bytes: int
    largest: int
    sealed: bool


@check(
    "retrieve-set-changed",
    "node",
    "The set in the archive is not the one that was queried.",
    "Start a new attempt when the archive is quiet.",
)
def _same_set(e: RetrieveEvidence) -> bool:
    return is_digest(e.results) and e.results == e.before == e.after


@check(
    "retrieve-missing",
    "node",
    "The archive did not send every record that it listed.",
    "Have the archive checked; then start a new attempt.",
)
def _whole(e: RetrieveEvidence) -> bool:
    return e.missing == 0 and e.received == e.listed > 0


@check(
    "retrieve-changed",
    "node",
    "A record's content is not the one that the manifest was signed over.",
    "Ask the data custodian for a new version of the manifest.",
)
def _unchanged(e: RetrieveEvidence) -> bool:
    return e.changed == 0


@check(
    "retrieve-root-differs",
    "node",
    "What was received does not hash to the manifest's record set.",
    "Ask the data custodian for a new version of the manifest.",
)
def _root(e: RetrieveEvidence) -> bool:
    return is_digest(e.expected_root) and e.expected_root == e.received_root


@check(
    "retrieve-undecodable",
    "node",
    "A record cannot be decoded: it is malformed, not an image, or compressed in a way that this node does not read.",
    "Take the record out of the manifest, or store it uncompressed.",
)
def _decodable(e: RetrieveEvidence) -> bool:
    return e.undecodable == 0


@check(
    "retrieve-burned-in",
    "node",
    "Images are likely to show text that names a patient, and nobody has said that they were checked.",
    "Have the images looked at, and sign a manifest that says so.",
)
def _burned_in(e: RetrieveEvidence) -> bool:
    return e.burned_in == 0 or e.burned_in_checked is True


@check(
    "retrieve-not-sealed",
    "node",
    "Something in staging is not encrypted.",
    "Report this to the node's operator.",
)
def _sealed(e: RetrieveEvidence) -> bool:
    return e.sealed is True


@check("retrieve-too-large", "node", "The records are larger than the site's limit.", "Narrow the dataset, or raise the limit.")
def _size(e: RetrieveEvidence) -> bool:
    return 0 < e.bytes <= e.limits.max_total_bytes and 0 < e.largest <= e.limits.max_instance_bytes


@check(
    "retrieve-counts-odd",
    "node",
    "The counts of the retrieval do not add up.",
    "Report this to the node's operator: the reader's answer is not to be trusted.",
)
def _counts(e: RetrieveEvidence) -> bool:
    counts = (e.listed, e.received, e.missing, e.changed, e.extra, e.undecodable, e.burned_in)
    return min(counts) >= 0 and max(e.changed, e.undecodable, e.burned_in) <= e.received <= e.listed


CHECKS = (_same_set, _whole, _unchanged, _root, _decodable, _burned_in, _sealed, _size, _counts)


def retrieve_gate(limits: RetrieveLimits) -> Gate[RetrieveEvidence]:
    return Gate("retrieve", CHECKS, site=limits_json(limits))
