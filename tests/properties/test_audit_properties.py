"""Audit messages and reports for every input: what is built reads back, and what is counted is what was written."""

import secrets
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.audit import Act, AuditTrail, Patient, Study, Wanted, audited
from policies.audit_codes import OUTCOMES
from policies.audit_events import KINDS, PHI_KINDS, compose
from policies.audit_message import SopClass, Source, build, disagreements, parse
from policies.audit_schema import Node, problems, read, representable, written
from policies.audit_syslog import framed, unframed
from rapha.errors import PeerError, Refusal
from rapha.trail import verify_trail
from tests.fixtures.audit import SIGNER, START, new_trail

TYPES = {"alert": "110126", "login": "110122", "application": "110120", "network-entry": "110124"}
texts = st.text(max_size=24)
uids = st.from_regex(r"[0-9]+(\.[0-9]+){0,6}", fullmatch=True)
sops = st.builds(SopClass, uids, st.integers(0, 10**6), st.tuples() | st.lists(uids, max_size=3).map(tuple))
studies = st.builds(Study, texts, st.lists(texts, max_size=2).map(tuple), st.lists(sops, max_size=2).map(tuple))
kinds = st.sampled_from(sorted(KINDS))


@st.composite
def acts(draw: st.DrawFn, kind: str) -> Act:
    return Act(
        person=draw(texts),
        source=draw(texts),
        destination=draw(texts),
        source_host=draw(texts),
        destination_host=draw(texts),
        patient=Patient(draw(texts), draw(texts)),
        studies=tuple(draw(st.lists(studies, min_size=1, max_size=3))),
        query=draw(st.binary(max_size=40)),
        subject=draw(texts),
        type=TYPES.get(kind, ""),
    )


@given(st.data(), kinds, st.sampled_from(OUTCOMES), st.integers(0, 4 * 10**12), texts)
def test_every_act_is_a_message_that_the_schema_allows_and_reads_back(
    data: st.DataObject, kind: str, outcome: int, at: int, reason: str
) -> None:
    act = data.draw(acts(kind))
    made = {
        stage: compose(kind, act, at=at, outcome=outcome, source=Source("s"), stage=stage, reason=reason, operation="0f")
        for stage in ("begin", "end")
    }
    for message in made.values():
        xml = build(message)
        assert problems(read(xml)) == [] and parse(xml) == message and len(xml.decode().splitlines()) == 1
        frame = framed(xml, at="x", outcome=outcome, hostname=act.source_host)
        assert unframed(frame) == ([xml], b"")
    assert disagreements(made["begin"], made["end"]) == []


@given(st.recursive(texts, lambda below: st.lists(below, max_size=3), max_leaves=12))
def test_a_tree_that_is_written_reads_back_or_is_refused(shape: Any) -> None:
    def node(value: Any) -> Node:
        return Node("a", {"v": value}, (), value) if isinstance(value, str) else Node("l", {}, tuple(map(node, value)))

    def all_texts(value: Any) -> list[str]:
        return [value] if isinstance(value, str) else [text for each in value for text in all_texts(each)]

    tree = Node("AuditMessage", {}, (node(shape),))
    if all(representable(text) for text in all_texts(shape)):
        # XML 1.0 section 2.11: CR and CR LF in text become LF unless they are written as references, which they are
        assert read(written(tree)) == tree
    else:
        with pytest.raises(Refusal):
            written(tree)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_refusal(raw: bytes) -> None:
    for attempt in (raw, b"<AuditMessage>" + raw + b"</AuditMessage>"):
        try:
            parse(attempt)
        except Refusal:
            continue
        raise AssertionError("random bytes are no audit message")


