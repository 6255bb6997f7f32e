"""A study's sets are of contents: what arrived now is what was analysed now, or there is no closing statement."""

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.archive import Archive, Listed
from blocks.ledger import Ledger, read
from blocks.reading import FoundSeries, FoundStudy, ReadingRegister, StudyLease
from blocks.receiver import Arrived
from blocks.study import Fetched, StudyReader
from policies.completeness import ArrivalEvidence
from policies.movement import Level
from rapha.canonical import digest
from rapha.errors import PeerError, Refusal
from tasks.attempt import Attempt
from tasks.gate import Cleared
from tasks.reading.complete import complete
from tasks.reading.retrieve import Kept, retrieve

STUDY, SERIES = "1.9", "1.9.1"
UIDS = ("1.9.1.1", "1.9.1.2", "1.9.1.3")
OLD, NEW = digest(b"as it was"), digest(b"corrected under the same UID")


class Shelf:
    """An archive that lists these instances; asked by WADO-RS."""

    method, endpoint = "WADO-RS", SimpleNamespace(name="primary")

    def __init__(self, uids: Sequence[str]) -> None:
        self.uids = uids

    def list_study(self, study: str) -> tuple[Listed, ...]:
        return tuple(Listed(uid, "1.2.840.10008.5.1.4.1.1.2", SERIES) for uid in self.uids)


class Fetches:
    """A study reader to which the archive sends these."""

    def __init__(self, *sent: tuple[str, str]) -> None:
        self.sent = sent

    def fetch(self, endpoint: str, study: str, level: Level, wanted: Sequence[Listed]) -> Fetched:
        return Fetched(status=0, completed=None, failed=None, error="", counted=False)

    def fetched(self, endpoint: str, study: str) -> list[Arrived]:
        return [Arrived(uid, "1.2", sha256, 1, Path("/sealed") / uid, conflict=False) for uid, sha256 in self.sent]


class Desk:
    """One study in a register, and its attempts."""

    def __init__(self, folder: Path) -> None:
        self.register = ReadingRegister.at(folder / "r.sqlite", secrets.token_bytes(32))
        self.ledger = Ledger.create(folder / "ledger", Ed25519PrivateKey.generate(), "test")
        self.folder, self.number = folder, 0

    def begin(self, uid: str = "") -> tuple[StudyLease, Attempt]:
        self.number += 1
        study = FoundStudy(study_uid=uid or f"{STUDY}.{self.number}", series=(FoundSeries(series_uid=SERIES, instances=1),))
        row = self.register.found("primary", study, 100).row
        lease = self.register.claim("w", 100, 10**9, row=row)
        assert lease is not None
        return lease, self.attempt()

    def attempt(self) -> Attempt:
        return Attempt(
            job=digest(b"job"), number=self.number, nonce="ab" * 32, mode="development", folder=self.folder, ledger=self.ledger
        )

    def retrieved(
        self, lease: StudyLease, attempt: Attempt, listed: Sequence[str], *sent: tuple[str, str]
    ) -> tuple[Cleared[ArrivalEvidence], dict[str, Kept]]:
        archive, study = cast(Archive, Shelf(listed)), cast(StudyReader, Fetches(*sent))
        return retrieve(lease, attempt, self.register, archive, study, None)

    def told(self, lease: StudyLease, contents: Sequence[tuple[str, str]]) -> None:
        """As the flow does: analysed, and reported of."""
        self.register.analysed(lease, contents)
        self.register.referenced(lease, contents)

    def closed(self, arrival: Any, lease: StudyLease, attempt: Attempt) -> tuple[str, ...]:
        try:
            complete(arrival, lease, attempt, self.register, report=digest(b"report"), proof="read-back")
        except Refusal as refusal:
            return refusal.codes
        return ()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    opened = Desk(tmp_path)
    yield opened
    opened.register.close()


