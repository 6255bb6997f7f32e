"""That an archive holds our report, proven in whichever way it can: a real SCP, a real receiver, a study reader's session."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.archive import Archive, Capabilities, Listed
from blocks.audit import Patient
from blocks.dimse import services
from blocks.dimse.services import FIND, GET, MOVE, VERIFICATION
from blocks.instances import SealedWriter
from blocks.ledger import Ledger
from blocks.part10 import read_meta
from blocks.receiver import Receiver
from blocks.study import BuiltObject, BuiltReport, StudyReader
from blocks.witnessed import WitnessedArchive
from flows.console import pacs as console
from flows.course import Course
from flows.pacs.storer import Storer
from flows.proving import Transactions, read_back, uncommitted
from flows.reading_doctor import _probed
from infra.daemon import serve
from infra.hospital.reading_cohort import make_study
from infra.study.opened import Opener
from infra.study.session import StudySession
from rapha.canonical import digest
from rapha.errors import PeerError, Refusal
from rapha.ledger import read
from tasks.attempt import Attempt
from tasks.reading import prove
from tasks.shared.probe import probe, write_record
from tasks.shared.returning import given_back
from tests.fixtures.audit import new_trail
from tests.fixtures.proving_archive import ProvingArchive
from tests.fixtures.receiving import Receiving
from tests.peers.test_reports import REPORTS

STUDY = str(make_study("dx", 3, 0)[0].StudyInstanceUID)
KEY = {"RAPHA_REGISTER_KEY_BASE64": "q6c1Zr0m3Wc7yH2uXJ8Tt5n4vD9eKfLsPgRbQwZxCVE="}
MOVES = (VERIFICATION, FIND, MOVE)


@cache
def raw() -> bytes:
    return REPORTS["nothing"]()


@pytest.fixture(scope="module")
def receiving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiving]:
    with Receiving(tmp_path_factory.mktemp("receiver"), seals=False) as process:
        yield process


@dataclass
class Proof:
    """A study reader's session that holds a sealed report, an archive, and an attempt with its ledger."""

    pacs: ProvingArchive
    archive: Archive
    reader: StudyReader
    receiver: Receiver | None
    built: BuiltObject
    attempt: Attempt

    def store(self) -> str:
        return self.reader.store("primary", self.built.path)

    def read_back(self, why: dict[str, str] | None = None) -> None:
        objects = [self.built]
        read_back(self.archive, self.reader, self.receiver, STUDY, objects, self.attempt, row=1, why=why)

    def uncommitted(self, number: int = 1) -> dict[str, str]:
        """What an attempt of this number asks for."""
        asked = Transactions(KEY, replace(self.attempt, number=number))
        return uncommitted(self.archive, self.receiver, [self.built], asked.requests)

    def entries(self, kind: str) -> list[dict[str, object]]:
        return [entry.body for entry in read(self.attempt.folder / "ledger") if entry.kind == kind]


@contextmanager
def proof(
    folder: Path, receiving: Receiving, pacs: ProvingArchive, *, retrieve: str = "C-MOVE", receives: bool = True
) -> Iterator[Proof]:
    with pacs:
        archive = Archive(pacs.endpoint(retrieve=retrieve), Capabilities(frozenset({prove.SERVICE})))
        opener = Opener(receiving.key, [folder / "fetched", receiving.store])
        (folder / "fetched").mkdir()
        session = lambda: StudySession(opener, lambda _: archive, folder / "fetched")  # noqa: E731
        ready = threading.Event()
        threading.Thread(target=serve, args=(folder / "s", session), kwargs={"ready": ready.set}, daemon=True).start()
        assert ready.wait(30)
        with StudyReader(folder / "s") as reader, receiving.client() as client:
            yield Proof(pacs, archive, reader, client if receives else None, sealed(folder / "fetched", opener), made(folder))


def sealed(folder: Path, opener: Opener) -> BuiltObject:
    writer, meta = SealedWriter(folder, opener.public), read_meta(raw())
    assert meta is not None
    writer.write(raw())
    done = writer.finish()
    sha256, series = digest(raw()[meta.length :]), dataset_of(raw()).SeriesInstanceUID
    return BuiltObject(meta.sop_instance, meta.sop_class, str(series), sha256, done.size, done.path)


def dataset_of(file: bytes) -> Dataset:
    return dcmread(io.BytesIO(file))


def made(folder: Path) -> Attempt:
    key = Ed25519PrivateKey.generate()
    Ledger.create(folder / "ledger", key, "test")
    facts = {"job": digest(str(folder).encode()), "number": 1, "nonce": "ab" * 32, "mode": "development"}
    return Attempt(**facts, folder=folder, ledger=Ledger(folder / "ledger", key))  # type: ignore[arg-type]