@given(st.data())
def test_one_byte_changed_in_a_message_never_crashes_the_reader(data: st.DataObject) -> None:
    act = data.draw(acts("transfer"))
    xml = bytearray(build(compose("transfer", act, at=1, outcome=0, source=Source("s"))))
    xml[data.draw(st.integers(0, len(xml) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(xml))
    except Refusal as refused:
        assert all(code.startswith("audit-") for code in refused.codes)


people, patients, uid_pool = ("ann", "bob"), ("1", "2", "3"), ("1.1", "1.2")
happenings = st.lists(
    st.tuples(
        st.sampled_from(("query", "transfer", "store", "access", "alert", "operator", "audit-log")),
        st.sampled_from(people),
        st.sampled_from(patients),
        st.sampled_from(uid_pool),
        st.sampled_from(("once", "ok", "peer", "bug", "lost")),
        st.integers(0, 3 * 86_400),
    ),
    max_size=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(happenings, st.data())
def test_a_report_is_the_brute_force_count_over_the_messages_themselves(
    tmp_path: Path, happened: list[tuple[str, str, str, str, str, int]], data: st.DataObject
) -> None:
    trail = new_trail(tmp_path / secrets.token_hex(4), period="day")
    for kind, person, patient, uid, how, at in happened:
        _happen(trail, kind, person, patient, uid, how, START + at)
    truth = [(one, parse(xml)) for one, xml in trail.messages()]
    kind, person = data.draw(st.sampled_from(("", "query", "transfer"))), data.draw(st.sampled_from(("", *people)))
    since = data.draw(st.none() | st.integers(START, START + 3 * 86_400))
    wanted = Wanted(kinds=(kind,) if kind else (), person=trail.pseudonym("person", person), since=since)
    assert trail.report(wanted) == _counted(trail, truth, kind, person, since)
    assert verify_trail(trail.folder, SIGNER.public_key()).ok


def _happen(trail: AuditTrail, kind: str, person: str, patient: str, uid: str, how: str, at: int) -> None:
    act = Act(
        person=person, source="A", destination="B", patient=Patient(patient), studies=(Study(uid),), subject="x",
        type=TYPES.get(kind, ""),
    )  # fmt: skip
    if how == "once":
        trail.record(kind, act, at=at)
    elif how == "lost":
        trail.record(kind, act, stage="begin", operation=secrets.token_hex(8), at=at)
    else:
        operation, outcome = secrets.token_hex(8), {"ok": 0, "peer": 4, "bug": 8}[how]
        trail.record(kind, act, stage="begin", operation=operation, at=at)
        trail.record(kind, act, stage="end", operation=operation, outcome=outcome, at=at + 1)


def _counted(trail: AuditTrail, truth: list[Any], kind: str, person: str, since: int | None) -> dict[str, Any]:
    """The same counts from the decrypted messages: who, whom and outcome are read from the XML, not from the index."""
    acts: dict[str, list[Any]] = {}
    for one, message in truth:
        who = next(p.user for p in message.participants if p.requestor)
        at = message.event.at // 1000
        if (not kind or one.kind == kind) and person in ("", who) and (since is None or at >= since):
            acts.setdefault(one.operation or f"{one.segment}/{one.seq}", []).append((one, message, who, at))
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("by_kind", "by_outcome", "by_person", "by_day")}
    patients, studies, phi = set(), set(), 0
    for rows in acts.values():
        one, message, who, at = rows[0]
        last_one, last_message = rows[-1][:2]
        counts["by_kind"][one.kind] += 1
        counts["by_person"][trail.pseudonym("person", who)] += 1
        counts["by_day"][datetime.fromtimestamp(at, UTC).date().isoformat()] += 1
        unfinished = last_one.stage == "begin"
        counts["by_outcome"]["unfinished" if unfinished else str(last_message.event.outcome)] += 1
        phi += one.kind in PHI_KINDS
        for _, said, _, _ in rows:
            patients |= {subject.id for subject in said.patients}
            studies |= {subject.id for subject in said.studies}
    if kind in ("", "audit-log"):  # an audit log's message has no patient and no study; its index has those of the act
        for rows in acts.values():
            for one, _, _, _ in rows:
                patients |= {p for p in ("1", "2", "3") if trail.pseudonym("patient", p) == one.patient}
                studies |= {s for s in uid_pool if trail.pseudonym("study", s) in one.studies}
    return {
        "acts": len(acts),
        "entries": sum(map(len, acts.values())),
        "phi_access_count": phi,
        **{name: dict(sorted(count.items())) for name, count in counts.items()},
        "patients": len(patients),
        "studies": len(studies),
    }


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.sampled_from(("ok", "peer", "refused", "bug", "killed")), max_size=6))
def test_every_begin_has_its_end_whatever_happens_inside(tmp_path: Path, ways: list[str]) -> None:
    errors: dict[str, BaseException] = {
        "peer": PeerError("p", "p"),
        "refused": Refusal(["r"]),
        "bug": ValueError("b"),
        "killed": KeyboardInterrupt(),
    }
    trail = new_trail(tmp_path / secrets.token_hex(4))
    for way in ways:
        try:
            with audited(trail, "access", Act(person="p", patient=Patient("1"), studies=(Study("1"),))):
                if way != "ok":
                    raise errors[way]
        except BaseException as error:
            assert error is errors[way]
    found = list(trail.search())
    assert [one.stage for one in found] == ["begin", "end"] * len(ways)
    assert [one.operation for one in found[::2]] == [one.operation for one in found[1::2]]
    expected = {"ok": 0, "peer": 4, "refused": 8, "bug": 8, "killed": 12}
    assert [one.outcome for one in found[1::2]] == [expected[way] for way in ways]


@given(st.data())
def test_a_begin_never_matches_a_search_for_an_outcome(data: st.DataObject) -> None:
    from policies.audit_report import Recorded

    one = Recorded(1, 0, 0, "query", "begin", "a", 0, "E", "", "", ())
    outcomes = data.draw(st.sets(st.sampled_from(OUTCOMES), min_size=1))
    assert not Wanted(outcomes=outcomes).matches(one)
    assert Wanted(outcomes=outcomes).matches(replace(one, stage="end", outcome=next(iter(outcomes))))