def test_an_instance_that_the_archive_corrects_between_two_attempts_is_read_as_it_is_now(desk: Desk) -> None:
    lease, first = desk.begin()
    desk.retrieved(lease, first, UIDS[:1], (UIDS[0], OLD))
    desk.told(lease, [(UIDS[0], OLD)])
    assert desk.register.fail(lease, ["dimse-timeout"], 101, retry_at=101) == "scheduled"
    again = desk.register.claim("w", 102, 10**9)
    assert again is not None
    arrival, _ = desk.retrieved(again, first, UIDS[:1], (UIDS[0], NEW))
    assert [(one.sha256, one.conflict, one.analysed) for one in desk.register.instances(again.row)] == [(NEW, False, False)]
    desk.told(again, [(UIDS[0], NEW)])
    assert desk.closed(arrival, again, first) == ()


@pytest.mark.parametrize("stale", ["analysed", "referenced"])
def test_a_study_whose_analysis_or_report_is_of_an_older_content_gets_no_statement(desk: Desk, stale: str) -> None:
    lease, attempt = desk.begin()
    arrival, _ = desk.retrieved(lease, attempt, UIDS[:1], (UIDS[0], NEW))
    desk.register.analysed(lease, [(UIDS[0], OLD if stale == "analysed" else NEW)])
    desk.register.referenced(lease, [(UIDS[0], OLD if stale == "referenced" else NEW)])
    wrong = {"analysed": ("completeness-content", "completeness-references"), "referenced": ("completeness-references",)}
    assert desk.closed(arrival, lease, attempt) == wrong[stale]


def test_an_arrival_of_another_content_than_the_register_has_gets_no_statement(desk: Desk) -> None:
    lease, attempt = desk.begin()
    arrival, _ = desk.retrieved(lease, attempt, UIDS[:1], (UIDS[0], OLD))
    desk.register.received(lease, [(UIDS[0], NEW)])
    desk.told(lease, [(UIDS[0], NEW)])
    assert desk.closed(arrival, lease, attempt) == ("completeness-content",)


def test_two_contents_in_one_retrieval_are_refused(desk: Desk) -> None:
    lease, attempt = desk.begin()
    with pytest.raises(Refusal) as refused:
        desk.retrieved(lease, attempt, UIDS[:1], (UIDS[0], OLD), (UIDS[0], NEW))
    assert refused.value.codes == ("arrival-conflict",)
    assert [one.conflict for one in desk.register.instances(lease.row)] == [True]


def test_what_the_archive_sends_and_does_not_list_is_not_read(desk: Desk) -> None:
    lease, attempt = desk.begin()
    arrival, kept = desk.retrieved(lease, attempt, UIDS[:1], (UIDS[0], NEW), ("6.6.6", OLD), ("6.6.7", OLD))
    assert set(kept) == {UIDS[0]} == {one.sop_uid for one in desk.register.instances(lease.row)}
    assert (arrival.evidence.extra, arrival.evidence.received) == (0, 1)
    told = [entry.body for entry in read(desk.ledger.folder) if entry.kind == "movement"]
    assert [(one["codes"], one["instances"]) for one in told] == [(["arrived-unlisted"], 2)]


CONTENT = st.sampled_from([OLD, NEW])
SETS = st.fixed_dictionaries({uid: CONTENT for uid in UIDS})


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SETS, min_size=1, max_size=3), SETS, st.sampled_from(["", "received", "analysed"]))
def test_only_what_was_analysed_as_it_arrived_last_is_complete(
    desk: Desk, retrievals: list[dict[str, str]], drawn: dict[str, str], instead: str
) -> None:
    """However often the archive changed its instances before; `instead` takes what was drawn for what is so."""
    lease, attempt = desk.begin()
    for contents in retrievals:
        arrival, _ = desk.retrieved(lease, attempt, UIDS, *contents.items())
        desk.told(lease, list(contents.items()))
    if instead == "received":
        desk.register.received(lease, list(drawn.items()))
    if instead:
        desk.told(lease, list(drawn.items()))
    assert (desk.closed(arrival, lease, attempt) == ()) is (not instead or drawn == retrievals[-1])


def test_an_instance_that_does_not_come_is_a_failed_peer(desk: Desk) -> None:
    lease, attempt = desk.begin()
    with pytest.raises(PeerError) as failed:
        desk.retrieved(lease, attempt, UIDS, (UIDS[0], NEW), ("6.6.6", OLD))
    assert failed.value.codes == ("archive-incomplete",)
