"""The two gates of a study that is read: everything arrived, and everything is accounted for.

    expected, before = expected, after = received                                  (arrival)
    received = analysed + not applicable, each with a reason; referenced = analysed;
    the report is stored, and proven stored                                        (completeness)

The archive's lists are sets of names, SOP Instance UIDs under the register's key; from the arrival on sets are of pairs (name,
SHA-256). The evidence holds their digests and the sizes of their differences, never a UID. A study is done only when the second
verdict is in the ledger.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from policies.gate import Evidence, Gate, check
from rapha.canonical import digest_of

Proof = Literal["", "commitment", "read-back"]


def set_digest(names: Iterable[str]) -> str:
    """`sha256:…` of a set of names, whatever their order."""
    return digest_of({"set": sorted(set(names))})


def content_digest(contents: Mapping[str, str]) -> str:
    """`sha256:…` of a set of pairs (name, SHA-256), whatever their order."""
    return digest_of({"pairs": sorted([name, sha] for name, sha in contents.items())})


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalEvidence(Evidence):
    """before, after: digests of the archive's instance list around the retrieval; received_set: of the names that arrived;
    content_set: of the pairs (name, SHA-256) that arrived.

    Counts: listed by the archive after the retrieval, received, missing (listed and not received), extra (received and not
    listed), moved (listed only before or only after), conflicts (one UID with two contents), unsealed (received without a sealed
    file whose SHA-256 is known).
    """

    before: str
    after: str
    received_set: str
    content_set: str
    listed: int
    received: int
    missing: int
    extra: int
    moved: int
    conflicts: int
    unsealed: int


def arrival_facts(
    before: Iterable[str], after: Iterable[str], received: Mapping[str, str], conflicts: int
) -> dict[str, str | int]:
    """The facts of `ArrivalEvidence`. Names are UIDs in any keyed form; `received` maps them to `sha256:…`, "" where unknown."""
    was, listed, came = set(before), set(after), set(received)
    return {
        "before": set_digest(was),
        "after": set_digest(listed),
        "received_set": set_digest(came),
        "content_set": content_digest(received),
        "listed": len(listed),
        "received": len(came),
        "missing": len(listed - came),
        "extra": len(came - listed),
        "moved": len(was ^ listed),
        "conflicts": conflicts,
        "unsealed": sum(not sha.startswith("sha256:") for sha in received.values()),
    }


@check("arrival-nothing", "node", "The archive lists no instance of this study.", "Look whether it was deleted; discard the row.")
def lists_something(e: ArrivalEvidence) -> object:
    return e.listed > 0


@check("arrival-set-changed", "node", "The archive's list changed during the retrieval.", "It is retrieved again by itself.")
def stood_still(e: ArrivalEvidence) -> object:
    return e.moved == 0 and e.before == e.after


@check(
    "arrival-missing", "node", "Instances that the archive lists did not arrive.", "Replay the dead letter; look at the archive."
)
def all_came(e: ArrivalEvidence) -> object:
    return e.missing == 0


@check(
    "arrival-extra", "node", "Instances arrived that the archive does not list.", "Look at the receiver's unclaimed instances."
)
def no_more_came(e: ArrivalEvidence) -> object:
    return e.extra == 0 and e.received == e.listed and e.received_set == e.after


@check("arrival-conflict", "node", "One instance arrived with two contents.", "Ask the archive's keeper which of them is right.")
def one_content_each(e: ArrivalEvidence) -> object:
    return e.conflicts == 0


@check("arrival-unsealed", "node", "An instance has no sealed file with a known digest.", "Replay; look at the receiver's disk.")
def all_sealed(e: ArrivalEvidence) -> object:
    return e.unsealed == 0


ARRIVAL_GATE: Gate[ArrivalEvidence] = Gate(
    "arrival", (lists_something, stood_still, all_came, no_more_came, one_content_each, all_sealed)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletenessEvidence(Evidence):
    """The closing statement. Sets as digests, their sizes, and what is not accounted for.

    arrived_set: what the arrival gate cleared, received_set: what the register holds as received. unexplained: received and
    neither analysed nor not applicable with a reason; both: analysed and not applicable; strange: analysed or not applicable and
    never received; unreferenced: analysed and not in the report, overreferenced: in the report and not analysed, each in that
    content; reanalysed: analysed or left out with another content than was received; conflicts: received in two contents.
    report: digest of the report's bytes; validated: every check of a report ran and passed; proof: how the archive proved that
    it holds the report.
    """

    arrived_set: str
    received_set: str
    analysed_set: str
    referenced_set: str
    received: int
    analysed: int
    not_applicable: int
    referenced: int
    unexplained: int
    both: int
    strange: int
    unreferenced: int
    overreferenced: int
    reanalysed: int
    conflicts: int
    reasonless: int
    report: str
    validated: bool
    proof: Proof


def completeness_facts(
    received: Mapping[str, str],
    analysed: Mapping[str, str],
    left_out: Mapping[str, tuple[str, str]],
    referenced: Mapping[str, str],
    conflicts: int = 0,
) -> dict[str, str | int]:
    """The sets' part of `CompletenessEvidence`, but for what arrived.

    received: name -> SHA-256 as it came; analysed: name -> SHA-256 of the file that was opened for it; left_out: the same of what
    is not applicable, with the reason; referenced: name -> SHA-256 of the file that the report was built on.
    """
    came, read, left, named = set(received), set(analysed), set(left_out), set(referenced)
    opened = [*analysed.items(), *((name, sha) for name, (sha, _) in left_out.items())]
    return {
        "received_set": content_digest(received),
        "analysed_set": content_digest(analysed),
        "referenced_set": content_digest(referenced),
        "received": len(came),
        "analysed": len(read),
        "not_applicable": len(left),
        "referenced": len(named),
        "unexplained": len(came - read - left),
        "both": len(read & left),
        "strange": len((read | left) - came),
        "unreferenced": len(analysed.items() - referenced.items()),
        "overreferenced": len(referenced.items() - analysed.items()),
        "reanalysed": sum(received.get(name) != sha for name, sha in opened),
        "conflicts": conflicts,
        "reasonless": sum(not reason for _, reason in left_out.values()),
    }


@check("completeness-unexplained", "node", "An instance was neither analysed nor left out for a reason.", "Replay from analyse.")
def nothing_unexplained(e: CompletenessEvidence) -> object:
    return e.unexplained == 0 and e.reasonless == 0 and e.received > 0


@check("completeness-overlap", "node", "An instance is counted twice, or never arrived.", "Report this code: it is our bug.")
def nothing_twice(e: CompletenessEvidence) -> object:
    return e.both == 0 and e.strange == 0 and e.analysed + e.not_applicable == e.received


@check("completeness-content", "node", "An instance was analysed with other bytes than arrived.", "Replay from retrieve.")
def same_content(e: CompletenessEvidence) -> object:
    return e.reanalysed == 0 and e.conflicts == 0 and e.received_set == e.arrived_set


@check("completeness-references", "node", "The report does not refer to exactly what was analysed.", "Replay from report.")
def refers_to_all(e: CompletenessEvidence) -> object:
    return e.unreferenced == 0 and e.overreferenced == 0 and e.referenced_set == e.analysed_set


@check("completeness-no-report", "node", "There is analysis and no valid report of it.", "Replay from report.")
def has_a_report(e: CompletenessEvidence) -> object:
    whole = e.report.startswith("sha256:") and e.validated is True
    return whole if e.analysed else e.report == "" and e.referenced == 0


@check("completeness-unproven", "node", "The archive did not prove that it holds the report.", "Replay from prove.")
def is_proven(e: CompletenessEvidence) -> object:
    return e.proof in ("commitment", "read-back") if e.analysed else e.proof == ""


COMPLETENESS_GATE: Gate[CompletenessEvidence] = Gate(
    "completeness", (nothing_unexplained, nothing_twice, same_content, refers_to_all, has_a_report, is_proven)
)
