"""What was found wrong in a comparable system, row by row (docs/properties.md), asked of this one with real parts."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.archive import Archive
from blocks.audit import Act, AuditTrail, Patient, Study, Wanted
from blocks.dimse.services import ToStore
from blocks.endpoint import TlsSettings
from blocks.ledger import Ledger
from blocks.profile import load_profile
from blocks.reading import ExpectedInstance, FoundSeries, FoundStudy, ReadingRegister, StudyLease
from blocks.reading_letters import dead
from blocks.reading_shelf import study_of
from flows.clinic import Clinic
from policies.completeness import ARRIVAL_GATE, ArrivalEvidence, arrival_facts
from policies.polling import PollSettings
from rapha.canonical import digest
from rapha.errors import ConfigurationError, PeerError, Refusal
from tasks.attempt import Attempt
from tasks.gate import Cleared, require
from tasks.reading.complete import complete, was_completed
from tasks.reading.poll import poll
from tests.fixtures import misbehaving as m
from tests.fixtures.audit import KEY, SIGNER, SOURCE, new_trail
from tests.fixtures.certificates import authority
from tests.fixtures.misbehaving import Misbehaving, Reply
from tests.fixtures.receiving import Receiving
from tests.fixtures.wire import Wire
from tests.peers.test_dimse_faults import studies, to_store
from tests.peers.test_misbehaving import movements, retrieved, study

NOON = 1705320000  # 2024-01-15 12:00 UTC
COLUMNS = secrets.token_bytes(32)


@pytest.fixture(scope="module")
def receiving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiving]:
    with Receiving(tmp_path_factory.mktemp("receiver"), "--peer", "PACS") as process:
        yield process


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    ledger = Ledger.create(tmp_path / "ledger", Ed25519PrivateKey.generate(), "test")
    return Attempt(job=digest(b"job"), number=1, nonce="ab" * 32, mode="development", folder=tmp_path, ledger=ledger)


def opened(folder: Path) -> ReadingRegister:
    return ReadingRegister.at(folder / "r.sqlite", COLUMNS)


class Flat(Archive):
    """Each study's one series without the question: what is below a study is not what is asked here."""

    def find_series(self, study: str) -> list[dict[str, Any]]:
        return [{"0020000E": {"Value": [f"{study}.1"]}, "00080060": {"Value": ["CT"]}, "00201209": {"Value": [1]}}]


# -- "Poll for new studies": all of them each time, 100 at most, what was done kept in memory


def test_poll_finds_what_lies_beyond_the_first_hundred_and_a_restart_reads_nothing_again(tmp_path: Path) -> None:
    asks = PollSettings(pacs="primary", most=100)
    with Misbehaving(studies(110), cap=100) as pacs:
        archive, register = Flat(pacs.endpoint(idle_seconds=20.0)), opened(tmp_path)
        assert poll(register, archive, asks, NOON).new == 110
        register.finish(register.claim("w", NOON, 60), NOON)
        register.close()
        register = opened(tmp_path)
        again = poll(register, archive, asks, NOON + 60)
        assert (again.new, again.changed, again.known, len(register.queue(1000))) == (0, 0, 110, 109)
        register.close()


# -- "C-MOVE": nothing received, an abort at any warning, failed sub-operations under success not looked at, a server a retrieval


@pytest.mark.parametrize("status", [0xB000, 0x0000, 0xA702])
def test_c_move_goes_on_after_a_warning_and_does_not_believe_a_success(
    receiving: Receiving, attempt: Attempt, status: int
) -> None:
    with Misbehaving(study(), receiving.port, [Reply(status=status, deliver=m.some(2)), Reply()]) as pacs:
        came = retrieved(pacs, receiving, attempt)
        assert {one.sop_uid for one in came} == {str(one.SOPInstanceUID) for one in pacs.holds}
        assert len(pacs.asked) > 1 and all(one.path.exists() for one in came)
    said = {code for codes in movements(attempt) for code in codes}
    assert ("move-success-incomplete" in said) is (status == 0x0000), "the success that was none is in the ledger"


def test_c_move_needs_no_new_server_for_a_second_study(receiving: Receiving, attempt: Attempt) -> None:
    process = receiving.process
    for _ in range(2):
        with Misbehaving(study(2), receiving.port) as pacs:
            assert len(retrieved(pacs, receiving, attempt)) == 2
    assert receiving.process is process and process is not None and process.poll() is None


# -- "Store result": a failed store is logged as not critical, and the study counts as processed


def leased(register: ReadingRegister, attempt: Attempt) -> tuple[StudyLease, Cleared[ArrivalEvidence]]:
    """A study that was retrieved, analysed and reported of; only its report is not in the archive yet."""
    found = FoundStudy(study_uid="1.2", series=(FoundSeries(series_uid="1.2.1", instances=1),))
    register.found("primary", found, 100)
    lease = register.claim("w", 100, 10**9)
    assert lease is not None
    instance = ExpectedInstance(sop_uid="1.2.3", sop_class="1.2.840.10008.5.1.4.1.1.2", series_uid="1.2.1")
    for phase in ("before", "after"):
        register.expect(lease, [instance], phase)  # type: ignore[arg-type]
    register.received(lease, [("1.2.3", digest(b"image"))])
    register.analysed(lease, [("1.2.3", digest(b"image"))])
    register.referenced(lease, [("1.2.3", digest(b"image"))])
    (one,) = register.instances(lease.row)
    facts: dict[str, Any] = arrival_facts([one.name], [one.name], {one.name: one.sha256}, 0)
    return lease, require(ARRIVAL_GATE, ArrivalEvidence(**attempt.facts(attempt.job), **facts), attempt)


