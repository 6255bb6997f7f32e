"""SIGKILL at points that ledger and register mark, while studies are read: each ends once, whole, and nothing is left behind.

A drain runs as a process of its own; it, the receiver, the engine or the study reader dies at a mark, from outside. Then a new
drain, behind the reaper, brings every study to its end. The equation is recomputed from the archive's own files. Where a run dies
is drawn by its number.
"""

import json
import random
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.part10 import read_meta
from blocks.reading_settings import LEAST_LEASE
from flows.tidying import tidy
from infra.hospital.reading_cohort import file_bytes, identifiers, make_study
from policies.polling import FoundSeries, FoundStudy
from rapha.canonical import digest, digest_of
from rapha.ledger import read, verify
from tasks.reading import poll as polling
from tasks.reading.validate import sr_facts
from tests.fixtures.dcmqrscp import ENVIRONMENT
from tests.fixtures.ward import FlowProcess, Ward, until, ward

LEASE = {"RAPHA_READING_LEASE_SECONDS": str(LEAST_LEASE)}
DRAIN = "asyncio.run(flows.drain(seconds=100.0, idle=0.0))"
STAGES = ("retrieve", "analyse", "report", "store", "prove")


@dataclass(frozen=True)
class Mark:
    """A point of one study, and who dies: a verdict of a gate in the ledger or a stage in the register, and seconds after it."""

    victim: str
    gate: str = ""
    stage: str = ""
    wait: float = 0.0


MARKS = (
    *(Mark("worker", stage=stage) for stage in STAGES),
    *(Mark("worker", gate=gate) for gate in ("arrival", "completeness")),
    *(Mark("receiver", stage=stage) for stage in ("retrieve", "analyse", "prove")),
    Mark("receiver", gate="arrival"),
    *(Mark("engine", stage=stage) for stage in STAGES),
    *(Mark("study", stage=stage) for stage in STAGES),
)
FIRST = (
    Mark("worker", stage="retrieve", wait=0.1),
    Mark("worker", stage="store"),
    Mark("receiver", stage="retrieve"),
    Mark("engine", stage="report"),
    Mark("worker", gate="completeness"),
)


def drawn(seed: int) -> Mark:
    """The point of this number: the first five are one of each kind of ground, then comes each once, the others are drawn."""
    if seed < len(FIRST):
        return FIRST[seed]
    generator = random.Random(f"kill reading {seed}")
    mark = MARKS[seed - len(FIRST)] if seed < len(FIRST) + len(MARKS) else generator.choice(MARKS)
    return Mark(mark.victim, mark.gate, mark.stage, generator.choice((0.0, 0.02, 0.1, 0.4, 1.5)))


def of_today(number: int) -> list[Dataset]:
    study = make_study("ct" if number % 2 else "dx", 3000 + number, 1)
    for dataset in study:
        dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
    return study


@pytest.fixture(scope="module")
def by_move() -> Iterator[Ward]:
    with ward([], "C-MOVE") as up, up.revived():
        yield up


@pytest.fixture(scope="module")
def by_get() -> Iterator[Ward]:
    with ward([], "C-GET") as up, up.revived():
        yield up


def arrive(clinic: Ward, studies: Sequence[Sequence[Dataset]], folder: Path) -> list[int]:
    """New studies come into the archive, and a poll finds them: their rows."""
    paths = []
    for number, dataset in enumerate(one for study in studies for one in study):
        paths.append(folder / f"{number}.dcm")
        paths[-1].write_bytes(file_bytes(dataset))
    opened = clinic.clinic()
    port = opened.profile.endpoints["primary"].port
    subprocess.run(["storescu", "-R", "-aec", "HOSPITAL", "localhost", str(port), *map(str, paths)], env=ENVIRONMENT, check=True)
    polling.poll(opened.register, opened.archive("primary"), opened.polling("primary"), int(time.time()))
    rows = [opened.register.row_of("primary", str(study[0].StudyInstanceUID)) for study in studies]
    opened.register.close()
    return [row for row in rows if row is not None]


def ledger_of(clinic: Ward, row: int) -> list[dict[str, Any]]:
    job = digest_of({"rapha reading": clinic.environment["RAPHA_NODE_ID"], "row": row, "order": 0})
    lines = (clinic.folder / "state" / "ledger" / "entries.jsonl").read_bytes().split(b"\n")[:-1]
    entries = [json.loads(line) for line in lines]
    return [{"kind": entry["kind"], **entry["body"]} for entry in entries if entry["body"].get("job") == job]


