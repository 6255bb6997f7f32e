"""DICOM audit messages: the schema and the rules of PS3.15 A.5, retyped here, against what is built and read."""

from dataclasses import replace
from typing import Any

import pytest

from policies.audit_codes import EVENTS, RULES
from policies.audit_events import KINDS, PHI_KINDS, Act, Patient, Study, compose
from policies.audit_message import (
    Code,
    Message,
    Participant,
    SopClass,
    Source,
    Subject,
    build,
    date_time,
    disagreements,
    parse,
    rule_problems,
)
from policies.audit_schema import Node, problems, read, written
from policies.audit_syslog import MUST_TAKE, framed, unframed
from rapha.errors import Refusal

AT = 1_795_637_176_123
SOURCE = Source("node-1", "St Elsewhere")
# PS3.16 CID 400, retyped.
CID_400 = {
    "110100": "Application Activity",
    "110101": "Audit Log Used",
    "110102": "Begin Transferring DICOM Instances",
    "110103": "DICOM Instances Accessed",
    "110104": "DICOM Instances Transferred",
    "110105": "DICOM Study Deleted",
    "110106": "Export",
    "110107": "Import",
    "110108": "Network Entry",
    "110109": "Order Record",
    "110110": "Patient Record",
    "110111": "Procedure Record",
    "110112": "Query",
    "110113": "Security Alert",
    "110114": "User Authentication",
}
# PS3.15 A.5.3, retyped: code -> the EventActionCodes that its table allows.
ACTIONS = {
    "110100": "E",
    "110101": "R",
    "110102": "E",
    "110103": "CRUD",
    "110104": "CRU",
    "110105": "D",
    "110106": "R",
    "110107": "C",
    "110108": "E",
    "110109": "CRUD",
    "110110": "CRUD",
    "110111": "CRUD",
    "110112": "E",
    "110113": "E",
    "110114": "E",
}
NEEDS_TYPE = {"alert": "110126", "login": "110122", "application": "110120", "network-entry": "110124"}


def act(kind: str, **facts: Any) -> Act:
    sops = (SopClass("1.2.840.10008.5.1.4.1.1.2", 2, ("1.2.3.1", "1.2.3.2")),)
    given = {
        "person": "dr.jekyll",
        "source": "PACS",
        "destination": "RAPHA",
        "source_host": "10.0.0.7",
        "destination_host": "node.example",
        "patient": None if kind in ("audit-log", "application", "login", "network-entry") else Patient("4711", "Doe^Jane"),
        "studies": ()
        if kind in ("query", "audit-log", "application", "login", "network-entry")
        else (Study("1.2.3", ("A1",), sops),),
        "query": b"\x08\x00\x05\x00",
        "subject": "urn:rapha:audit:0",
        "type": NEEDS_TYPE.get(kind, ""),
    }
    return Act(**{**given, **facts})


def message(kind: str, stage: Any = "once", outcome: int = 0, **facts: Any) -> Message:
    return compose(kind, act(kind, **facts), at=AT, outcome=outcome, source=SOURCE, stage=stage, operation="ab12")


def codes(changed: Message) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refused:
        build(changed)
    return refused.value.codes


def test_the_codes_are_the_standards() -> None:
    assert dict(EVENTS.values()) == CID_400
    assert {code: "".join(sorted(rule.actions)) for code, rule in RULES.items()} == {
        code: "".join(sorted(actions)) for code, actions in ACTIONS.items()
    }


def test_the_codes_are_those_of_the_dicom_dictionary() -> None:
    """The second source: pydicom's copy of PS3.16."""
    from pydicom.sr._cid_dict import cid_concepts
    from pydicom.sr._concepts_dict import concepts

    from policies.audit_codes import EVENT_TYPES, ROLES

    def of(cid: int) -> dict[str, str]:
        return {code: meaning for name in cid_concepts[cid]["DCM"] for code, (meaning, _) in concepts["DCM"][name].items()}

    assert (of(400), of(401), of(402)) == (CID_400, dict(EVENT_TYPES), dict(ROLES)) and of(401) == of(403)


