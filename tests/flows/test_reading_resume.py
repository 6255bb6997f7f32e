"""A replayed study begins at the stage that failed where what was left proves equal; else earlier, and the ledger says why."""

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from pydicom import dcmread

from blocks.models import site_list
from blocks.reading import ReadingRegister
from flows import reading
from flows.clinic import Clinic
from flows.course import Course
from flows.tidying import tidy
from infra.hospital.reading_cohort import make_study
from rapha.errors import PeerError
from rapha.ledger import read
from tests.fixtures.study_running import copied
from tests.fixtures.ward import QUICK, Ward, until, ward

STAGES = ("retrieve", "analyse", "report", "store", "prove")


def quiet(name: str, handed: int, total: int) -> None:
    """No progress is wanted."""


@dataclass
class Replayed:
    """One study of the archive in the register."""

    ward: Ward
    row: int

    def clinic(self) -> Clinic:
        return self.ward.clinic()

    @property
    def register(self) -> ReadingRegister:
        return self.clinic().register

    @contextmanager
    def course(self, clinic: Clinic | None = None) -> Iterator[Course]:
        opened = clinic or self.clinic()
        lease = opened.register.claim("w", int(time.time()), 300, row=self.row)
        assert lease is not None
        course = Course(opened, lease)
        try:
            yield course
        finally:
            course.close()

    def dead_at(self, stage: str) -> None:
        """An attempt that fails as this stage begins, and a person who replays it."""
        with self.course() as course:
            on(course, "retrieve", stage)
            course._enter(stage)
            assert course.register.fail(course.lease, ["made-up"], int(time.time())) == "dead"
        (letter,) = self.register.dead_letters()
        assert (letter.row, letter.stage) == (self.row, stage)
        self.register.replay(letter.id, int(time.time()))

    def note(self) -> dict[str, Any]:
        kept = self.clinic().kept
        (name,) = kept.names()
        found = kept.read(name)
        assert found is not None
        return found

    def resumed(self) -> tuple[str, str, list[str]]:
        entry = [
            e.body for e in read(self.ward.folder / "state" / "ledger") if e.kind == "resumed" and e.body["row"] == self.row
        ][-1]
        return entry["stage"], entry["begins"], entry["codes"]


def on(course: Course, begins: str, ends: str) -> None:
    """Every stage from `begins` up to `ends`, that one left out."""
    for stage in STAGES[STAGES.index(begins) : STAGES.index(ends)]:
        course.analyse(quiet) if stage == "analyse" else getattr(course, stage)()


def whole(course: Course, begins: str) -> str:
    on(course, begins, "prove")
    course.prove()
    return course.complete()


@pytest.fixture(scope="module", params=["C-MOVE", pytest.param("C-GET", marks=pytest.mark.soak)])
def up(request: pytest.FixtureRequest) -> Iterator[Ward]:
    study = make_study("ct", 77, 1)
    for dataset in study:
        dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
    with ward([study], request.param) as made:
        found = made.run('flows.poll("primary")')
        assert found["new"] == 1
        yield made


@pytest.fixture
def replayed(up: Ward) -> Iterator[Replayed]:
    made = Replayed(up, 1)
    yield made
    register, now = made.register, int(time.time())
    for letter in register.dead_letters():
        register.discard(letter.id, "the test is over", now)
    again(up)


def again(up: Ward) -> None:
    """The study as it was on the first day: another opening, whatever became of the last one."""
    register = up.clinic().register
    study = register.study(1)
    if study.state != "completed":
        lease = register.claim("w", int(time.time()), 300, row=1) if study.state == "scheduled" else None
        if lease is not None:
            register.finish(lease, int(time.time()))
    with register._session() as session:
        from blocks.reading_letters import open_again
        from blocks.reading_shelf import study_of

        open_again(session, study_of(session, 1), int(time.time()))
    tidy(up.clinic())
    until(lambda: not up.sealed(), "what nobody owes is removed", seconds=10)
    assert up.clinic().kept.names() == []