def reached(clinic: Ward, row: int, mark: Mark) -> bool:
    if mark.gate:
        return any(entry.get("gate") == mark.gate for entry in ledger_of(clinic, row))
    (now,) = clinic.asked("SELECT state, stage FROM reading_studies WHERE id = ?", row)
    return now["state"] != "scheduled" and STAGES.index(now["stage"]) >= STAGES.index(mark.stage)


def kill_at(clinic: Ward, row: int, mark: Mark, flow: FlowProcess) -> None:
    until(lambda: reached(clinic, row, mark), f"{mark}: {flow.said()}", pause=0.003)
    time.sleep(mark.wait)
    if mark.victim == "worker":
        flow.kill()
        return
    victim = clinic.member(mark.victim).process
    assert victim is not None
    victim.kill()
    flow.outcome(150)  # it may die of it, or go on
    flow.close()
    until(lambda: clinic.member(mark.victim).process is not victim, "the member is started again")
    clinic.member(mark.victim).deaths.clear()
    until(lambda: healthy(clinic), "the engine answers", pause=0.1)


def healthy(clinic: Ward) -> bool:
    with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{clinic.api}/health", timeout=2) as answer:
        return bool(answer.status == 200)
    return False


def brought_to_their_end(clinic: Ward, rows: Sequence[int]) -> None:
    """A new worker each time, behind the leases of the dead; what is to wait for its next try is read at once."""
    for _ in range(6):
        found = {row["id"]: row for row in clinic.rows() if row["id"] in rows}
        assert [row["codes"] for row in found.values() if row["state"] == "canceled"] == []
        flow = clinic.flow(**LEASE)
        time.sleep(
            max([0.0, *(row["lease_until"] + 0.2 - time.time() for row in found.values() if row["state"] == "in-progress")])
        )
        later = [row for row in found.values() if row["state"] == "scheduled" and row["next_at"] > time.time()]
        calls = [f"asyncio.run(flows.read({row['id']}))" for row in later]
        flow.ready()
        flow.start(f"[{', '.join([DRAIN, *calls])}]")
        flow.result(150)
        flow.close()
        if all(row["state"] == "completed" for row in clinic.rows() if row["id"] in rows):
            return
    raise AssertionError([(row["state"], row["stage"], row["codes"]) for row in clinic.rows() if row["id"] in rows])


def held(clinic: Ward, study: Sequence[Dataset]) -> tuple[dict[str, str], list[bytes]]:
    """(SOP Instance UID -> digest of the data set, reports) of a study, from the archive's own folder."""
    images, reports = {}, []
    for path in clinic.archive.glob("*.dcm"):
        dataset = dcmread(path, specific_tags=["StudyInstanceUID", "SOPInstanceUID", "Modality"], stop_before_pixels=True)
        if dataset.StudyInstanceUID != study[0].StudyInstanceUID:
            continue
        raw = path.read_bytes()
        if dataset.Modality == "SR":
            reports.append(raw)
        else:
            meta = read_meta(raw)
            assert meta is not None
            images[str(dataset.SOPInstanceUID)] = digest(raw[meta.length :])
    return images, reports


def check_once(clinic: Ward, row: int, study: Sequence[Dataset]) -> None:
    """The equation, from the archive's files; one report, one notice, a closing statement of the attempt that ended it."""
    images, reports = held(clinic, study)
    assert set(images) == {str(one.SOPInstanceUID) for one in study}
    register = clinic.clinic().register
    states = {one.sop_uid: one for one in register.instances(row) if one.after}
    for content in ("sha256", "opened_sha256", "referenced_sha256"):  # as it came, as it was analysed, as the report has it
        assert {uid: getattr(one, content) for uid, one in states.items()} == images
    assert all(one.before and one.analysed and one.referenced for one in states.values())
    (report,) = reports
    assert sr_facts(report).evidence == set(images)
    assert len(register.notices(row)) == 1
    cleared = [entry["attempt"] for entry in ledger_of(clinic, row) if entry.get("gate") == "completeness" and not entry["codes"]]
    assert cleared[-1] == register.study(row).attempt
    assert len(cleared) == len(set(cleared))
    register.close()