@pytest.mark.parametrize("stage", ["once", "begin", "end"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_is_valid_and_reads_back(kind: str, stage: str) -> None:
    made = message(kind, stage)
    xml = build(made)
    assert problems(read(xml)) == [] and rule_problems(made) == [] and parse(xml) == made and b"\n" not in xml


def test_a_transfer_begins_and_ends_with_the_standards_own_messages() -> None:
    assert [message("transfer", stage).event.id.code for stage in ("begin", "end", "once")] == ["110102", "110104", "110104"]
    assert [message("store", stage).event.action for stage in ("begin", "end")] == ["E", "C"]
    other = [code.code for code in message("query", "begin").event.types]
    assert other == ["begin"]


def test_codes_are_written_in_the_csd_code_form() -> None:
    xml = build(message("query"))
    assert b'<EventID csd-code="110112" codeSystemName="DCM" originalText="Query"/>' in xml
    assert b'EventDateTime="2026-11-25T20:06:16.123Z"' in xml and b'UserIsRequestor="true"' in xml


@pytest.mark.parametrize("kind", ["transfer", "store", "access", "delete"])
def test_one_patient_in_a_message_about_instances(kind: str) -> None:
    made = message(kind)
    second = replace(made.patients[0], id="another")
    assert "audit-patients" in codes(replace(made, subjects=(*made.subjects, second)))
    assert "audit-patients" in codes(replace(made, subjects=made.studies))
    assert "audit-studies" in codes(replace(made, subjects=made.patients))


def test_a_transfer_without_a_known_patient_still_names_one_object() -> None:
    (patient,) = message("transfer", patient=None).patients
    assert patient.id == "<none>"


@pytest.mark.parametrize("kind", ["transfer", "query"])
def test_who_sends_and_who_receives_are_named_once_each(kind: str) -> None:
    made = message(kind)
    assert "audit-roles" in codes(replace(made, participants=made.participants[1:]))
    assert "audit-roles" in codes(replace(made, participants=(made.participants[0], *made.participants)))


def test_one_requestor_at_most() -> None:
    made = message("transfer")
    assert "audit-requestors" in codes(replace(made, participants=(*made.participants, Participant("x", requestor=True))))


@pytest.mark.parametrize("change", [{"action": "D"}, {"action": ""}, {"outcome": 1}, {"id": Code("110104", "DCM", "Query")}])
def test_an_event_that_the_table_does_not_allow_is_refused(change: dict[str, Any]) -> None:
    made = message("transfer")
    assert codes(replace(made, event=replace(made.event, **change)))


@pytest.mark.parametrize("kind", sorted(NEEDS_TYPE))
def test_what_needs_an_event_type_is_refused_without_or_with_a_wrong_one(kind: str) -> None:
    assert "audit-event-type" in codes(message(kind, type=""))
    assert "audit-event-type" in codes(message(kind, type="110999"))


def test_an_alert_says_what_it_is_about_and_a_query_what_was_asked() -> None:
    alert, query, log = message("alert"), message("query"), message("audit-log")
    assert "audit-alert-object" in codes(replace(alert, subjects=tuple(replace(s, details=()) for s in alert.subjects)))
    asked = next(s for s in query.subjects if s.query is not None)
    assert asked.query == b"\x08\x00\x05\x00" and dict(asked.details)["TransferSyntax"] == b"1.2.840.10008.1.2"
    assert "audit-query-object" in codes(replace(query, subjects=(replace(asked, details=()),)))
    assert "audit-log-object" in codes(replace(log, subjects=()))


def test_begin_and_end_of_one_transfer_agree_or_it_is_said_how_not() -> None:
    begin = compose("transfer", act("transfer"), at=AT - 5, outcome=0, source=SOURCE, stage="begin")
    assert disagreements(begin, message("transfer", "end")) == []
    changes: dict[str, dict[str, Any]] = {
        "audit-patient-differs": {"patient": Patient("4712")},
        "audit-studies-differ": {"studies": (Study("1.2.3"), Study("1.2.4"))},
        "audit-participants-differ": {"destination": "EVIL"},
        "audit-instances-differ": {"studies": (Study("1.2.3", (), (SopClass("1.2.840.10008.5.1.4.1.1.2", 3),)),)},
    }
    for code, change in changes.items():
        assert disagreements(begin, message("transfer", "end", **change)) == [code]
    early = compose("transfer", act("transfer"), at=AT - 9, outcome=0, source=SOURCE, stage="end")
    assert disagreements(begin, early) == ["audit-order"]


MARKUP = "<b a=\"x\">&amp; ]]> 'q' \t\n\r\x85\u2028 Müller^日本\U0001f600"


def test_markup_in_identifiers_stays_text() -> None:
    made = message("transfer", patient=Patient(MARKUP, MARKUP), studies=(Study(MARKUP, (MARKUP,)),), person=MARKUP)
    again = parse(build(made))
    assert again == made and again.patients[0].id == MARKUP and len(again.subjects) == 2


def test_what_xml_cannot_hold_is_replaced_and_kept_as_bytes_beside() -> None:
    again = parse(build(message("transfer", patient=Patient("47\x0011\x1b", "A\ufffe"), person="p\x01")))
    (patient,) = again.patients
    assert patient.id == "47\ufffd11\ufffd" and dict(patient.details)["raw-identifier"] == b"47\x0011\x1b"
    assert codes(replace(again, source=Source("a\x00b"))) == ("audit-text",)


ROOT = b"<AuditMessage>%s</AuditMessage>"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<AuditMessage>",
        b"not xml",
        b'<!DOCTYPE AuditMessage [<!ENTITY a "b">]>' + ROOT % b"&a;",
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd">' + ROOT % b"",
        ROOT % b"&undefined;",
        b"<?xml-stylesheet href='x'?>" + ROOT % b"",
        b'<?xml version="1.0" encoding="no-such"?>' + ROOT % b"",
        b"<a>" * 20 + b"</a>" * 20,
        ROOT % (b"<a/>" * 70_000),
        b" " * ((1 << 20) + 1),
        b"<AuditMessage/><AuditMessage/>",
    ],
)
def test_xml_that_is_no_message_is_refused_before_anything_is_expanded(raw: bytes) -> None:
    with pytest.raises(Refusal) as refused:
        parse(raw)
    assert refused.value.codes in (("audit-xml",), ("audit-schema",))


