"""The services, each a function on one endpoint: C-ECHO, C-FIND, C-MOVE, C-GET, C-STORE, storage commitment."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.config import IGNORE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import UID
from pynetdicom import build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from blocks.dimse.association import accepted, answered, associated, contexts
from blocks.dimse.streaming import Incoming, Sink
from blocks.endpoint import Endpoint
from rapha.errors import PeerError

VERIFICATION = UID("1.2.840.10008.1.1")
FIND, MOVE, GET = (UID(f"1.2.840.10008.5.1.4.1.2.2.{n}") for n in (1, 2, 3))  # Study Root (PS3.4 C.6.2)
COMMITMENT, COMMITMENT_INSTANCE = UID("1.2.840.10008.1.20.1"), UID("1.2.840.10008.1.20.1.1")
# Refused as out of resources (PS3.4 table C.4-1), and "canceled", which nobody asked for: Orthanc's word for more than its limit.
CUT_OFF = (0xA700, 0xFE00)
PENDING, SUCCESS = (0xFF00, 0xFF01), 0x0000
MOST_CLASSES = 9  # of one C-GET: an association has 128 presentation contexts (PS3.8 9.3.2.2)
MOST_UIDS = 500  # in one key: a UI value ends at 65,534 bytes in Explicit VR (PS3.5 section 7.1.2)
FRAME = ("QueryRetrieveLevel", "SpecificCharacterSet")  # the query's own: no key replaces them
BROKEN_OFF = ("dimse-hung-up", "dimse-timeout", "dimse-slow")  # the association stood, and ended before the answer
Answer = dict[str, Any]


def echo(endpoint: Endpoint) -> None:
    """C-ECHO (PS3.4 annex A). Raises `PeerError`."""
    with associated(endpoint, contexts([VERIFICATION])) as association:
        if status := answered(association, association.send_c_echo(), "C-ECHO"):
            raise _status("dimse-echo", status)


def find(endpoint: Endpoint, level: str, keys: Mapping[str, str], *, most: int = 1_000_000) -> list[Answer]:
    """Answers of a C-FIND (PS3.4 C.4.1) as DICOM JSON. keys: attribute keyword -> value, "" to have it returned.

    Raises `PeerError` dimse-find-refused, dimse-too-many (CUT_OFF, or more than `most`), dimse-timeout.
    """
    with associated(endpoint, contexts([FIND])) as association:
        return answers(association, level, keys, most=most)


def answers(association: Association, level: str, keys: Mapping[str, str], *, most: int = 1_000_000) -> list[Answer]:
    """The same on an association that stands."""
    found: list[Answer] = []
    accepted(association, FIND)
    for status, identifier in association.send_c_find(query_identifier(level, keys), FIND):
        code = answered(association, status, "C-FIND")
        if code in PENDING and identifier is not None:
            found.append(_json(identifier))
            if len(found) > most:
                raise PeerError("dimse-too-many", f"the archive answers with more than {most} matches", peer="pacs")
        elif code in CUT_OFF:
            raise PeerError("dimse-too-many", "the archive does not answer so broad a query whole", peer="pacs")
        elif code != SUCCESS:
            raise _status("dimse-find", code)
    return found


@dataclass(frozen=True, slots=True)
class MoveOutcome:
    """The final answer of a C-MOVE or C-GET: a hint, not a proof. Counts are None where the archive left them out."""

    status: int
    completed: int | None
    failed: int | None
    warning: int | None
    remaining: int | None
    pending: int = 0


def move(
    endpoint: Endpoint,
    keys: Mapping[str, str | Sequence[str]],
    level: str,
    *,
    message_id: int,
    progress: Callable[[int, int], None] | None = None,
) -> MoveOutcome:
    """C-MOVE to our receiver (PS3.4 C.4.2). message_id: what the archive's C-STOREs will name as their originator's.

    Raises `PeerError` for an association that fails, one of BROKEN_OFF where it did so after it stood; any status that was
    answered comes back in the outcome.
    """
    with associated(endpoint, contexts([MOVE]), idle=endpoint.move_idle_seconds) as association:
        accepted(association, MOVE)
        answers = association.send_c_move(query_identifier(level, keys), endpoint.move_destination, MOVE, msg_id=message_id)
        return _outcome(association, answers, "C-MOVE", progress)


def get(
    endpoint: Endpoint,
    keys: Mapping[str, str | Sequence[str]],
    level: str,
    sop_classes: Sequence[str],
    sink: Sink,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> MoveOutcome:
    """C-GET (PS3.4 C.4.3); each object goes to `sink(sop_class, sop_instance, blocks of a file of PS3.10)` while it comes.

    sop_classes: every class of what is asked for, as C-FIND names them, at most MOST_CLASSES: one that is not offered fails the
    whole of it. A sink that raises answers 0xA700, so that nothing counts as delivered that was not kept; its `PeerError` or
    `Refusal` is raised here, anything else of the disk as retrieve-not-kept. The sink runs in another thread than the caller's.
    """
    names = sop_classes[:MOST_CLASSES]
    # A context for each syntax, so that the archive has no reason to transcode what it stores.
    offered = [build_context(name, [syntax]) for name in names for syntax in SYNTAXES]
    roles = [build_role(name, scp_role=True) for name in names]
    coming = Incoming(sink, lambda sop_class, sop_instance, syntax: part10(sop_class, sop_instance, syntax, b""))
    with associated(
        endpoint, [*contexts([GET]), *offered], roles=roles, handlers=[(evt.EVT_C_STORE, coming.keep)]
    ) as association:
        accepted(association, GET)
        coming.attach(association)
        try:
            outcome = _outcome(association, association.send_c_get(query_identifier(level, keys), GET), "C-GET", progress)
        finally:
            coming.end()
    coming.check()
    return outcome


# Explicit VR Little Endian, then everything compressed that is in use, then Implicit: what is stored is asked for as it is.
SYNTAXES = [
    "1.2.840.10008.1.2.1",
    *(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91)),
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2",
]


@dataclass(frozen=True, slots=True)
class ToStore:
    """An object to send: a file of PS3.10 and what its meta information says of it."""

    path: Path
    sop_class: str
    sop_instance: str
    transfer_syntax: str


def store(endpoint: Endpoint, objects: Sequence[ToStore]) -> dict[str, int]:
    """C-STORE (PS3.4 annex B), in the syntax of each file, sent in chunks. SOP instance -> status as answered.

    Raises `PeerError` dimse-no-context where the archive takes none of them, dimse-timeout.
    """
    wanted = sorted({(one.sop_class, one.transfer_syntax) for one in objects})
    offered = [build_context(sop_class, [syntax]) for sop_class, syntax in wanted][:128]
    found: dict[str, int] = {}
    with associated(endpoint, offered) as association:
        for one in objects:
            try:
                status = association.send_c_store(one.path)
            except ValueError:
                found[one.sop_instance] = 0x0122  # SOP class, or its transfer syntax, was not accepted (PS3.7 C.5.6)
                continue
            found[one.sop_instance] = answered(association, status, "C-STORE")
    return found


@dataclass(frozen=True, slots=True)
class Commitment:
    """What an archive commits to (PS3.4 J.3.3). failed: SOP instance -> Failure Reason; classes: SOP instance -> SOP class of
    what is committed; number: in which order reports came, where several did."""

    transaction: str
    committed: frozenset[str]
    failed: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[str, str] = field(default_factory=dict)
    number: int = 0


Elsewhere = Callable[[str, float], Commitment | None]


def commit(
    endpoint: Endpoint,
    references: Sequence[tuple[str, str]],
    transaction: str,
    *,
    seconds: float,
    elsewhere: Elsewhere | None = None,
) -> Commitment:
    """Storage commitment of (SOP class, SOP instance) pairs: N-ACTION, then the archive's N-EVENT-REPORT.

    The report comes on this association, or on a new one at our receiver, which `elsewhere(transaction, seconds)` asks. Raises
    `PeerError` commitment-not-offered, commitment-refused, commitment-timeout.
    """
    came: list[Commitment] = []
    told = threading.Event()

    def report(event: Any) -> tuple[int, None]:
        read = read_commitment(event.event_information)
        if read.transaction == transaction:
            came.append(read)
            told.set()
        return SUCCESS, None

    asked = Dataset()
    asked.TransactionUID = transaction
    asked.ReferencedSOPSequence = [_reference(*pair) for pair in references]
    try:
        handlers = [(evt.EVT_N_EVENT_REPORT, report)]
        patience = max(endpoint.idle_seconds, seconds + 5)
        with associated(endpoint, contexts([COMMITMENT]), handlers=handlers, idle=patience) as association:
            accepted(association, COMMITMENT)
            status, _ = association.send_n_action(asked, 1, COMMITMENT, COMMITMENT_INSTANCE)
            if code := answered(association, status, "N-ACTION"):
                raise _status("commitment", code)
            told.wait(0.5 if elsewhere else seconds)
    except PeerError as error:
        if error.codes == ("dimse-no-context",):
            raise PeerError("commitment-not-offered", "the archive does not offer storage commitment", peer="pacs") from None
        raise
    answer = came[0] if came else elsewhere(transaction, seconds) if elsewhere else None
    if answer is None:
        raise PeerError("commitment-timeout", "the archive did not report its commitment in time", peer="pacs")
    return answer


def read_commitment(information: Dataset) -> Commitment:
    """The information of an N-EVENT-REPORT (PS3.4 table J.3-2)."""
    lost = {
        str(i.ReferencedSOPInstanceUID): int(i.get("FailureReason", 0x0110)) for i in information.get("FailedSOPSequence", [])
    }
    kept = {
        str(i.ReferencedSOPInstanceUID): str(i.get("ReferencedSOPClassUID", ""))
        for i in information.get("ReferencedSOPSequence", [])
        if str(i.ReferencedSOPInstanceUID) not in lost
    }
    return Commitment(str(information.get("TransactionUID", "")), frozenset(kept), lost, kept)


def _reference(sop_class: str, sop_instance: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, sop_instance
    return item


def _outcome(
    association: Association, answers: Iterator[Any], what: str, progress: Callable[[int, int], None] | None
) -> MoveOutcome:
    for pending, (status, _) in enumerate(answers):
        code = answered(association, status, what)
        counts = [_count(status, f"NumberOf{name}Suboperations") for name in ("Completed", "Failed", "Warning", "Remaining")]
        if code not in PENDING:
            return MoveOutcome(code, counts[0], counts[1], counts[2], counts[3], pending)
        if progress and counts[0] is not None:
            progress(counts[0], counts[0] + (counts[3] or 0))
    raise PeerError("dimse-timeout", f"the archive did not end a {what}", peer="pacs")


def _count(status: Dataset, name: str) -> int | None:
    value = status.get(name)
    return int(value) if value is not None else None


def query_identifier(level: str, keys: Mapping[str, str | Sequence[str]]) -> Dataset:
    identifier = Dataset()
    identifier.QueryRetrieveLevel = level
    identifier.SpecificCharacterSet = "ISO_IR 192"
    for keyword, value in keys.items():
        tag = tag_for_keyword(keyword)
        if tag is None or keyword in FRAME:
            raise PeerError("dimse-key-unknown", "a query key is no attribute of PS3.6 that is matched", peer="pacs")
        # What is matched may be a range or a wildcard, and a warning about it would quote it.
        given = value if isinstance(value, str) else list(value)
        identifier.add(DataElement(tag, dictionary_VR(tag), given, validation_mode=IGNORE))
    return identifier


def _json(identifier: Dataset) -> Answer:
    """An answer as DICOM JSON (PS3.18 annex F); what an archive encodes wrongly is left out, never guessed."""
    out: Answer = {}
    for element in identifier:
        try:
            out[f"{element.tag:08X}"] = element.to_json_dict(None, 1 << 20)
        except (ValueError, TypeError, UnicodeDecodeError, AttributeError):
            continue
    return out


def part10(sop_class: str, sop_instance: str, transfer_syntax: str, content: bytes) -> bytes:
    """A data set as it was sent, with the preamble and meta information that make it a file (PS3.10 section 7.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(sop_instance)
    meta.TransferSyntaxUID = UID(transfer_syntax)
    out = DicomBytesIO()
    out.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(out, meta, enforce_standard=True)
    return out.getvalue() + content


def _status(what: str, code: int) -> PeerError:
    return PeerError(f"{what}-refused", f"the archive answered with status 0x{code:04X}", peer="pacs")
