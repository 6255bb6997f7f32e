"""The warm template validator: the plain program's verdicts, of a process that may die, hang or be missing, and keeps nothing."""

import dataclasses
import io
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from blocks import validators
from blocks.models import site_list
from blocks.validators import TEMPLATE, Checked
from infra.hospital.reading_cohort import make_study
from infra.validator import warm
from infra.validator.warm import WarmValidator
from rapha.errors import PeerError
from tasks.reading.report import build
from tasks.reading.validate import validate
from tests.fixtures.study_running import make_hospital
from tests.peers.test_reports import CIRCLE, MODELS, RADIOLOGY, REPORTS, analysed, facts


@pytest.fixture(scope="module")
def validator() -> Iterator[WarmValidator]:
    made = WarmValidator(1)
    yield made
    made.close()


def found(count: int) -> bytes:
    """A report of `count` findings on three images."""
    sources = make_study("ct", 3, 1)
    findings = [
        dataclasses.replace(CIRCLE, points=((40.0 + n % 50, 50.0 + n // 50), (46.0 + n % 50, 50.0 + n // 50)))
        for n in range(count)
    ]
    return build(sources, [analysed(RADIOLOGY, len(sources), *findings)], facts(len(sources)))


def worker(made: WarmValidator) -> int:
    """The process itself: the child of bubblewrap's first process in its namespace."""
    (outer,) = made.pids()
    return descendants(outer)[-1]


def descendants(pid: int) -> list[int]:
    below = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    return below + [deeper for child in below for deeper in descendants(child)]


def is_over(pid: int) -> bool:
    """Whether a child has ended, also where nobody has waited for it yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def gone(pids: list[int]) -> bool:
    end = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def outcome(ask: Callable[..., Checked], report: bytes) -> Checked | tuple[str, ...]:
    try:
        return ask(TEMPLATE, report)
    except PeerError as error:
        return error.codes


def _damaged(kind: int) -> bytes:
    raw = bytearray(REPORTS["no 3D"]())
    place = random.Random(kind)
    for _ in range(12):
        raw[place.randrange(400, len(raw))] ^= 1 << place.randrange(8)
    return bytes(raw)


def _without(name: str) -> bytes:
    dataset, out = dcmread(io.BytesIO(REPORTS["found"]())), io.BytesIO()
    del dataset[name]
    dataset.save_as(out)
    return out.getvalue()


CASES: dict[str, Callable[[], bytes]] = {
    **{f"ours, {name}": REPORTS[name] for name in ("found", "slide")},
    **{f"damaged {kind}": lambda kind=kind: _damaged(kind) for kind in range(1)},
    "of others": lambda: Path(str(get_testdata_file("reportsi.dcm"))).read_bytes(),
    "no report": lambda: Path(str(get_testdata_file("CT_small.dcm"))).read_bytes(),
    "no content": lambda: _without("ContentSequence"),
    "empty": lambda: b"",
}


SLOW = ("ours, slide", "damaged 0", "no content")  # the plain program takes seconds for each


@pytest.mark.parametrize("name", [pytest.param(one, marks=[pytest.mark.soak] * (one in SLOW)) for one in sorted(CASES)])
def test_it_says_what_the_plain_program_says(validator: WarmValidator, name: str) -> None:
    report = CASES[name]()
    assert outcome(validator.check, report) == outcome(validators.check, report)


def test_a_broken_one_is_not_the_next_ones_verdict(validator: WarmValidator) -> None:
    good, bad = CASES["ours, found"](), CASES["damaged 0"]()
    verdict = validator.check(TEMPLATE, good)
    assert outcome(validator.check, bad) == ("validator-failed",)
    assert validator.check(TEMPLATE, good) == verdict
    assert len(validator.pids()) == 1  # no plain program was asked
    assert validate(good, check=validator.check).checks == ("own", "dciodvfy", "DicomSRValidator")


def test_it_holds_a_report_against_nothing_of_the_one_before(validator: WarmValidator) -> None:
    reports = [CASES["no content"](), found(3), CASES["of others"](), found(1), REPORTS["nothing"]()]
    alone = [validator.check(TEMPLATE, report) for report in reports]
    for report, verdict in zip(reversed(reports), reversed(alone), strict=True):
        assert validator.check(TEMPLATE, report) == verdict
    assert [one.warnings for one in alone[1:4:2]] == [3, 1]


def test_saxon_says_what_javas_own_processor_says(validator: WarmValidator, monkeypatch: pytest.MonkeyPatch) -> None:
    report = Path(str(get_testdata_file("reportsi.dcm"))).read_bytes()
    said = validator.check(TEMPLATE, report)
    monkeypatch.setattr(validators, "SAXON", Path("/nonexistent.jar"))
    assert validators.check(TEMPLATE, report) == said
    assert said.warnings > 0


@pytest.mark.parametrize("count", [100, pytest.param(500, marks=pytest.mark.soak)])
def test_a_large_report_fits(validator: WarmValidator, count: int) -> None:
    before = validator.pids()
    assert validator.check(TEMPLATE, found(count)).errors == 0
    assert validator.pids() == before


def test_killed_in_the_middle_it_failed_and_is_warm_again(validator: WarmValidator) -> None:
    report = found(80)
    expected = validator.check(TEMPLATE, report)
    killed = worker(validator)
    killing = threading.Timer(0.15, os.kill, (killed, signal.SIGKILL))
    killing.start()
    assert outcome(validator.check, report) == ("validator-failed",)
    assert validator.check(TEMPLATE, report) == expected
    assert worker(validator) != killed


def test_stalled_it_is_ended_after_its_time(validator: WarmValidator) -> None:
    report = REPORTS["nothing"]()
    expected, stalled = validator.check(TEMPLATE, report), worker(validator)
    os.kill(stalled, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(PeerError) as failed:
        validator.check(TEMPLATE, report, seconds=0.5)
    assert failed.value.codes == ("validator-timeout",)
    assert time.monotonic() - began < 5
    assert gone([stalled])
    # The next is still warming when its time is over: that is no missing Java.
    with pytest.raises(PeerError) as failed:
        validator.check(TEMPLATE, report, seconds=0.5)
    assert failed.value.codes == ("validator-timeout",)
    assert validator.check(TEMPLATE, report) == expected
    assert worker(validator) != stalled


def test_dead_between_two_reports_it_is_started_and_outlives_the_thread_that_asked(validator: WarmValidator) -> None:
    report = REPORTS["nothing"]()
    expected = validator.check(TEMPLATE, report)
    (outer,) = validator.pids()
    os.kill(worker(validator), signal.SIGKILL)
    end = time.monotonic() + 10
    while not is_over(outer) and time.monotonic() < end:
        time.sleep(0.02)
    with ThreadPoolExecutor(1) as session:
        assert session.submit(validator.check, TEMPLATE, report).result() == expected
    started = worker(validator)
    time.sleep(0.2)
    assert validator.check(TEMPLATE, report) == expected
    assert worker(validator) == started


def test_two_at_once() -> None:
    reports = [CASES["ours, found"](), CASES["no content"](), CASES["ours, slide"](), CASES["of others"]()]
    made = WarmValidator(2)
    try:
        assert len(made.pids()) == 1
        with ThreadPoolExecutor(4) as sessions:
            asked = list(sessions.map(lambda report: outcome(made.check, report), reports * 2))
        assert asked[:4] == asked[4:] == [outcome(made.check, report) for report in reports]
        assert len(made.pids()) == 2
    finally:
        made.close()
    assert made.pids() == []


@pytest.mark.parametrize("missing", ["JPype", "Java"])
def test_where_it_cannot_be_had_the_plain_program_is_asked(
    missing: str,
    validator: WarmValidator,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if missing == "JPype":
        monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    else:
        for name in ("DicomSRValidator", "dciodvfy"):
            (tmp_path / name).symlink_to(Path("/usr/bin", name))
        monkeypatch.setenv("PATH", str(tmp_path))
    report = REPORTS["nothing"]()
    made = WarmValidator(1)
    try:
        asked = [made.check(TEMPLATE, report) for _ in range(2)]
    finally:
        made.close()
    assert asked == [validator.check(TEMPLATE, report)] * 2
    assert capfd.readouterr().err == "study: validator-not-warm\n"


def test_words_without_a_verdict_are_no_pass(validator: WarmValidator, monkeypatch: pytest.MonkeyPatch) -> None:
    for said in (b"", b"Found Comprehensive3DSR IOD\nRoot Template Validation Complete\n"):
        monkeypatch.setattr(warm.Process, "ask", lambda *_, said=said: said)
        assert outcome(validator.check, b"") == ("validator-failed",)


def test_it_has_no_network_no_disk_no_core_dump(validator: WarmValidator) -> None:
    validator.check(TEMPLATE, CASES["ours, found"]())
    process = Path(f"/proc/{worker(validator)}")
    mounts = [line.split(" - ") for line in (process / "mountinfo").read_text().splitlines()]
    writable = {kind.split()[0] for options, kind in mounts if "rw" in options.split()[5].split(",")}
    assert writable <= {"proc", "tmpfs", "devpts", "devtmpfs"}
    assert [line.split(":")[0].strip() for line in (process / "net/dev").read_text().splitlines()[2:]] == ["lo"]
    limits = (process / "limits").read_text()
    assert [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")] == [["0", "0"]]
    assert next(int(line.split()[3]) for line in limits.splitlines() if line.startswith("Max address")) < 3 << 30
    opened = {str(one.readlink()) for one in (process / "fd").iterdir()}
    assert not any("memfd" in name for name in opened)  # of no report that was answered
    status = (process / "status").read_text()
    assert "Seccomp:\t2" in status
    assert "CapEff:\t0000000000000000" in status


def _is_python(pid: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return words[0] == sys.executable.encode() and b"infra.validator" in words


def test_it_ends_with_the_study_reader(tmp_path: Path) -> None:
    models = tmp_path / "models.json"
    models.write_text(json.dumps(site_list([MODELS / "radiology"])))
    hospital = make_hospital("--store", str(tmp_path / "store"), "--models", str(models), sandboxes=False)
    try:
        while not (below := descendants(hospital.reader_pid)) or not _is_python(below[-1]):
            time.sleep(0.02)  # the test's own time-out ends this where none is started
        os.kill(below[-1], signal.SIGSTOP)  # it cannot see that its socket is closed
    finally:
        hospital.close()
    assert gone(below)


@pytest.mark.soak
def test_two_hundred_reports_leave_its_memory_flat(validator: WarmValidator) -> None:
    reports = [CASES["ours, found"](), found(20), CASES["of others"](), found(100)]

    def resident() -> int:
        return int((Path(f"/proc/{worker(validator)}") / "statm").read_text().split()[1]) * 4096

    for turn in range(40):
        validator.check(TEMPLATE, reports[turn % 4])
    first, process = resident(), worker(validator)
    for turn in range(160):
        validator.check(TEMPLATE, reports[turn % 4])
    assert worker(validator) == process
    assert resident() < first + (48 << 20)