@pytest.mark.parametrize(
    "doctype",
    [b"<!DOCTYPE AuditMessage>", b'<!DOCTYPE AuditMessage [<!ENTITY a "b">]>', b'<!DOCTYPE AuditMessage SYSTEM "x.dtd">'],
)
def test_a_good_message_with_a_document_type_is_refused(doctype: bytes) -> None:
    declared, start, rest = build(message("query")).partition(b"<AuditMessage>")
    with pytest.raises(Refusal) as refused:
        parse(declared + doctype + start + rest)
    assert refused.value.codes == ("audit-xml",)


def changed(node: Node, path: str, **attributes: str | None) -> Node:
    """The tree with attributes of the first element at `path` set, or taken away (None)."""
    here, _, rest = path.partition("/")
    children = list(node.children)
    for n, child in enumerate(children):
        if child.name == here:
            if rest:
                children[n] = changed(child, rest, **attributes)
            else:
                merged = {**child.attributes, **{name.replace("_", "-"): value for name, value in attributes.items()}}
                children[n] = replace(child, attributes={k: v for k, v in merged.items() if v is not None})
            break
    return replace(node, children=tuple(children))


# One change a line, each against one clause of the RELAX NG schema of A.5.1.1.
WRONG: list[tuple[str, dict[str, str | None]]] = [
    ("EventIdentification", {"EventActionCode": "X"}),
    ("EventIdentification", {"EventOutcomeIndicator": "1"}),
    ("EventIdentification", {"EventOutcomeIndicator": None}),
    ("EventIdentification", {"EventDateTime": "yesterday"}),
    ("EventIdentification", {"EventDateTime": "2026-13-01T00:00:00Z"}),
    ("EventIdentification", {"EventDateTime": None}),
    ("EventIdentification", {"Extra": "1"}),
    ("EventIdentification/EventID", {"csd_code": None}),
    ("EventIdentification/EventID", {"codeSystemName": None}),
    ("EventIdentification/EventID", {"originalText": None}),
    ("ActiveParticipant", {"UserID": None}),
    ("ActiveParticipant", {"UserIsRequestor": "yes"}),
    ("ActiveParticipant", {"UserIsRequestor": None}),
    ("ActiveParticipant", {"NetworkAccessPointTypeCode": "6"}),
    ("AuditSourceIdentification", {"AuditSourceID": None}),
    ("AuditSourceIdentification/AuditSourceTypeCode", {"csd_code": None}),
    ("ParticipantObjectIdentification", {"ParticipantObjectID": None}),
    ("ParticipantObjectIdentification", {"ParticipantObjectTypeCode": "5"}),
    ("ParticipantObjectIdentification", {"ParticipantObjectTypeCodeRole": "27"}),
    ("ParticipantObjectIdentification", {"ParticipantObjectDataLifeCycle": "16"}),
    ("ParticipantObjectIdentification/ParticipantObjectDetail", {"value": "not base64!"}),
    ("ParticipantObjectIdentification/ParticipantObjectDetail", {"type": None}),
    ("ParticipantObjectIdentification/ParticipantObjectDescription/SOPClass", {"NumberOfInstances": "two"}),
    ("ParticipantObjectIdentification/ParticipantObjectDescription/SOPClass/Instance", {"UID": None}),
]