def left_in(receiving: Receiving) -> list[Path]:
    return [path for kind in ("*.sealed", "*.part") for path in receiving.store.rglob(kind)]


# -- without C-GET


@pytest.mark.parametrize("retrieve", ["C-MOVE", "C-GET", "auto"])
def test_an_archive_with_c_move_alone_gives_the_report_back_to_the_receiver(
    tmp_path: Path, receiving: Receiving, retrieve: str
) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, MOVES), retrieve=retrieve) as made:
        assert made.store() == "stored"
        made.read_back()
        assert made.pacs.retrieved == 1
        listed = Listed(made.built.sop_uid, made.built.sop_class, made.built.series_uid)
        assert given_back(made.archive, made.receiver, STUDY, listed) is not None  # as by hand
        assert made.receiver is not None and made.receiver.unclaimed() == 0 and left_in(receiving) == []
        assert made.entries("coerced") == []


def test_what_neither_commits_nor_gives_back_is_a_failed_peer_and_no_bug(tmp_path: Path, receiving: Receiving) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, MOVES), receives=False) as made:
        assert made.store() == "stored"
        with pytest.raises(PeerError) as failed:
            made.read_back()
        assert failed.value.codes == ("pacs-proves-nothing",)
        with pytest.raises(PeerError) as failed:
            made.read_back({made.built.sop_uid: "commitment-timeout"})
        assert failed.value.codes == ("commitment-timeout",), "a commitment may still come"
        with pytest.raises(PeerError) as failed:
            services.get(made.archive.endpoint, {"StudyInstanceUID": STUDY}, "STUDY", [made.built.sop_class], lambda *_: None)
        assert failed.value.codes == ("dimse-no-context",)


def _changed(dataset: Dataset) -> None:
    dataset.CompletionFlag = "PARTIAL"


def test_another_object_by_c_move_is_a_conflict_and_none_is_a_failed_peer(tmp_path: Path, receiving: Receiving) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, MOVES, gives=_changed)) as made:
        with pytest.raises(PeerError) as failed:
            made.read_back()
        assert failed.value.codes == ("report-not-there",)
        made.store()
        with pytest.raises(Refusal) as refused:
            made.read_back()
        assert refused.value.codes == ("report-conflict",)
        assert made.receiver is not None and made.receiver.unclaimed() == 0 and left_in(receiving) == []


@pytest.mark.parametrize(
    ("named", "receives", "code"),
    [
        (MOVES, False, "pacs-proves-nothing"),
        (MOVES, True, ""),
        ((*MOVES, GET), False, ""),
        ((VERIFICATION, FIND), True, "pacs-proves-nothing"),
        ((VERIFICATION, FIND, services.COMMITMENT), True, ""),
        ((VERIFICATION, FIND, services.COMMITMENT), False, "pacs-proves-nothing"),
    ],
)
def test_the_doctor_finds_an_archive_that_can_prove_nothing(
    tmp_path: Path, named: tuple[str, ...], receives: bool, code: str
) -> None:
    with ProvingArchive(0, named) as pacs:
        write_record(tmp_path / "capabilities", probe(Archive(pacs.endpoint()), 1_790_000_000))
        values = {"RAPHA_STATE_DIR": str(tmp_path)}
        values |= {"RAPHA_RECEIVER_SOCKET": "s", "RAPHA_RECEIVER_STORE": "r"} if receives else {}
        found = ""
        try:
            _probed(values, pacs.endpoint())
        except Refusal as refusal:
            (found,) = refusal.codes
        assert found == code