@pytest.mark.parametrize("stage", ["analyse", "report", "prove"])
def test_a_replay_begins_at_the_stage_that_failed(stage: str, replayed: Replayed) -> None:
    replayed.dead_at(stage)
    before = {path.name for path in replayed.ward.sealed()}
    with replayed.course() as course:
        assert course.begun
        assert course.resume() == stage
        assert replayed.resumed() == (stage, stage, [])
        assert {one.path.name for one in course.kept.values()} <= before  # nothing was fetched again
        assert whole(course, stage) == "completed"
    assert len(replayed.clinic().register.notices(1)) >= 1
    until(lambda: not replayed.ward.sealed(), "nothing sealed is left", seconds=10)
    assert replayed.clinic().kept.names() == []


def test_what_was_kept_is_sealed_and_named_by_numbers(replayed: Replayed) -> None:
    replayed.dead_at("report")
    (path,) = (replayed.ward.folder / "state" / "kept").iterdir()
    order, attempt = replayed.register.study(1).order, replayed.register.study(1).attempt
    assert path.name == f"1-{order}-{attempt}.note"
    raw = path.read_bytes()
    assert b"2.25." not in raw and b"sealed" not in raw and b"lesion" not in raw
    assert path.parent.stat().st_mode & 0o077 == 0


def lose(replayed: Replayed) -> None:
    for path in (replayed.ward.folder / "state" / "kept").iterdir():
        path.unlink()


def remove(replayed: Replayed) -> None:
    Path(replayed.note()["files"][0]).unlink()


def cut_short(replayed: Replayed) -> None:
    path = Path(replayed.note()["files"][0])
    path.write_bytes(path.read_bytes()[:-1])


def swap(replayed: Replayed) -> None:
    first, second = map(Path, replayed.note()["files"][:2])
    third = first.with_suffix(".third")
    first.rename(third), second.rename(first), third.rename(second)


def another(replayed: Replayed) -> None:
    """The archive has one instance more by now, of a series of its own."""
    (source,) = [path for path in replayed.ward.archive.glob("000000.dcm")]
    dataset = dcmread(source)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{time.monotonic_ns()}"
    dataset.SeriesInstanceUID = f"2.25.{time.monotonic_ns()}"
    dataset.save_as(replayed.ward.archive.parent / "more.dcm")
    port = replayed.clinic().profile.endpoints["primary"].port
    subprocess.run(
        ["storescu", "-R", "-aec", "HOSPITAL", "localhost", str(port), str(replayed.ward.archive.parent / "more.dcm")], check=True
    )


