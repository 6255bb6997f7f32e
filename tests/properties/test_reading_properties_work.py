"""What the node owes: sealed files say nothing, stages go forward, nothing that failed is forgotten."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.instances import SealedReader, SealedWriter
from blocks.reading import FoundSeries, FoundStudy, Notice, ReadingRegister
from blocks.reading_rows import STAGES
from policies.notice import NoticeRules, words
from policies.priority import PRIORITIES, turn
from rapha.errors import Refusal

QUIET = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KEY, PRIVATE = secrets.token_bytes(32), X25519PrivateKey.generate()


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="rapha-") as name:
        yield Path(name)


@contextmanager
def registers() -> Iterator[Any]:
    """A function that opens the register anew, as a process does that was started after a kill."""
    with folder() as place:
        opened: list[ReadingRegister] = []

        def again() -> ReadingRegister:
            for one in opened:
                one.close()
            opened.append(ReadingRegister.at(place / "r.sqlite", KEY))
            return opened[-1]

        try:
            yield again
        finally:
            for one in opened:
                one.close()


def study(number: int, *series: tuple[str, int]) -> FoundStudy:
    found = tuple(FoundSeries(series_uid=uid, modality="CT", instances=count) for uid, count in series or ((f"1.{number}.1", 1),))
    return FoundStudy(study_uid=f"1.{number}", series=found)


# -- what lies on disk


@settings(QUIET, max_examples=40)
@given(st.lists(st.binary(min_size=24, max_size=3000), min_size=1, max_size=4))
def test_a_sealed_file_is_named_at_random_private_and_opens_for_one_key_alone(contents: list[bytes]) -> None:
    with folder() as place:
        made = []
        for content in contents:
            writer = SealedWriter(place, PRIVATE.public_key())
            writer.write(content)
            made.append(writer.finish())
        assert len({one.path.name for one in made}) == len(made) == len(list(place.iterdir()))
        for one, content in zip(made, contents, strict=True):
            stem, raw = one.path.name.removesuffix(".sealed"), one.path.read_bytes()
            assert len(stem) == 32 and set(stem) <= set("0123456789abcdef")
            assert one.path.stat().st_mode & 0o777 == 0o600
            assert not any(content[at : at + 24] in raw for at in range(0, len(content) - 23, 24))
            with SealedReader(one.path, PRIVATE) as stream:
                assert stream.read() == content
            with pytest.raises(Refusal) as refused:
                SealedReader(one.path, X25519PrivateKey.generate())
            assert refused.value.codes == ("sealed-not-for-this-key",)


# -- the queue


SERIES = st.tuples(st.sampled_from(["1.7.1", "1.7.2", "1.7.3"]), st.integers(1, 3))
LISTINGS = st.lists(SERIES, min_size=1, unique_by=lambda one: one[0])


@QUIET
@given(LISTINGS, LISTINGS, st.permutations(range(3)))
def test_a_study_is_queued_once_and_again_only_when_its_content_changed(
    before: list[tuple[str, int]], after: list[tuple[str, int]], order: list[int]
) -> None:
    with registers() as again:
        register = again()
        first = register.found("p", study(7, *before), 100)
        shuffled = [before[place] for place in order if place < len(before)]
        assert (first.outcome, register.found("p", study(7, *shuffled), 110).outcome) == ("new", "known")
        lease = register.claim("w", 120, 60)
        register.finish(lease, 130)
        register = again()
        changed = sorted(before) != sorted(after)
        found = register.found("p", study(7, *after), 200)
        assert (found.row, found.outcome) == (first.row, "changed" if changed else "known")
        assert [one.row for one in register.queue()] == ([first.row] if changed else [])
        assert register.found("q", study(7, *after), 210).outcome == "new", "another archive's study is another row"


@QUIET
@given(st.lists(st.sampled_from(STAGES), max_size=8))
def test_stages_go_forward_and_only_forward(wanted: list[str]) -> None:
    with registers() as again:
        register = again()
        register.found("p", study(1), 100)
        lease, at = register.claim("w", 100, 1000), 0
        for stage in wanted:
            place = STAGES.index(stage)  # type: ignore[arg-type]
            if place < at:
                with pytest.raises(Refusal) as refused:
                    register.enter(lease, stage, 110)
                assert refused.value.codes == ("stage-backwards",)
            else:
                lease, at = register.enter(lease, stage, 110), place
            assert register.study(lease.row).stage == STAGES[at]
        with pytest.raises(Refusal):
            register.enter(lease, "no-stage", 110)


ENDS = st.sampled_from(["waits", "worked-on", "done", "dead", "canceled", "retried"])


@QUIET
@given(st.lists(st.tuples(st.sampled_from(PRIORITIES), st.integers(0, 10**6), ENDS), max_size=8))
def test_the_status_is_the_truth_and_the_next_is_whose_turn_it_is(studies: list[tuple[Any, int, str]]) -> None:
    with registers() as again:
        register, expected, owed = again(), dict[str, int](), list[tuple[int, int]]()
        for number, (level, queued, end) in enumerate(studies):
            row = register.found("p", study(number), queued, level).row
            state = _brought(register, row, end)
            expected[state] = expected.get(state, 0) + 1
            if state in ("scheduled", "in-progress"):
                owed.append((turn(level, queued), row))
        register = again()
        counts = register.counts()
        assert counts["studies"] == expected and counts["dead_letters"] == sum(end == "dead" for *_, end in studies)
        assert [one.row for one in register.queue()] == [row for _, row in sorted(owed)]
        waiting = [row for _, row in sorted(owed) if register.study(row).state == "scheduled"]
        claimed = [lease.row for _ in waiting if (lease := register.claim("w", 10**7, 60))]
        assert claimed == waiting and register.claim("w", 10**7, 60) is None


def _brought(register: ReadingRegister, row: int, end: str) -> str:
    """The row brought to that end; its state."""
    if end == "canceled":
        return register.cancel(row, 10**6)
    lease = register.claim("v", 10**6, 10**8, row=row) if end != "waits" else None
    if lease is not None and end == "done":
        register.finish(lease, 10**6)
    elif lease is not None and end in ("dead", "retried"):
        register.fail(lease, ["peer-failed"], 10**6, retry_at=10**6 if end == "retried" else None)
    return register.study(row).state


@QUIET
@given(st.lists(st.tuples(st.sampled_from(STAGES), st.sampled_from(["kept", "replayed", "discarded"])), min_size=1, max_size=5))
def test_a_dead_letter_stays_until_a_person_decides_and_a_replay_goes_on_where_it_failed(letters: list[tuple[str, str]]) -> None:
    with registers() as again:
        register, stages = again(), dict[int, str]()
        for number, (stage, _) in enumerate(letters):
            row = register.found("p", study(number), 100 + number).row
            lease = register.enter(register.claim("w", 200, 60, row=row), stage, 200)
            assert register.fail(lease, [f"code-{number}"], 210) == "dead"
            stages[row] = stage
        register = again()
        found = register.dead_letters()
        assert [(one.row, one.stage, one.codes) for one in found] == [
            (row, stage, (f"code-{number}",)) for number, (row, stage) in enumerate(stages.items())
        ]
        for letter, (_, what) in zip(found, letters, strict=True):
            if what == "replayed":
                assert register.replay(letter.id, 300) == letter.row
            elif what == "discarded":
                register.discard(letter.id, "looked at", 300)
        register = again()
        assert [one.row for one in register.dead_letters()] == [
            one.row for one, (_, what) in zip(found, letters, strict=True) if what == "kept"
        ]
        for letter, (_, what) in zip(found, letters, strict=True):
            now = register.study(letter.row)
            assert (now.state, now.stage) == ("scheduled" if what == "replayed" else "canceled", letter.stage)


@QUIET
@given(st.lists(st.sampled_from(STAGES), min_size=1, max_size=4), st.integers(1, 50))
def test_a_worker_that_dies_is_followed_by_one_who_goes_on_in_its_stage(deaths: list[str], seconds: int) -> None:
    """The lease runs out, whoever reaps first takes it back, and the one who died writes nothing more."""
    with registers() as again:
        register, now, at = again(), 1000, 0
        row = register.found("p", study(1), now).row
        for tries, stage in enumerate(deaths, 1):
            lease = register.claim(f"worker-{tries}", now, seconds)
            assert lease is not None and (lease.row, lease.stage, lease.attempt) == (row, STAGES[at], tries)
            at = max(at, STAGES.index(stage))  # type: ignore[arg-type]
            register.enter(lease, STAGES[at], now)
            register = again()
            assert register.claim("too early", now + seconds - 1, seconds) is None and register.reap(now + seconds - 1) == []
            now += seconds
            (lost,) = register.reap(now)
            assert (lost.row, lost.stage, lost.state) == (row, STAGES[at], "scheduled")
            with pytest.raises(Refusal) as refused:
                register.finish(lease, now)
            assert refused.value.codes == ("lease-lost",)
        assert register.finish(register.claim("last", now, seconds), now) == "completed"


# -- who is told


MOVES = st.lists(st.sampled_from(["sent", "failed", "given-up", "held-up", "wait", "escalate", "restart"]), max_size=14)


@QUIET
@given(st.sampled_from(["critical", "result"]), MOVES, st.booleans())
def test_a_critical_notice_is_owed_to_somebody_until_a_person_has_it(kind: Any, moves: list[str], taken: bool) -> None:
    with registers() as again:
        register, now, level = again(), 1000, 0
        register.found("p", study(1), now)
        notice = Notice(kind=kind, recipient_group="radiology", template=kind, facts={"findings": 1})
        register.finish(register.claim("w", now, 60), now, notices=[notice, notice])
        (one,) = register.notices()
        for move in moves:
            state = register.notices()[0].state
            if move == "sent" and state == "waiting":
                register.notice_sent(one.id, now, escalate_at=now + 900 if kind == "critical" else None)
            elif move in ("failed", "given-up"):
                register.notice_failed(one.id, "mail-content-later", now, last=move == "given-up")
            elif move == "held-up":
                register.notice_held_up(one.id, "mail-unreachable", now)
            elif move == "wait":
                now += 4000
            elif move == "escalate":
                for late in register.escalations(now):
                    assert register.escalate(late.id, late.level, now) and not register.escalate(late.id, late.level, now)
                    level += 1
            else:
                register = again()
            (found,) = register.notices()
            assert found.level == level
            if kind == "critical":
                due = [o.id for o in register.due_notices(now + 10**6, hold=0)] + [
                    o.id for o in register.escalations(now + 10**6)
                ]
                assert due == [one.id], "sooner or later it is sent or passed on"
        if taken and register.notices()[0].state in ("sent", "dead"):
            assert register.acknowledge(one.id, "dr", now) and not register.acknowledge(one.id, "other", now)
            assert register.due_notices(now + 10**6) == register.escalations(now + 10**6) == []


TOLD = st.lists(st.tuples(st.sampled_from(["critical", "result"]), st.sampled_from(["a", "b"])), min_size=1, max_size=4)


@QUIET
@given(TOLD, TOLD, st.lists(st.sampled_from(["taken", "refused", "dies"]), min_size=1, max_size=8))
def test_a_notice_is_written_once_given_to_one_sender_at_a_time_and_its_state_is_what_the_channel_said(
    first: list[tuple[Any, str]], again_told: list[tuple[Any, str]], channel: list[str]
) -> None:
    """A sender that dies says nothing: what it was given is due again after a while, and to nobody before."""
    with registers() as again:
        register = again()
        register.found("p", study(1), 0)
        lease = register.claim("w", 0, 60)
        for told in (first, again_told):  # a stage that is made again says the same again
            notices = [Notice(kind=kind, recipient_group=group, template=kind, facts={}) for kind, group in told]
            register.enter(lease, lease.stage, 1, notices=notices)
        every = register.notices()
        assert sorted((one.kind, one.recipient_group) for one in every) == sorted({*first, *again_told})
        waiting, now = {one.id for one in every}, 100
        for said in channel:
            due = register.due_notices(now, hold=120)
            assert {one.id for one in due} == waiting and register.due_notices(now + 119) == []
            assert [one.kind for one in due] == sorted(one.kind for one in due), "the critical first"
            for one in due if said == "taken" else ():
                register.notice_sent(one.id, now)
                waiting.discard(one.id)
            for one in due if said == "refused" else ():
                assert register.notice_failed(one.id, "mail-content-later", now) == "waiting"
            register, now = again(), now + 4000
        assert {one.id for one in register.notices() if one.state == "sent"} == {one.id for one in every} - waiting


COUNTS = st.integers(0, 99_999)
RIGHT = st.fixed_dictionaries({"findings": COUNTS, "critical": COUNTS, "analysed": COUNTS, "left_out": COUNTS, "study": COUNTS})
NAMES = st.sampled_from(["findings", "critical", "name", "analysed", "left_out"])
VALUES = st.text(min_size=6) | st.integers(max_value=-1) | st.integers(100_000) | st.sampled_from([True, None, 1.5])
ODD = st.builds(lambda right, name, value: {**right, name: value}, RIGHT, NAMES, VALUES)


@settings(QUIET, max_examples=100)
@given(st.integers(1, 10**9), st.integers(1, 10**9), st.sampled_from(["critical", "result"]), RIGHT, st.integers(0, 5))
def test_a_mail_says_what_was_counted_and_how_to_answer(
    notice: int, row: int, kind: str, facts: dict[str, int], level: int
) -> None:
    told = words(notice, row, kind, kind, facts, level=level, escalate_after=900)
    assert told.codes == () and told.subject.isascii() and "\n" not in told.subject
    assert str(notice) in told.subject and f"row {row}" in told.subject
    for name in ("findings", "critical", "analysed", "left_out"):
        assert f" {facts[name]}" in told.body
    assert ("CRITICAL" in told.subject) is (f"rapha notify ack {notice}" in told.body) is (kind == "critical")


@settings(QUIET, max_examples=100)
@given(st.sampled_from(["critical", "result", "other"]), ODD, st.sampled_from(["critical", "result", "{row.__class__}"]))
def test_nothing_but_counts_gets_into_a_mail(kind: str, facts: dict[str, Any], template: str) -> None:
    told = words(1, 2, kind, template, facts)
    assert told.codes == ("notice-facts",)
    assert not any(
        isinstance(value, str) and value in told.subject + told.body for value in facts.values() if value != "CRITICAL"
    )


@given(
    st.lists(st.just("a@b.example") | st.just("c@d.example"), min_size=1, max_size=4), st.integers(0, 30), st.integers(1, 9000)
)
def test_every_person_of_a_group_is_told_in_turn(persons: list[str], level: int, seconds: int) -> None:
    rules = NoticeRules(persons={"radiology": tuple(persons)}, escalate_after=seconds)
    assert rules.person("radiology", level) == persons[level % len(persons)]
    assert {rules.person("radiology", level + n) for n in range(len(persons))} == set(persons)
    later = rules.escalated_at("radiology", level, 1000, given_up=True)
    assert later == (1000 + seconds if (level + 1) % len(persons) == 0 else 1000), "all of them once, then a pause"