@pytest.mark.parametrize(("status", "code"), [(0xA700, "store-full"), (0xC000, "store-refused"), (0x0122, "store-refused")])
def test_store_that_fails_leaves_the_study_owed(tmp_path: Path, attempt: Attempt, status: int, code: str) -> None:
    register = opened(tmp_path)
    began = attempt.ledger.position()
    lease, arrival = leased(register, attempt)
    one: ToStore = to_store()
    with Misbehaving([], stores=status) as pacs, pytest.raises(PeerError) as failed:
        Archive(pacs.endpoint()).store("1.2", [one])
    assert failed.value.codes == (code,)
    with pytest.raises(Refusal) as refused:
        complete(arrival, lease, attempt, register, report=digest(b"report"), proof="")
    assert refused.value.codes == ("completeness-unproven",) and not was_completed(attempt, began)
    assert register.fail(lease, list(failed.value.codes), 200, retry_at=300) == "scheduled"
    assert register.study(lease.row).codes == (code,)
    register.close()


# -- "TLS 1.3 for all DICOM": a socket beside it is checked, and the association runs in clear


def test_tls_an_archive_that_speaks_in_clear_is_told_nothing(tmp_path: Path) -> None:
    ours = authority(tmp_path)
    certificate, key = ours.issue("rapha.test")
    tls = TlsSettings(ca_bundle=ours.bundle, cert_file=certificate, key_file=key)
    with Misbehaving(studies(1)) as pacs, Wire(pacs.port) as wire:
        archive = Archive(pacs.endpoint(tls=tls, port=wire.port))
        for call in (
            archive.echo,
            lambda: archive.find_studies({"PatientID": "4711"}),
            lambda: archive.store("1.2", [to_store()]),
        ):
            with pytest.raises(PeerError):
                call()
    assert pacs.received == [] and not any(word in wire.seen() for word in (b"RAPHA", b"PACS", b"4711", b"1.2.840"))


# -- "Dead-letter queue": a file written whole, the oldest of more than 1,000 dropped, an item taken out before its retry


def test_dead_letters_are_all_there_beyond_a_thousand_and_one_that_is_replayed_is_still_owed(tmp_path: Path) -> None:
    register, count = opened(tmp_path), 1003
    with register._session() as session:  # as `found` and `fail` write them, in one transaction for all
        for number in range(count):
            made = register._new(session, "primary", f"{number}", FoundStudy(study_uid=f"1.{number}"), "x", "medium", 100)
            dead(session, study_of(session, made), 110)
    register.close()
    register = opened(tmp_path)
    letters = register.dead_letters()
    assert [one.row for one in letters] == sorted(one.row for one in letters) and len(letters) == count
    row = register.replay(letters[0].id, 200)
    register.close()  # whoever was to try it again dies here
    register = opened(tmp_path)
    assert [one.row for one in register.queue()] == [row] and len(register.dead_letters()) == count - 1
    lease = register.claim("w", 300, 60)
    assert lease is not None and register.fail(lease, ["report-iod"], 310) == "dead"
    assert len(register.dead_letters()) == count, "it failed again, and is back"
    register.close()


# -- "Tamper-evident audit": no chain, a key a session, an index in memory, and every report empty


def test_audit_is_found_and_counted_by_a_process_that_comes_later(tmp_path: Path) -> None:
    trail = new_trail(tmp_path / "audit")
    act = Act(person="dr", source="A", destination="B", patient=Patient("4711"), studies=(Study("1.2"),))
    for _ in range(3):
        trail.record("transfer", act)
    later = AuditTrail(tmp_path / "audit", KEY, SIGNER, source=SOURCE)
    assert later.report()["acts"] == 3 and later.statistics()["phi_access_count"] == 3
    assert len(list(later.search(Wanted(patient=later.pseudonym("patient", "4711"))))) == 3
    assert len(list(later.messages())) == 3


# -- "Failover": reads one patient from one archive and writes to another


def test_failover_no_study_is_taken_from_one_archive_to_another(tmp_path: Path) -> None:
    register, one = opened(tmp_path), FoundStudy(study_uid="1.2", series=(FoundSeries(series_uid="1.2.1", instances=1),))
    rows = {register.found(pacs, one, 100).row for pacs in ("primary", "backup")}
    leases = [register.claim("w", 100, 60) for _ in rows]
    assert len(rows) == 2 and sorted(lease.pacs for lease in leases if lease) == ["backup", "primary"]
    register.close()
    profile = tmp_path / "profile.yaml"
    profile.write_text("pacs_endpoints:\n  primary: {host: localhost, port: 104, ae_title: A, calling_ae_title: B}\n")
    clinic = Clinic({"RAPHA_STATE_DIR": str(tmp_path)}, load_profile(profile, {}))
    with pytest.raises(ConfigurationError) as wrong:
        clinic.archive("backup")
    assert wrong.value.codes == ("pacs-unknown",), "an archive that is gone is not replaced by another"


# -- "HL7": with no host configured it answers success


@pytest.mark.parametrize("channel", ["hl7: {enabled: true}", "hl7: {enabled: true, server: localhost, port: 2575}",
                                     "sms: {enabled: true}", "email: {enabled: true}"])  # fmt: skip
def test_hl7_and_every_channel_that_is_not_whole_is_no_channel(tmp_path: Path, channel: str) -> None:
    path = tmp_path / "profile.yaml"
    endpoint = "pacs_endpoints:\n  primary: {host: localhost, port: 104, ae_title: A, calling_ae_title: B}\n"
    path.write_text(f"{endpoint}notifications:\n  {channel}\n")
    with pytest.raises(ConfigurationError) as wrong:
        load_profile(path, {})
    assert wrong.value.codes and set(wrong.value.codes) <= {"not-built", "profile-missing-key"}
