"""A critical finding whose report does not get into its archive: somebody is told after some tries, once, and not before."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from blocks.reading import UNSTORED_TRIES, FoundStudy, Notice, ReadingRegister
from flows.course import Course
from policies.notice import words
from policies.outage import LONGEST_PAUSE
from tasks.reading.analyse import Analysis
from tests.fixtures.postgres import running_postgres

FACTS: dict[str, str | int] = {"study": 1, "findings": 2, "critical": 1, "analysed": 3, "left_out": 0}
UNSTORED = Notice(kind="critical", recipient_group="radiology", template="critical-unstored", facts=FACTS)


@pytest.fixture(scope="module")
def postgres() -> Iterator[object]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def register(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadingRegister]:
    url = f"sqlite:///{tmp_path}/r.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres").fresh()
    opened = ReadingRegister(url, secrets.token_bytes(32))
    yield opened
    opened.close()


def told(register: ReadingRegister) -> list[str]:
    return [one.template for one in register.notices()]


@pytest.mark.parametrize("outage", [False, True])
def test_it_is_told_after_some_failures_and_once(register: ReadingRegister, outage: bool) -> None:
    row, now = register.found("a", FoundStudy(study_uid="1.1"), 0).row, 0
    for tries in range(1, 5):
        lease = register.claim("w", now, 60, row=row)
        assert lease is not None
        if outage:
            register.set_aside(lease, ["dimse-unreachable"], now, unstored=[UNSTORED])
        else:
            register.fail(lease, ["store-refused"], now, retry_at=now + 60, unstored=[UNSTORED])
        assert told(register) == (["critical-unstored"] if tries >= UNSTORED_TRIES else [])
        now += LONGEST_PAUSE


def test_one_that_is_given_up_on_is_told_at_once(register: ReadingRegister) -> None:
    row = register.found("a", FoundStudy(study_uid="1.1"), 0).row
    lease = register.claim("w", 0, 60, row=row)
    assert lease is not None
    assert register.fail(lease, ["report-conflict"], 1, unstored=[UNSTORED]) == "dead"
    assert told(register) == ["critical-unstored"]


def test_what_was_canceled_tells_nobody(register: ReadingRegister) -> None:
    row = register.found("a", FoundStudy(study_uid="1.1"), 0).row
    lease = register.claim("w", 0, 60, row=row)
    assert lease is not None
    register.cancel(row, 1)
    assert register.fail(lease, ["report-conflict"], 2, unstored=[UNSTORED]) == "canceled"
    assert told(register) == []


def _course(analysis: Analysis | None) -> Course:
    course = object.__new__(Course)
    course.analysis, course.lease = analysis, SimpleNamespace(row=1)  # type: ignore[assignment]
    return course


def _analysis(critical: int) -> Analysis:
    results = (SimpleNamespace(findings=(1, 2), critical=critical),)
    return Analysis(analysed=frozenset({0, 1, 2}), left_out={}, results=results)  # type: ignore[arg-type]


def test_a_course_tells_it_of_a_critical_finding_alone_and_in_words_of_its_own() -> None:
    assert _course(None).unstored() == [] == _course(_analysis(0)).unstored()
    (notice,) = _course(_analysis(1)).unstored()
    assert notice == UNSTORED
    said = words(7, 1, notice.kind, notice.template, notice.facts)
    assert said.codes == () and "NOT proven to be in the archive" in said.body and "critical: 1" in said.body
