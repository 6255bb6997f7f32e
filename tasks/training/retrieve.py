"""The retrieve stage: the reader brings the queried records into sealed staging; the gate judges what came."""

from dataclasses import asdict

from blocks.reader import Reader
from policies.query import QueryEvidence
from policies.retrieve import RetrieveEvidence, RetrieveLimits, retrieve_gate
from tasks.attempt import Attempt
from tasks.gate import Cleared, require


def retrieve(
    previous: Cleared[QueryEvidence], attempt: Attempt, reader: Reader, burned_in_checked: bool, limits: RetrieveLimits
) -> Cleared[RetrieveEvidence]:
    """`reader` is the connection that `query` began. `burned_in_checked`: the manifest's word on the images.

    Raises `Refusal` retrieve-…; `PeerError` pacs-… when the archive fails or the set changes meanwhile.
    """
    facts = asdict(reader.fetch())
    if codes := facts.pop("movement"):
        attempt.record("movement", codes=codes.split(","))
    evidence = RetrieveEvidence(
        **attempt.facts(previous.subject),
        **{**facts, "results": previous.evidence.results if facts["results"] == previous.evidence.results else ""},
        limits=limits,
        burned_in_checked=burned_in_checked,
    )
    return require(retrieve_gate(limits), evidence, attempt)