CHANGES = {
    lose: ("retrieve", {"kept-none"}),
    remove: ("retrieve", {"study-file-missing"}),
    cut_short: ("retrieve", {"sealed-tampered"}),
    swap: ("retrieve", {"instance-named-otherwise", "kept-other-content"}),
    another: ("retrieve", {"kept-other-set"}),
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_does_not_prove_equal_is_made_again(change: Any, replayed: Replayed) -> None:
    replayed.dead_at("report")
    change(replayed)
    begins, codes = CHANGES[change]
    with replayed.course() as course:
        assert course.resume() == begins
        stage, begun, said = replayed.resumed()
        assert (stage, begun) == ("report", begins) and said and set(said) <= codes
        on(course, begins, "report")
        assert all(one.facts.same for one in course.opened)
        course.register.finish(course.lease, int(time.time()))


def test_other_models_analyse_again(replayed: Replayed, tmp_path: Path) -> None:
    replayed.dead_at("report")
    package = copied(tmp_path, source=QUICK + "\n# a later version\n")
    (tmp_path / "models.json").write_text(json.dumps(site_list([package])))
    clinic = Clinic.open({**replayed.ward.environment, "RAPHA_MODELS_PATH": str(tmp_path / "models.json")})
    with replayed.course(clinic) as course:
        assert course.resume() == "analyse"
        assert replayed.resumed() == ("report", "analyse", ["kept-other-models"])
        course.analyse(quiet)
        assert {one.digest for one in course.analysis.results} == {clinic.models[0].digest}  # type: ignore[union-attr]
        course.register.finish(course.lease, int(time.time()))


def test_a_study_that_is_owed_keeps_its_files_and_one_that_is_not_loses_them(replayed: Replayed) -> None:
    with replayed.course() as course:
        on(course, "retrieve", "analyse")
        course.register.fail(course.lease, ["made-up"], int(time.time()))
    clinic, kept = replayed.clinic(), replayed.ward.sealed()
    tidy(clinic)
    assert replayed.ward.sealed() == kept != []
    (letter,) = clinic.register.dead_letters()
    clinic.register.discard(letter.id, "made up", int(time.time()))
    tidy(clinic)
    assert replayed.ward.sealed() == []


def test_a_note_of_another_key_or_place_removes_nothing(replayed: Replayed) -> None:
    replayed.dead_at("analyse")
    kept = replayed.ward.folder / "state" / "kept"
    (note,) = kept.iterdir()
    shutil.copy(note, kept / "9999-0-1.note")
    sealed = replayed.ward.sealed()
    clinic = replayed.clinic()
    with pytest.raises(PeerError) as refused:
        clinic.kept.forget("9999-0-1")
    assert refused.value.codes == ("register-tampered",)
    (sealed[0].parent / "nobodys.sealed").touch()
    tidy(clinic)  # the register has no such row: it stays, and so does whatever it might own
    assert set(replayed.ward.sealed()) == {*sealed, sealed[0].parent / "nobodys.sealed"}
    (kept / "9999-0-1.note").unlink()
    tidy(clinic)
    assert set(replayed.ward.sealed()) == set(sealed)


async def not_taken(row: int, attempt: int) -> None:
    raise ConcurrencySlotAcquisitionError("503 Service Unavailable")


def test_an_engine_that_takes_no_task_fails_that_study_alone_and_for_later(
    replayed: Replayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "retrieve", not_taken)
    clinic = replayed.clinic()
    lease = clinic.register.claim("w", int(time.time()), 300, row=1)
    assert lease is not None
    assert asyncio.run(reading._studied(clinic, lease)) == "scheduled"
    assert clinic.register.study(1).codes == ("engine-failed",)


def test_a_study_that_was_through_before_the_engine_failed_is_through(
    replayed: Replayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def through(row: int, attempt: int) -> None:
        course = reading._courses[row, attempt]
        course.over = course.register.finish(course.lease, int(time.time()))
        await not_taken(row, attempt)

    monkeypatch.setattr(reading, "retrieve", through)
    clinic, before = replayed.clinic(), replayed.ward.folder / "state" / "ledger"
    lease = clinic.register.claim("w", int(time.time()), 300, row=1)
    assert lease is not None
    entries = sum(1 for _ in read(before))
    assert asyncio.run(reading._studied(clinic, lease)) == "completed"
    assert clinic.register.study(1).state == "completed"
    assert sum(1 for _ in read(before)) == entries  # no word of a failure


def test_a_note_that_was_half_written_goes_once_its_study_is_through(replayed: Replayed) -> None:
    """A kill within the write: no file was moved yet, and what was written, sealed, is nobody's from then on."""
    replayed.dead_at("report")
    folder = replayed.ward.folder / "state" / "kept"
    half, other = folder / f"1-{replayed.register.study(1).order}-99.note.new", folder / "4711-0-1.note.new"
    half.write_bytes(b"sealed, and not whole")
    other.write_bytes(b"of a study that the register does not know")
    tidy(replayed.clinic())
    assert half.exists(), "the study is owed: its attempt may be writing now"
    with replayed.course() as course:
        assert whole(course, course.resume()) == "completed"
    tidy(replayed.clinic())
    assert not half.exists() and other.exists()
    other.unlink()
