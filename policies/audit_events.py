"""From what the reading service does to the audit message that says so: one function, `compose`.

An act is told once (`stage` "once"), or by its begin and its end. A transfer's begin is a message of its own in the standard
(110102); the other kinds are the same message twice, told apart by an event type code of this project (99RAPHA).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from policies.audit_codes import (
    APPLICATION,
    AUDIT_LOG,
    DCM,
    DESTINATION,
    DESTINATION_MEDIA,
    EVENT_TYPES,
    EVENTS,
    PATIENT_NUMBER,
    RESTRICTED_FUNCTION,
    RFC3881,
    ROLES,
    SOP_CLASS_UID,
    SOURCE,
    SOURCE_MEDIA,
    STUDY_UID,
    URI,
)
from policies.audit_message import Code, Description, Event, Message, Participant, SopClass, Source, Subject
from policies.audit_schema import replaced, representable
from rapha.errors import Refusal

Stage = Literal["once", "begin", "end"]
NO_PATIENT = "<none>"  # what is written where no patient is known; as dcm4chee does
LOCAL = "99RAPHA"
STAGES = {"begin": "Begun", "end": "Ended"}
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT_VR = "1.2.840.10008.1.2"
# kind -> (event, default action, default event type). `store` is a transfer from here; `operator` is what a person did by hand.
KINDS: Mapping[str, tuple[str, str, str]] = {
    **{name: (name, "E", "") for name in ("query", "alert", "login", "application", "network-entry")},
    **{name: (name, "R", "") for name in ("access", "transfer", "export", "audit-log", "order", "patient-record")},
    "store": ("transfer", "C", ""),
    "delete": ("delete", "D", ""),
    "import": ("import", "C", ""),
    "procedure-record": ("procedure-record", "U", ""),
    "operator": ("alert", "E", RESTRICTED_FUNCTION),
}
# Kinds in which somebody met what belongs to a patient.
PHI_KINDS = frozenset(
    {"access", "transfer", "store", "export", "import", "delete", "query", "order", "patient-record", "procedure-record"}
)


@dataclass(frozen=True, slots=True)
class Patient:
    id: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Study:
    uid: str
    accessions: tuple[str, ...] = ()
    sop_classes: tuple[SopClass, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """What is done. person: who wants it (a user's name, or a process as `name@machine`).

    source, destination: who sends and who receives (AE title or URL), of transfers, queries, exports and imports; for a query
    the one who asks and the one who answers. query: the data set or URL, with its SOP class and transfer syntax where it is
    DICOM's. subject: what an operator or an alert is about, never an identifier of a patient. type: an event type of CID 401.
    The source of an alert is the peer that caused it.
    """

    person: str
    action: str = ""
    source: str = ""
    destination: str = ""
    source_host: str = ""
    destination_host: str = ""
    patient: Patient | None = None
    studies: tuple[Study, ...] = ()
    query: bytes = b""
    sop_class: str = STUDY_ROOT_FIND
    transfer_syntax: str = IMPLICIT_VR
    subject: str = ""
    type: str = ""


def compose(
    kind: str, act: Act, *, at: int, outcome: int, source: Source, stage: Stage = "once", reason: str = "", operation: str = ""
) -> Message:
    """The message. at: milliseconds since the epoch; reason: codes, for the outcome's description. `Refusal` audit-kind."""
    if kind not in KINDS:
        raise Refusal(["audit-kind"], "there is no such kind of audit message")
    name, action, event_type = KINDS[kind]
    if name == "transfer" and stage == "begin":
        name, action = "begin-transfer", "E"
    else:
        action = act.action or action
    code, text = EVENTS[name]
    types = tuple(Code(each, DCM, EVENT_TYPES.get(each, each)) for each in (act.type or event_type,) if each)
    if stage != "once" and name not in ("begin-transfer", "transfer"):
        types += (Code(stage, LOCAL, STAGES[stage]),)
    event = Event(Code(code, DCM, text), action, at, outcome, types, replaced(reason))
    return Message(event, _participants(kind, act), source, _subjects(kind, act, operation))


def _participants(kind: str, act: Act) -> tuple[Participant, ...]:
    person = Participant(replaced(act.person), requestor=True)
    if kind in ("transfer", "store", "query"):
        return (*_movers(act, SOURCE, DESTINATION), person)
    if kind == "export":
        return (*_movers(act, SOURCE, DESTINATION_MEDIA), person)
    if kind == "import":
        return (*_movers(act, SOURCE_MEDIA, DESTINATION), person)
    if kind == "application":
        return (Participant(replaced(act.person), requestor=True, roles=(_role(APPLICATION),)),)
    if kind == "alert" and act.source:  # A.5.3.11: who saw it, and who did it
        kind_of_host = ("2" if _is_address(act.source_host) else "1") if act.source_host else ""
        return person, Participant(replaced(act.source), network=replaced(act.source_host), network_type=kind_of_host)
    return (person,)


def _movers(act: Act, source: str, destination: str) -> tuple[Participant, Participant]:
    sides = ((act.source, act.source_host, source), (act.destination, act.destination_host, destination))
    one, other = (
        Participant(
            replaced(user),
            roles=(_role(role),),
            network=replaced(host),
            network_type=("2" if _is_address(host) else "1") if host else "",
        )
        for user, host, role in sides
    )
    return one, other


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _role(code: str) -> Code:
    return Code(code, DCM, ROLES[code])


def _subjects(kind: str, act: Act, operation: str) -> tuple[Subject, ...]:
    extra: tuple[tuple[str, bytes], ...] = (("rapha-operation", operation.encode()),) if operation else ()
    if kind in ("application", "login", "network-entry"):
        return ()
    if kind == "audit-log":
        log = Subject(replaced(act.subject), Code(URI, RFC3881, "URI"), AUDIT_LOG, type="2", role="13", details=extra)
        return (log,)
    if kind in ("alert", "operator"):  # A.5.3.11 wants this of every object that an alert is about
        extra += (("Alert Description", (act.subject or kind).encode(errors="backslashreplace")),)
    subjects = tuple(_study(one, extra) for one in act.studies)
    if act.patient is not None or kind in (
        "access",
        "transfer",
        "store",
        "delete",
        "order",
        "patient-record",
        "procedure-record",
    ):
        subjects += (_patient(act.patient or Patient(NO_PATIENT)),)
    if kind == "query":
        details = (("TransferSyntax", act.transfer_syntax.encode()), *extra)
        id_type = Code(SOP_CLASS_UID, DCM, "SOP Class UID")
        subjects += (Subject(act.sop_class, id_type, query=act.query, type="2", role="3", details=details),)
    if kind in ("alert", "operator") and act.subject:
        subjects += (Subject(replaced(act.subject), Code(URI, RFC3881, "URI"), type="2", role="13", details=extra),)
    return subjects


def _study(one: Study, extra: tuple[tuple[str, bytes], ...]) -> Subject:
    described = (Description(accessions=tuple(map(replaced, one.accessions)), sop_classes=one.sop_classes),)
    return Subject(
        replaced(one.uid),
        Code(STUDY_UID, DCM, "Study Instance UID"),
        type="2",
        role="3",
        details=_raw(one.uid) + extra,
        descriptions=described if one.accessions or one.sop_classes else (),
    )


def _patient(one: Patient) -> Subject:
    details = _raw(one.id)
    return Subject(
        replaced(one.id), Code(PATIENT_NUMBER, RFC3881, "Patient Number"), replaced(one.name), type="1", role="1", details=details
    )


def _raw(identifier: str) -> tuple[tuple[str, bytes], ...]:
    """An identifier that XML cannot hold stands beside its readable form as bytes (PS3.15 A.5.1.1, ValuePair)."""
    return () if representable(identifier) else (("raw-identifier", identifier.encode(errors="surrogatepass")),)