def check_clean(clinic: Ward, studies: Sequence[Sequence[Dataset]]) -> None:
    """No sealed file, no note of one, nothing unclaimed, no clear identifier on any disk of ours; the ledger whole."""
    opened = clinic.clinic()
    tidy(opened)  # as the next shift begins: an archive may go on sending to whoever was killed, and it comes for nobody
    opened.register.close()
    until(
        lambda: not clinic.sealed(), f"no sealed file: {opened.kept.names()}", seconds=10
    )  # a process removes what its dead clients had
    assert list((clinic.folder / "state" / "kept").iterdir()) == []
    receiver = clinic.clinic().receiver()
    assert receiver is not None
    with receiver:
        assert receiver.unclaimed() == 0
    assert verify(clinic.folder / "state" / "ledger").ok
    needles = clinic.folder.parent / f"{clinic.folder.name}.needles"  # beside: it holds them
    needles.write_text("\n".join(text for study in studies for text in identifiers(study) if len(text) >= 8))
    found = subprocess.run(
        ["grep", "-rlaF", "--exclude-dir=archive", "-f", str(needles), str(clinic.folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    needles.unlink()
    assert (found.returncode, found.stdout) == (1, "")


def killed(clinic: Ward, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Everything for one number; the ledger's entries of the study that the mark was of."""
    at_once = 2 if seed == 1 or seed >= len(FIRST) else 1  # a report's validators take seconds, and a test is to be short
    mark, studies = drawn(seed), [of_today(2 * seed + one) for one in range(at_once)]
    flow = clinic.flow(**LEASE)
    flow.ready()
    rows = arrive(clinic, studies, folder)
    flow.start(DRAIN)
    try:
        kill_at(clinic, rows[0], mark, flow)
    finally:
        flow.close()
    brought_to_their_end(clinic, rows)
    for row, study in zip(rows, studies, strict=True):
        check_once(clinic, row, study)
    check_clean(clinic, studies)
    return ledger_of(clinic, rows[0])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(5))
def test_a_process_killed_at_a_mark_loses_nothing_and_tells_nothing_twice(seed: int, by_move: Ward, tmp_path: Path) -> None:
    entries = killed(by_move, seed, tmp_path)
    resumed = [(entry["stage"], entry["begins"], entry["codes"]) for entry in entries if entry["kind"] == "resumed"]
    if drawn(seed) == Mark("worker", stage="store"):
        assert resumed == [("store", "store", [])]
    if drawn(seed) == Mark("worker", gate="completeness"):
        assert resumed in ([], [("prove", "prove", [])])  # nothing, where it was through before it died
    if drawn(seed).victim == "worker" and drawn(seed).stage == "retrieve":
        assert all(begins in ("retrieve", "analyse") for _, begins, _ in resumed)


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", range(5, 100))
def test_a_hundred_kills(seed: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    killed(request.getfixturevalue("by_get" if seed % 3 == 0 else "by_move"), seed, tmp_path)


def test_every_kind_of_mark_is_among_the_hundred() -> None:
    found = {(mark.victim, mark.gate or mark.stage) for mark in map(drawn, range(100))}
    assert found == {(mark.victim, mark.gate or mark.stage) for mark in MARKS}


def test_the_ledger_is_read_alike(by_move: Ward) -> None:
    """What the marks are read from is what the ledger's own reader reads."""
    lines = (by_move.folder / "state" / "ledger" / "entries.jsonl").read_bytes().count(b"\n")
    assert lines == sum(1 for _ in read(by_move.folder / "state" / "ledger"))


def test_a_lease_that_runs_out_in_the_middle_of_a_shift_is_taken_back_in_it(by_move: Ward) -> None:
    """The worker that held it died after this one had started: nobody else will look for an hour."""
    register, now = by_move.clinic().register, int(time.time())
    series = (FoundSeries(series_uid="2.25.71", modality="DX", instances=1),)
    row = register.found("primary", FoundStudy(study_uid="2.25.7", series=series), now).row
    assert register.claim("a worker that is dead", now, 4, row=row) is not None
    ends = by_move.run("asyncio.run(flows.drain(seconds=60.0, idle=8.0))")
    found = register.study(row)
    assert (ends, found.attempt, found.codes) == ({"dead": 1}, 2, ("arrival-nothing",))
    register.discard(register.dead_letters()[0].id, "it was never there", int(time.time()))
