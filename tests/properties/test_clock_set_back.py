"""A clock that was ahead and is set right: what was written by it is worked on, taken back and told as if it had not been."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.reading import FoundStudy, Notice, ReadingRegister
from blocks.reading_rows import LONGEST_LEASE, LONGEST_PAUSE, LONGEST_WAIT
from blocks.reading_shelf import SKEW

KEY = secrets.token_bytes(32)
NOW = 1_800_000_000
AHEAD = st.integers(1, 10 * 365 * 86_400)
LEASE = st.integers(5, LONGEST_LEASE)


@cache
def empty() -> bytes:
    """A register's file before anything was found: it takes longer to make than to copy."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.sqlite"
        ReadingRegister.at(path, KEY).close()
        return path.read_bytes()


@contextmanager
def register(at: int) -> Iterator[ReadingRegister]:
    """One study, registered at this time."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "r.sqlite"
        path.write_bytes(empty())
        made = ReadingRegister.at(path, KEY)
        made.found("primary", FoundStudy(study_uid="1.2"), at)
        yield made
        made.close()


@settings(max_examples=12, deadline=None)
@given(ahead=AHEAD)
def test_what_was_registered_by_a_clock_ahead_waits_an_hour_at_most(ahead: int) -> None:
    with register(NOW + ahead) as made:
        owed = made.claim("w", NOW, 60) or made.claim("w", NOW + LONGEST_PAUSE + SKEW, 60)
        assert owed is not None


@settings(max_examples=12, deadline=None)
@given(ahead=AHEAD, lease=LEASE, counted=st.booleans())
def test_a_pause_of_a_clock_ahead_and_one_that_is_too_long_are_an_hour_at_most(ahead: int, lease: int, counted: bool) -> None:
    with register(NOW) as made:
        held = made.claim("w", NOW, lease)
        assert held is not None
        if counted:
            made.fail(held, ["peer"], NOW + 1, retry_at=NOW + ahead)
        else:
            made.give_back(held, ["node"], NOW + 1, NOW + ahead)
        due = min(NOW + ahead, NOW + 1 + LONGEST_PAUSE)
        assert made.claim("w", due - 1, lease) is None and made.claim("w", due, lease) is not None


@settings(max_examples=12, deadline=None)
@given(ahead=AHEAD, lease=LEASE)
def test_a_dead_workers_lease_of_a_clock_ahead_lasts_as_long_as_any_lease(ahead: int, lease: int) -> None:
    with register(NOW) as made:
        assert made.claim("dead", NOW + ahead, lease) is not None
        made.reap(NOW)  # as every few seconds: the first after the clock was set right
        longest = lease if ahead + lease > LONGEST_LEASE + SKEW else ahead + lease
        assert made.reap(NOW + longest - 1) == []
        assert [one.row for one in made.reap(NOW + longest)] == [1]
        assert made.claim("w", NOW + longest, lease) is not None


@settings(max_examples=12, deadline=None)
@given(ahead=AHEAD, lease=LEASE)
def test_a_living_workers_lease_of_a_clock_ahead_is_kept(ahead: int, lease: int) -> None:
    """It renews it six times in its time."""
    with register(NOW) as made:
        held = made.claim("alive", NOW + ahead, lease)
        assert held is not None
        assert made.reap(NOW) == [] and made.reap(NOW + lease // 6) == []
        made.renew(held, NOW + lease // 6, lease)
        assert made.reap(NOW + lease // 6 + lease - 1) == []


@settings(max_examples=12, deadline=None)
@given(ahead=AHEAD, kind=st.sampled_from(["critical", "result"]))
def test_a_notice_of_a_clock_ahead_waits_a_day_at_most_and_so_does_its_escalation(ahead: int, kind: str) -> None:
    latest = NOW + LONGEST_WAIT + SKEW
    with register(NOW) as made:
        held = made.claim("w", NOW + ahead, 60)
        assert held is not None
        notice = Notice(kind=kind, recipient_group="radiology", template=kind)  # type: ignore[arg-type]
        made.finish(held, NOW + ahead, notices=[notice])
        assert made.owes_notice(NOW) or made.owes_notice(latest)
        (due,) = made.due_notices(NOW) or made.due_notices(latest)
        made.notice_sent(due.id, NOW + ahead, escalate_at=NOW + ahead + 900)
        late = made.escalations(NOW) or made.escalations(latest)
        assert [one.id for one in late] == ([due.id] if kind == "critical" else [])


def test_the_longest_wait_that_a_profile_may_set_is_waited_for() -> None:
    """Also where who looks has a clock that is a little behind."""
    with register(NOW) as made:
        held = made.claim("w", NOW, 60)
        assert held is not None
        made.finish(held, NOW, notices=[Notice(kind="critical", recipient_group="radiology", template="critical")])
        (due,) = made.due_notices(NOW)
        made.notice_sent(due.id, NOW, escalate_at=NOW + 86_400)
        assert made.escalations(NOW - 600) == made.escalations(NOW + 86_399) == []
        assert len(made.escalations(NOW + 86_400)) == 1
