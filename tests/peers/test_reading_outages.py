"""A peer that is down, on both of the register's databases: what waits, for how long, who is let through, and who is told."""

import secrets
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blocks.reading import MAX_TRIES, FoundStudy, ReadingRegister
from blocks.reading_rows import StudyLease
from policies.notice import OPERATORS
from policies.outage import LONGEST_PAUSE, OUTAGE_SECONDS, PROBE_SECONDS
from tests.fixtures.postgres import running_postgres

KEY, DOWN = secrets.token_bytes(32), ["dimse-unreachable"]


@pytest.fixture(scope="module")
def postgres() -> Iterator[object]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def register(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ReadingRegister]:
    url = f"sqlite:///{tmp_path}/r.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres").fresh()
    opened = ReadingRegister(url, KEY)
    yield opened
    opened.close()


def found(register: ReadingRegister, *numbers: int, pacs: str = "a", now: int = 0) -> list[int]:
    return [register.found(pacs, FoundStudy(study_uid=f"1.{number}"), now).row for number in numbers]


def taken(register: ReadingRegister, now: int, seconds: int = 60) -> StudyLease:
    lease = register.claim("w", now, seconds)
    assert lease is not None
    return lease


def next_at(register: ReadingRegister, row: int) -> int:
    return register.study(row).next_at


def test_an_outage_counts_no_try_and_pauses_grow(register: ReadingRegister) -> None:
    (row,), now, waits = found(register, 1), 0, []
    for _ in range(3 * MAX_TRIES):
        assert register.set_aside(taken(register, now), DOWN, now) == "scheduled"
        assert register.study(row).codes == tuple(DOWN), "what it waits for is told"
        waits.append(next_at(register, row) - now)
        now += LONGEST_PAUSE  # also the endpoint's pause is over by then
    assert 30 <= waits[0] <= 60 and waits[1] <= 120 and waits[2] <= 240 and max(waits) <= 900 and min(waits[5:]) >= 450
    lease = taken(register, now)
    assert (lease.tries, lease.attempt) == (0, 3 * MAX_TRIES + 1) and register.dead_letters() == []


def test_after_a_day_of_it_a_letter_says_so(register: ReadingRegister) -> None:
    (row,) = found(register, 1)
    assert register.set_aside(taken(register, 0), DOWN, 0) == "scheduled"
    assert register.set_aside(taken(register, OUTAGE_SECONDS - 1), DOWN, OUTAGE_SECONDS - 1) == "scheduled"
    late = OUTAGE_SECONDS + LONGEST_PAUSE
    assert register.set_aside(taken(register, late), DOWN, late) == "dead"
    (letter,) = register.dead_letters()
    assert (letter.row, letter.codes) == (row, tuple(DOWN))
    register.replay(letter.id, late + 1000)
    assert register.set_aside(taken(register, late + 1000), DOWN, late + 1000) == "scheduled", "a new outage has a new day"


@pytest.mark.parametrize("meanwhile", ["another failure", "the next stage", "a change"])
def test_an_outage_is_over_when_something_else_happened(register: ReadingRegister, meanwhile: str) -> None:
    found(register, 1)
    register.set_aside(taken(register, 0), DOWN, 0)
    lease, late = taken(register, 1000, 2 * OUTAGE_SECONDS), OUTAGE_SECONDS + 10
    if meanwhile == "another failure":
        register.fail(lease, ["store-refused"], 1001, retry_at=1001)
    elif meanwhile == "the next stage":
        register.enter(lease, "analyse", 1001)
        assert register.set_aside(lease, DOWN, late) == "scheduled"
        return
    else:
        register.found("a", FoundStudy(study_uid="1.1", instances=7), 1001)
        register.fail(lease, ["store-refused"], 1001)
    assert register.set_aside(taken(register, late), DOWN, late) == "scheduled"


def test_failures_of_a_peer_that_answers_still_count(register: ReadingRegister) -> None:
    found(register, 1)
    for turn in range(MAX_TRIES):
        now = turn * 1000
        register.set_aside(taken(register, now), ["study-unreachable"], now)
        ended = register.fail(taken(register, now + 100), ["store-refused"], now + 100, retry_at=now + 100)
        assert ended == ("dead" if turn == MAX_TRIES - 1 else "scheduled")


def test_while_an_endpoint_is_down_its_other_studies_wait_and_those_of_others_do_not(register: ReadingRegister) -> None:
    first, second = found(register, 1, 2)
    (other,) = found(register, 3, pacs="b", now=1)
    register.set_aside(taken(register, 10), DOWN, 10)
    assert taken(register, 11).row == other
    assert register.claim("w", 11, 60) is None, "the second study of the endpoint was not tried and waits all the same"
    by_hand = register.claim("w", 11, 60, row=second)
    assert by_hand is not None, "a person need not wait"
    assert first != second


