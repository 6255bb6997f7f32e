"""DICOM audit messages (PS3.15 A.5): facts to XML and back, and what the standard asks of each of the fifteen messages.

`build` and `parse` are strict and inverse to each other: what is built is valid against the schema of A.5.1 and keeps the rules
of A.5.3, and what is parsed is the same facts again.
"""

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from policies.audit_codes import (
    AUDIT_LOG,
    DCM,
    EVENT_TYPES,
    EVENTS,
    OUTCOMES,
    PATIENT_NUMBER,
    RFC3881,
    ROLES,
    RULES,
    SOP_CLASS_UID,
    STUDY_UID,
    URI,
)
from policies.audit_schema import Node, problems, read, written
from rapha.errors import Refusal

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAMES = {code: text for code, text in EVENTS.values()}


@dataclass(frozen=True, slots=True)
class Code:
    """csd-code, codeSystemName, originalText (and displayName); an audit source's type may be a code alone."""

    code: str
    system: str = ""
    text: str = ""
    display: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """id: of CID 400; at: milliseconds since the epoch, UTC; outcome: 0, 4, 8 or 12; action: C, R, U, D or E."""

    id: Code
    action: str
    at: int
    outcome: int
    types: tuple[Code, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class Participant:
    """Who took part (ActiveParticipant). network_type: "1" a machine's name, "2" an IP address, … (PS3.15 A.5.1.1)."""

    user: str
    requestor: bool = False
    roles: tuple[Code, ...] = ()
    alternative: str = ""
    name: str = ""
    network: str = ""
    network_type: str = ""
    media: Code | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Who says so (AuditSourceIdentification)."""

    id: str
    site: str = ""
    types: tuple[Code, ...] = (Code("4"),)


@dataclass(frozen=True, slots=True)
class SopClass:
    uid: str
    count: int
    instances: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Description:
    mpps: tuple[str, ...] = ()
    accessions: tuple[str, ...] = ()
    sop_classes: tuple[SopClass, ...] = ()
    studies: tuple[str, ...] | None = None
    encrypted: bool | None = None
    anonymized: bool | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What it was done to (ParticipantObjectIdentification): `name`, or `query` in its own format, never both."""

    id: str
    id_type: Code
    name: str = ""
    query: bytes | None = None
    type: str = ""
    role: str = ""
    life_cycle: str = ""
    sensitivity: str = ""
    details: tuple[tuple[str, bytes], ...] = ()
    descriptions: tuple[Description, ...] = ()


@dataclass(frozen=True, slots=True)
class Message:
    event: Event
    participants: tuple[Participant, ...]
    source: Source
    subjects: tuple[Subject, ...] = ()

    @property
    def studies(self) -> tuple[Subject, ...]:
        return tuple(one for one in self.subjects if one.id_type.code == STUDY_UID and one.id_type.system == DCM)

    @property
    def patients(self) -> tuple[Subject, ...]:
        return tuple(one for one in self.subjects if one.type == "1" and one.role == "1")


def build(message: Message) -> bytes:
    """The message as XML on one line, UTF-8. `Refusal` audit-… for what the schema or A.5.3 does not allow."""
    _keep(rule_problems(message))
    root = _message_node(message)
    found = problems(root)
    if found:
        raise Refusal(["audit-schema"], "; ".join(found[:3]))
    return written(root)


def parse(raw: bytes) -> Message:
    """The facts of one message. `Refusal` audit-xml, audit-schema, or a code of `rule_problems`."""
    root = read(raw)
    found = problems(root)
    if found:
        raise Refusal(["audit-schema"], "; ".join(found[:3]))
    message = _message(root)
    _keep(rule_problems(message))
    return message


def rule_problems(message: Message) -> list[str]:
    """Codes of what PS3.15 A.5.2 and A.5.3 do not allow in this message, beyond the schema; empty for a good one."""
    event = message.event
    rule = RULES.get(event.id.code)
    if rule is None or event.id != Code(event.id.code, DCM, _NAMES[event.id.code]):
        return ["audit-event"]
    found = [] if event.action and event.action in rule.actions else ["audit-action"]
    found += [] if event.outcome in OUTCOMES else ["audit-outcome"]
    types = {code.code for code in event.types if code.system == DCM}
    found += ["audit-event-type"] if (rule.types and not types & rule.types) or types - set(EVENT_TYPES) else []
    found += ["audit-requestors"] if sum(one.requestor for one in message.participants) > 1 else []
    found += [] if _within(len(message.participants), rule.participants) else ["audit-participants"]
    roles = [code.code for one in message.participants for code in one.roles if code.system == DCM]
    found += ["audit-roles"] if any(not _within(roles.count(role), (least, most)) for role, least, most in rule.roles) else []
    found += ["audit-roles"] if set(roles) - set(ROLES) else []
    found += [] if _within(len(message.studies), rule.studies) else ["audit-studies"]
    found += [] if _within(len({one.id for one in message.patients}), rule.patients) else ["audit-patients"]
    found += [] if rule.objects or not message.subjects else ["audit-objects"]
    return found + _subject_problems(message)


def disagreements(begin: Message, end: Message) -> list[str]:
    """Codes of where the two messages of one transfer differ (PS3.15 A.5.3.7: it may show a breach); empty where they agree."""
    found = []
    if [one.id for one in begin.patients] != [one.id for one in end.patients]:
        found.append("audit-patient-differs")
    if {one.id for one in begin.studies} != {one.id for one in end.studies}:
        found.append("audit-studies-differ")
    if _movers(begin) != _movers(end):
        found.append("audit-participants-differ")
    if _instances(begin) and _instances(end) and _instances(begin) != _instances(end):
        found.append("audit-instances-differ")
    if end.event.at < begin.event.at:
        found.append("audit-order")
    return found


def _movers(message: Message) -> set[tuple[str, str]]:
    return {(one.user, code.code) for one in message.participants for code in one.roles}


def _instances(message: Message) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in (sop for study in message.studies for each in study.descriptions for sop in each.sop_classes):
        counts[one.uid] = counts.get(one.uid, 0) + one.count
    return counts


def _subject_problems(message: Message) -> list[str]:
    """The values that A.5.3 fixes in the participant objects."""
    found = []
    for one in message.studies:
        found += [] if (one.type, one.role) == ("2", "3") else ["audit-study-object"]
    for one in message.patients:
        found += [] if one.id_type == Code(PATIENT_NUMBER, RFC3881, "Patient Number") else ["audit-patient-object"]
    code = message.event.id.code
    if code == "110101":
        logs = [one for one in message.subjects if one.name == AUDIT_LOG]
        good = len(logs) == 1 and (logs[0].type, logs[0].role, logs[0].id_type.code) == ("2", "13", URI)
        found += [] if good else ["audit-log-object"]
    if code == "110112":
        asked = [one for one in message.subjects if one.query is not None]
        good = len(asked) == 1 and (asked[0].type, asked[0].role) == ("2", "3")
        good = good and (asked[0].id_type.code != SOP_CLASS_UID or "TransferSyntax" in dict(asked[0].details))
        found += [] if good else ["audit-query-object"]
    if code == "110113" and any(one.type == "2" and "Alert Description" not in dict(one.details) for one in message.subjects):
        found.append("audit-alert-object")
    return found


def _keep(found: list[str]) -> None:
    if found:
        raise Refusal(list(dict.fromkeys(found)), "an audit message does not keep PS3.15 A.5.3")


def _within(count: int, bounds: tuple[int, int | None]) -> bool:
    return count >= bounds[0] and (bounds[1] is None or count <= bounds[1])


def date_time(at: int) -> str:
    """xsd:dateTime in UTC of milliseconds since the epoch."""
    return (_EPOCH + timedelta(milliseconds=at)).strftime("%Y-%m-%dT%H:%M:%S.") + f"{at % 1000:03d}Z"


def _milliseconds(text: str) -> int:
    """Of an xsd:dateTime that says its time zone; `Refusal` audit-time else (A.5.2: unambiguous as to time zones)."""
    plain, fraction, zone = re.fullmatch(r"([^.Z+]+?)(\.\d+)?(Z|[+-]\d\d:\d\d)?", text).groups()  # type: ignore[union-attr]
    if zone is None:
        raise Refusal(["audit-time"], "an audit message's time has no time zone")
    whole = datetime.fromisoformat(plain + zone.replace("Z", "+00:00")) - _EPOCH
    return (whole.days * 86400 + whole.seconds) * 1000 + int(((fraction or ".")[1:] + "000")[:3])


def _code_node(name: str, code: Code) -> Node:
    pairs = {
        "csd-code": code.code,
        "codeSystemName": code.system,
        "displayName": code.display,
        "originalText": code.text,
    }
    return Node(name, {key: value for key, value in pairs.items() if value or (key != "displayName" and code.system)})


def _message_node(message: Message) -> Node:
    event = message.event
    inside = [_code_node("EventID", event.id), *(_code_node("EventTypeCode", code) for code in event.types)]
    inside += [Node("EventOutcomeDescription", text=event.description)] if event.description else []
    attributes = {"EventActionCode": event.action, "EventDateTime": date_time(event.at)}
    attributes |= {"EventOutcomeIndicator": str(event.outcome)}
    types = tuple(_code_node("AuditSourceTypeCode", code) for code in message.source.types)
    source = _filled({"AuditEnterpriseSiteID": message.source.site}) | {"AuditSourceID": message.source.id}
    return Node(
        "AuditMessage",
        children=(
            Node("EventIdentification", _filled(attributes), tuple(inside)),
            *(_participant_node(one) for one in message.participants),
            Node("AuditSourceIdentification", source, types),
            *(_subject_node(one) for one in message.subjects),
        ),
    )


def _participant_node(one: Participant) -> Node:
    attributes = {"UserID": one.user}
    attributes |= _filled({"AlternativeUserID": one.alternative, "UserName": one.name})
    attributes |= {"UserIsRequestor": "true" if one.requestor else "false"}
    attributes |= _filled({"NetworkAccessPointID": one.network, "NetworkAccessPointTypeCode": one.network_type})
    media = (Node("MediaIdentifier", children=(_code_node("MediaType", one.media),)),) if one.media else ()
    return Node("ActiveParticipant", attributes, (*(_code_node("RoleIDCode", code) for code in one.roles), *media))


def _subject_node(one: Subject) -> Node:
    attributes = {"ParticipantObjectID": one.id} | _filled(
        {
            "ParticipantObjectTypeCode": one.type,
            "ParticipantObjectTypeCodeRole": one.role,
            "ParticipantObjectDataLifeCycle": one.life_cycle,
            "ParticipantObjectSensitivity": one.sensitivity,
        }
    )
    if one.query is not None and one.name:
        raise Refusal(["audit-schema"], "a participant object has a name or a query, not both")
    named = Node("ParticipantObjectName", text=one.name)
    asked = Node("ParticipantObjectQuery", text=_base64(one.query)) if one.query is not None else named
    details = (Node("ParticipantObjectDetail", {"type": kind, "value": _base64(value)}) for kind, value in one.details)
    return Node(
        "ParticipantObjectIdentification",
        attributes,
        (
            _code_node("ParticipantObjectIDTypeCode", one.id_type),
            asked,
            *details,
            *(_description_node(each) for each in one.descriptions),
        ),
    )


def _description_node(one: Description) -> Node:
    children = [Node("MPPS", {"UID": uid}) for uid in one.mpps]
    children += [Node("Accession", {"Number": number}) for number in one.accessions]
    for sop in one.sop_classes:
        instances = tuple(Node("Instance", {"UID": uid}) for uid in sop.instances)
        children.append(Node("SOPClass", {"UID": sop.uid, "NumberOfInstances": str(sop.count)}, instances))
    if one.studies is not None:
        children.append(
            Node("ParticipantObjectContainsStudy", children=tuple(Node("StudyIDs", {"UID": uid}) for uid in one.studies))
        )
    for name, value in (("Encrypted", one.encrypted), ("Anonymized", one.anonymized)):
        children += [] if value is None else [Node(name, text="true" if value else "false")]
    return Node("ParticipantObjectDescription", children=tuple(children))


def _filled(attributes: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if value}


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _of(children: Iterable[Node], name: str) -> tuple[Node, ...]:
    return tuple(child for child in children if child.name == name)


def _code(node: Node) -> Code:
    value = node.attributes
    return Code(value["csd-code"], value.get("codeSystemName", ""), value.get("originalText", ""), value.get("displayName", ""))


def _message(root: Node) -> Message:
    head = root.children[0]
    described = _of(head.children, "EventOutcomeDescription")
    event = Event(
        id=_code(head.children[0]),
        action=head.attributes.get("EventActionCode", ""),
        at=_milliseconds(head.attributes["EventDateTime"]),
        outcome=int(head.attributes["EventOutcomeIndicator"]),
        types=tuple(_code(node) for node in _of(head.children, "EventTypeCode")),
        description=described[0].text if described else "",
    )
    said = _of(root.children, "AuditSourceIdentification")[0]
    return Message(
        event,
        tuple(_participant(node) for node in _of(root.children, "ActiveParticipant")),
        Source(
            said.attributes["AuditSourceID"],
            said.attributes.get("AuditEnterpriseSiteID", ""),
            tuple(_code(node) for node in said.children),
        ),
        tuple(_subject(node) for node in _of(root.children, "ParticipantObjectIdentification")),
    )


def _participant(node: Node) -> Participant:
    value = node.attributes
    media = _of(node.children, "MediaIdentifier")
    return Participant(
        user=value["UserID"],
        requestor=value["UserIsRequestor"] in ("true", "1"),
        roles=tuple(_code(child) for child in _of(node.children, "RoleIDCode")),
        alternative=value.get("AlternativeUserID", ""),
        name=value.get("UserName", ""),
        network=value.get("NetworkAccessPointID", ""),
        network_type=value.get("NetworkAccessPointTypeCode", ""),
        media=_code(media[0].children[0]) if media else None,
    )


def _subject(node: Node) -> Subject:
    value, (id_type, named) = node.attributes, node.children[:2]
    asked = named.name == "ParticipantObjectQuery"
    return Subject(
        id=value["ParticipantObjectID"],
        id_type=_code(id_type),
        name="" if asked else named.text,
        query=base64.b64decode(named.text) if asked else None,
        type=value.get("ParticipantObjectTypeCode", ""),
        role=value.get("ParticipantObjectTypeCodeRole", ""),
        life_cycle=value.get("ParticipantObjectDataLifeCycle", ""),
        sensitivity=value.get("ParticipantObjectSensitivity", ""),
        details=tuple(
            (child.attributes["type"], base64.b64decode(child.attributes["value"]))
            for child in _of(node.children, "ParticipantObjectDetail")
        ),
        descriptions=tuple(_description(child) for child in _of(node.children, "ParticipantObjectDescription")),
    )


def _description(node: Node) -> Description:
    studies = _of(node.children, "ParticipantObjectContainsStudy")
    flags = {name: _of(node.children, name) for name in ("Encrypted", "Anonymized")}
    said = {name: found[0].text in ("true", "1") if found else None for name, found in flags.items()}
    return Description(
        tuple(child.attributes["UID"] for child in _of(node.children, "MPPS")),
        tuple(child.attributes["Number"] for child in _of(node.children, "Accession")),
        tuple(
            SopClass(
                child.attributes.get("UID", ""),
                int(child.attributes["NumberOfInstances"]),
                tuple(each.attributes["UID"] for each in child.children),
            )
            for child in _of(node.children, "SOPClass")
        ),
        tuple(child.attributes["UID"] for child in studies[0].children) if studies else None,
        said["Encrypted"],
        said["Anonymized"],
    )