@pytest.mark.parametrize(("path", "attributes"), WRONG)
def test_one_change_against_the_schema_is_found(path: str, attributes: dict[str, str | None]) -> None:
    tree = read(build(message("transfer")))
    wrong = changed(tree, path, **attributes)
    assert wrong != tree and len(problems(wrong)) == 1
    with pytest.raises(Refusal) as refused:
        parse(written(wrong))
    assert refused.value.codes == ("audit-schema",)


def test_elements_keep_their_order_and_number() -> None:
    tree = read(build(message("transfer")))
    event, *participants, source, study, patient = tree.children
    for children in (
        (*participants, event, source, study, patient),
        (event, source, study, patient),
        (event, *participants, study, patient),
        (event, *participants, source, source, study, patient),
        (event, event, *participants, source),
        (event, *participants, source, study, Node("Foreign")),
        (event, *participants, source, replace(study, children=study.children[1:])),
        (event, *participants, source, replace(study, children=(study.children[0], *study.children[2:]))),
        (event, *participants, source, replace(patient, text="free text")),
    ):
        assert problems(replace(tree, children=tuple(children)))


def test_a_time_without_a_zone_is_refused_and_others_become_utc() -> None:
    tree = read(build(message("query")))

    def at(text: str) -> int:
        return parse(written(changed(tree, "EventIdentification", EventDateTime=text))).event.at

    assert at("2026-11-25T21:06:16.1239+01:00") == AT and at("2026-11-25T20:06:16Z") == AT - 123
    assert date_time(AT) == "2026-11-25T20:06:16.123Z" and date_time(0) == "1970-01-01T00:00:00.000Z"
    with pytest.raises(Refusal) as refused:
        at("2026-11-25T20:06:16")
    assert refused.value.codes == ("audit-time",)


def test_a_subject_has_a_name_or_a_query() -> None:
    made = message("query")
    both = tuple(replace(s, name="x") if s.query is not None else s for s in made.subjects)
    assert codes(replace(made, subjects=both)) == ("audit-schema",)
    assert Subject("1", Code("12", "RFC-3881", "URI")).query is None


def test_what_touches_a_patient_counts_as_phi() -> None:
    assert set(KINDS) - PHI_KINDS == {"audit-log", "application", "login", "network-entry", "alert", "operator"}


@pytest.mark.parametrize(("outcome", "priority"), [(0, 85), (4, 84), (8, 83), (12, 82)])
def test_a_syslog_frame_counts_octets_and_reads_back(outcome: int, priority: int) -> None:
    xml = build(message("transfer", outcome=outcome, patient=Patient("4711", "Ünïcode" * 5000)))
    frame = framed(xml, at=date_time(AT), outcome=outcome, hostname="no de.example", process="7")
    length, _, rest = frame.partition(b" ")
    assert len(xml) >= MUST_TAKE and int(length) == len(rest)
    assert rest.startswith(
        f"<{priority}>1 2026-11-25T20:06:16.123Z no?de.example rapha 7 DICOM+RFC3881 - ".encode() + b"\xef\xbb\xbf<?xml"
    )
    both = frame + frame
    for cut in (0, 1, 5, len(frame) - 1, len(frame), len(frame) + 3, len(both)):
        first, left = unframed(both[:cut])
        second, end = unframed(left + both[cut:])
        assert [*first, *second] == [xml, xml] and end == b""


@pytest.mark.parametrize("stream", [b"0 <85>1", b"x", b"99999999 <", b"5 hello", b"\n12 abc", b"123456789"])
def test_a_stream_that_is_not_framed_is_refused(stream: bytes) -> None:
    with pytest.raises(Refusal):
        unframed(stream)
    with pytest.raises(Refusal):
        framed(b"", at="", outcome=3, hostname="h")