# -- commitment that comes late


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for a short time alone."""
    monkeypatch.setattr(prove, "SECONDS", 0.3)


@pytest.mark.usefixtures("hasty")
def test_a_commitment_that_comes_after_the_wait_is_found_by_the_next_attempt(tmp_path: Path, receiving: Receiving) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, answers=["nothing"])) as made:
        made.store()
        assert made.uncommitted(1) == {made.built.sop_uid: "commitment-timeout"}
        made.pacs.report(0, "commits")
        assert made.uncommitted(2) == {}
        assert len(made.pacs.asked) == 1, "what was committed before is not asked for again"
        made.attempt = replace(made.attempt, job="sha256:" + "6" * 64)
        assert made.uncommitted(2) == {made.built.sop_uid: "commitment-timeout"}, "of another opening nothing was asked"


@pytest.mark.usefixtures("hasty")
def test_each_request_has_a_transaction_of_its_own_that_only_this_node_can_make(tmp_path: Path, receiving: Receiving) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, answers=["nothing"])) as made:
        attempts = Transactions(KEY, made.attempt), Transactions(KEY, replace(made.attempt, number=2))
        first, second = attempts[0].requests("2.25.1"), attempts[0].requests("2.25.1")
        later = attempts[1].requests("2.25.1")
        assert len({first.now, second.now, later.now, attempts[0].requests("2.25.2").now}) == 4
        assert second.earlier == (first.now,) and {first.now, second.now} <= set(later.earlier)
        other = KEY["RAPHA_REGISTER_KEY_BASE64"].replace("q6c1", "r6c1")
        assert Transactions({"RAPHA_REGISTER_KEY_BASE64": other}, made.attempt).requests("2.25.1").now != first.now
        reopened = replace(made.attempt, job="sha256:" + "6" * 64)
        assert not {first.now, second.now} & set(Transactions(KEY, replace(reopened, number=2)).requests("2.25.1").earlier)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("nothing", "commitment-timeout"),
        ("refuses", "commitment-refused"),
        ("fails", "report-not-committed"),
        ("other class", "report-not-committed"),
    ],
)
def test_what_is_not_committed_is_read_back(tmp_path: Path, receiving: Receiving, answer: str, code: str) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, answers=[answer])) as made:  # type: ignore[list-item]
        made.store()
        why = made.uncommitted(1)
        assert why == {made.built.sop_uid: code}
        made.read_back(why)


def test_an_archive_without_the_service_is_read_back(tmp_path: Path, receiving: Receiving) -> None:
    """A probe saw it once, and it is gone."""
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, MOVES)) as made:
        made.store()
        why = made.uncommitted(1)
        assert why == {made.built.sop_uid: "commitment-not-offered"}
        made.read_back(why)


@pytest.mark.usefixtures("hasty")
def test_a_failure_is_not_overruled_by_an_older_commitment(tmp_path: Path, receiving: Receiving) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, answers=["nothing"])) as made:
        made.store()
        late = {made.built.sop_uid: "commitment-timeout"}
        assert [made.uncommitted(1), made.uncommitted(2)] == [late, late]
        for request, answer in ((0, "commits"), (1, "fails")):
            made.pacs.report(request, answer)  # type: ignore[arg-type]
        assert made.uncommitted(3) == late
        made.read_back(late)
        made.pacs.report(0, "commits")  # again, and later than the failure
        assert made.uncommitted(4) == {}


def course_of(made: Proof, number: int) -> Course:
    """The course of a study at its stage prove, in an attempt of this number."""
    course = Course.__new__(Course)
    course.attempt = replace(made.attempt, number=number)
    course.clinic = SimpleNamespace(trail=new_trail(made.attempt.folder / f"audit-{number}"), person="reading")  # type: ignore[assignment]
    course.lease = SimpleNamespace(row=7, study_uid=STUDY)  # type: ignore[assignment]
    course.archive = WitnessedArchive(made.archive, course.clinic.trail, "reading")
    course.study, course.receiver, course.patient = made.reader, made.receiver, Patient("")
    course.transactions = Transactions(KEY, course.attempt)
    course.built = BuiltReport(**asdict(made.built), referenced=frozenset())
    course._enter = lambda stage: None  # type: ignore[method-assign]
    return course


@pytest.mark.usefixtures("hasty")
def test_the_course_and_the_ledger_say_which_proof_it_came_to(tmp_path: Path, receiving: Receiving) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, answers=["nothing"])) as made:
        made.store()
        first, second = course_of(made, 1), course_of(made, 2)
        first.prove()
        assert (first.proof, made.pacs.retrieved) == ("read-back", 1)
        (entry,) = made.entries("proof")
        assert {name: entry[name] for name in ("row", "report", "proof", "codes")} == {
            "row": 7,
            "report": made.built.sha256,
            "proof": "read-back",
            "codes": ["commitment-timeout"],
        }
        made.pacs.report(0, "commits")
        second.prove()
        assert (second.proof, made.pacs.retrieved, len(made.entries("proof"))) == ("commitment", 1, 1)
        acts = [[one.kind for one in each.clinic.trail.search()] for each in (first, second)]
        assert acts == [["transfer", "transfer"], []], "what is read back is in the trail, begun and ended"


# -- attributes that the archive changes


def _coerces(dataset: Dataset) -> None:
    """As an archive that knows the patient otherwise (PS3.4 B.4.1.3)."""
    dataset.PatientName, dataset.PatientID, dataset.InstitutionName = "Zeta^Reconciled", "HIS-4711", "A Hospital"


COERCED = ["00080080", "00100010", "00100020"]


@pytest.mark.parametrize("retrieve", ["C-GET", "C-MOVE"])
@pytest.mark.parametrize("status", [0x0000, 0xB000])
def test_an_archive_that_coerces_whose_the_report_is_holds_it(
    tmp_path: Path, receiving: Receiving, retrieve: str, status: int
) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, coerces=_coerces, stores=status), retrieve=retrieve) as made:
        assert made.store() == ("known" if status else "stored")
        made.read_back()
        (entry,) = made.entries("coerced")
        assert (entry["row"], entry["object"], entry["tags"]) == (1, made.built.sha256, COERCED)
        written = b"".join(path.read_bytes() for path in (tmp_path / "ledger").rglob("*") if path.is_file())
        assert written and not [word for word in (b"Zeta", b"HIS-4711", b"A Hospital") if word in written]


def _evidence(dataset: Dataset) -> None:
    _coerces(dataset)
    del dataset.CurrentRequestedProcedureEvidenceSequence


def _another_finding(dataset: Dataset) -> None:
    dataset.ContentSequence[-1].ContentSequence[0].RelationshipType = "INFERRED FROM"


@pytest.mark.parametrize("changes", [_evidence, _another_finding, _changed])
def test_an_archive_that_changes_what_the_report_says_does_not(
    tmp_path: Path, receiving: Receiving, changes: Callable[[Dataset], None]
) -> None:
    with proof(tmp_path, receiving, ProvingArchive(receiving.port, coerces=changes, stores=0xB000), retrieve="C-GET") as made:
        made.store()
        with pytest.raises(Refusal) as refused:
            made.read_back()
        assert refused.value.codes == ("report-conflict",) and made.entries("coerced") == []


# -- by hand


@pytest.mark.parametrize("coerces", [None, _coerces])
def test_by_hand_it_is_read_back_by_the_same_code(
    tmp_path: Path, receiving: Receiving, monkeypatch: pytest.MonkeyPatch, coerces: Callable[[Dataset], None] | None
) -> None:
    (tmp_path / "report.dcm").write_bytes(raw())
    stores = 0xB000 if coerces else 0
    with ProvingArchive(receiving.port, MOVES, coerces=coerces, stores=stores) as pacs:
        keys = f"host: 127.0.0.1, port: {pacs.port}, ae_title: ARCHIVE, calling_ae_title: RAPHA, retrieve: C-MOVE"
        (tmp_path / "p.yaml").write_text(f"pacs_endpoints:\n  primary: {{{keys}}}\n")
        for name in [name for name in os.environ if name.startswith("RAPHA_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("RAPHA_PROFILE_PATH", str(tmp_path / "p.yaml"))
        monkeypatch.setenv("RAPHA_STATE_DIR", str(tmp_path))
        with pytest.raises(PeerError) as failed:
            console.commit(tmp_path / "report.dcm")
        assert failed.value.codes == ("pacs-proves-nothing",)
        monkeypatch.setenv("RAPHA_RECEIVER_SOCKET", str(receiving.folder / "r.sock"))
        monkeypatch.setenv("RAPHA_RECEIVER_STORE", str(receiving.store))
        with pytest.raises(Refusal) as refused:
            console.commit(tmp_path / "report.dcm")
        assert refused.value.codes == ("not-committed",), "nothing of this UID is there"
        assert console.store(tmp_path / "report.dcm").data == {"pacs": "primary", "known" if coerces else "stored": 1}
        changed = {"coerced": COERCED} if coerces else {}
        assert console.commit(tmp_path / "report.dcm").data == {"pacs": "primary", "held": 1, "by": "read-back", **changed}
        pacs.gives = _changed
        with pytest.raises(Refusal) as refused:
            console.commit(tmp_path / "report.dcm")
        assert refused.value.codes == ("not-committed",)
    assert left_in(receiving) == []


def test_a_storer_verifies_by_the_same_code(tmp_path: Path, receiving: Receiving) -> None:
    environment = {"RAPHA_RECEIVER_SOCKET": str(receiving.folder / "r.sock"), "RAPHA_RECEIVER_STORE": str(receiving.store)}
    with ProvingArchive(receiving.port, MOVES, coerces=_coerces, stores=0xB000) as pacs:
        archive = WitnessedArchive(Archive(pacs.endpoint(retrieve="C-MOVE")), new_trail(tmp_path / "audit"), "person")
        storer = Storer(archive, environment=environment)
        assert storer._stored(dataset_of(raw()), raw())["status"] == "known"
        uid = str(dataset_of(raw()).SOPInstanceUID)
        found = storer.verify_storage(uid)
        assert (found["verified"], found["by"], found["coerced"]) == (True, "read-back", COERCED)
        storer._environment = {}
        with pytest.raises(PeerError) as failed:
            storer.verify_storage(uid)
        assert failed.value.codes == ("pacs-proves-nothing",)