def test_a_part_of_this_node_that_is_down_pauses_no_archive(register: ReadingRegister) -> None:
    first, second = found(register, 1, 2)
    register.set_aside(taken(register, 10), ["study-unreachable"], 10)
    assert taken(register, 11).row == second != first


def test_one_study_is_let_through_and_the_others_follow_when_it_got_on(register: ReadingRegister) -> None:
    found(register, 1, 2, 3)
    register.set_aside(taken(register, 0), DOWN, 0)
    lease = taken(register, 60)
    assert register.claim("w", 61, 60) is None
    register.enter(lease, "analyse", 62)
    assert register.claim("w", 63, 60) is not None and register.claim("w", 63, 60) is not None


def test_a_probe_that_fails_makes_the_pause_longer_and_one_that_lasts_lets_the_next_through(register: ReadingRegister) -> None:
    found(register, *range(1, 6))
    register.set_aside(taken(register, 0), DOWN, 0)
    register.set_aside(taken(register, 60), DOWN, 61)
    assert register.claim("w", 61 + 59, 60) is None, "twice as long as after the first"
    lease = taken(register, 61 + 120, 600)
    assert register.claim("w", 61 + 120 + PROBE_SECONDS - 1, 60) is None
    assert taken(register, 61 + 120 + PROBE_SECONDS).row != lease.row


def test_many_that_fail_together_are_one_failure_of_the_endpoint(register: ReadingRegister) -> None:
    found(register, *range(1, 22))
    leases = [taken(register, 0) for _ in range(20)]
    for lease in leases:
        register.set_aside(lease, DOWN, 1)
    assert register.claim("w", 1, 60) is None and register.claim("w", 61, 60) is not None


def test_many_that_find_it_down_at_the_same_moment_are_all_set_aside(register: ReadingRegister) -> None:
    """The first to say so makes the pause's row; the others must not be lost over it."""
    for turn in range(3):
        found(register, *range(100 * turn, 100 * turn + 8), pacs=f"p{turn}")
        leases = [taken(register, 0) for _ in range(8)]
        both, ends = threading.Barrier(8), list[str]()

        def fail(lease: StudyLease, both: threading.Barrier = both, ends: list[str] = ends) -> None:
            both.wait()
            ends.append(register.set_aside(lease, DOWN, 1))

        workers = [threading.Thread(target=fail, args=(lease,)) for lease in leases]
        for one in workers:
            one.start()
        for one in workers:
            one.join()
        assert ends == ["scheduled"] * 8


def test_two_workers_let_one_study_through(register: ReadingRegister) -> None:
    found(register, *range(1, 10))
    register.set_aside(taken(register, 0), DOWN, 0)
    both, claimed = threading.Barrier(4), []

    def work() -> None:
        both.wait()
        claimed.append(register.claim("w", 1000, 60))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    assert sum(lease is not None for lease in claimed) == 1


def dies(register: ReadingRegister, how: str, to: str, now: int) -> None:
    ends: dict[str, Callable[[StudyLease], object]] = {
        "refused": lambda lease: register.fail(lease, ["findings-kind", "report-iod"], now, letters_to=to),
        "outage": lambda lease: register.set_aside(lease, DOWN, now, letters_to=to),
        "lost": lambda lease: register.reap(now + 60, letters_to=to),
    }
    lease = register.claim("w", now, 60, row=1)
    assert lease is not None
    ends[how](lease)


@pytest.mark.parametrize("how", ["refused", "outage", "lost"])
def test_a_dead_letter_is_told_with_the_letter_and_again_after_a_replay(register: ReadingRegister, how: str) -> None:
    (row,) = found(register, 1)
    for turn in range(MAX_TRIES if how == "lost" else 2 if how == "outage" else 1):
        assert register.notices(row) == []
        dies(register, how, OPERATORS, turn * OUTAGE_SECONDS)
    (letter,), (notice,) = register.dead_letters(), register.notices(row)
    assert (notice.kind, notice.recipient_group, notice.template, notice.state) == (
        "dead-letter",
        OPERATORS,
        "dead-letter",
        "waiting",
    )
    assert notice.facts == {"study": row, "stage": letter.stage, "codes": " ".join(letter.codes)}
    register.notice_sent(notice.id, 10**6)
    register.acknowledge(notice.id, "an engineer", 10**6)
    register.replay(letter.id, 10**6)
    dies(register, "refused", OPERATORS, 10**6)
    (again,) = register.notices(row)
    assert (again.state, again.created_at, again.sent_at, again.acknowledged_by) == ("waiting", 10**6, None, "")
    assert again.facts["codes"] == "findings-kind report-iod"


def test_without_such_a_group_nobody_is_written_to(register: ReadingRegister) -> None:
    found(register, 1)
    dies(register, "refused", "", 0)
    assert len(register.dead_letters()) == 1 and register.notices() == []
