"""The same archive over DIMSE: C-ECHO, C-FIND, C-MOVE, C-GET, C-STORE and storage commitment (PS3.4 annexes A, B, C and J).

It gives back what it was given; a C-STORE of a known UID with other content is refused. For the demo and for tests, on loopback.
"""

import io
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, AllTransferSyntaxes
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.presentation import AllStoragePresentationContexts, build_context

from infra.hospital.cohort import file_name
from infra.hospital.index import INSTANCE, SERIES, Index, Stored

for _name in ("LOG_HANDLER_LEVEL", "LOG_REQUEST_IDENTIFIERS", "LOG_RESPONSE_IDENTIFIERS"):
    setattr(_config, _name, "none" if _name == "LOG_HANDLER_LEVEL" else False)

VERIFICATION, COMMITMENT = UID("1.2.840.10008.1.1"), UID("1.2.840.10008.1.20.1")
FIND, MOVE, GET = (UID(f"1.2.840.10008.5.1.4.1.2.2.{n}") for n in (1, 2, 3))  # Study Root
LEVELS = {"STUDY": "studies", "SERIES": "series", "IMAGE": "instances"}
SUCCESS, PENDING, CANCELED, NO_SUCH_DESTINATION = 0x0000, 0xFF00, 0xFE00, 0xA801
IDENTIFIER_WRONG, CANNOT_UNDERSTAND, DUPLICATE = 0xA900, 0xC000, 0x0111
NOT_STORED = 0x0112  # No such object instance (PS3.3 C.14.1.1)
PLAIN = (UID("1.2.840.10008.1.2"), UID("1.2.840.10008.1.2.1"))
COUNTS = {"00201206": SERIES, "00201208": INSTANCE}  # Number of Study Related Series, Instances: computed, never stored
Address = tuple[str, int]


class DimseArchive:
    """One archive's DIMSE side over the folder and index that its DICOMweb side serves.

    destinations: AE title -> address, for C-MOVE and for the reports of storage commitment.
    """

    def __init__(self, folder: Path, index: Index, ae_title: str, destinations: Mapping[str, Address]) -> None:
        self._folder, self._index, self._destinations = folder, index, dict(destinations)
        self._title = ae_title
        self._writing = threading.Lock()

    def start(self, host: str, port: int) -> int:
        """Serves in threads of its own; the port."""
        ae = AE(self._title)
        ae.maximum_pdu_size = 131072
        for name in [str(context.abstract_syntax) for context in AllStoragePresentationContexts]:
            # Every transfer syntax: what comes is kept as it came. Both roles: C-GET sends on the caller's association.
            ae.add_supported_context(name, list(AllTransferSyntaxes), scu_role=True, scp_role=True)
        for service in (VERIFICATION, FIND, MOVE, GET, COMMITMENT):
            ae.add_supported_context(service)
        handlers: list[Any] = [
            (evt.EVT_C_ECHO, lambda event: SUCCESS),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_C_MOVE, self._move),
            (evt.EVT_C_GET, self._get),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._commit),
            (evt.EVT_CONN_OPEN, _no_delay),
        ]
        server: Any = ae.start_server((host, port), block=False, evt_handlers=handlers)
        return int(server.socket.getsockname()[1])

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        level = LEVELS.get(str(event.identifier.get("QueryRetrieveLevel", "")))
        if level is None:
            yield IDENTIFIER_WRONG, None
            return
        keys, fields = _keys(event.identifier)
        for answer in self._index.find(level, keys, fields):
            if event.is_cancelled:
                yield CANCELED, None
                return
            yield PENDING, self._answered(answer, event.identifier)

    def _answered(self, answer: dict[str, Any], asked: Dataset) -> Dataset:
        """What was asked for and nothing else, absent attributes empty (PS3.4 C.1.4)."""
        out = Dataset()
        full = Dataset.from_json({tag: value for tag, value in answer.items() if "BulkDataURI" not in value})
        for element in asked:
            name = f"{element.tag:08X}"
            if name in COUNTS:
                below = self._index.under(str(full.StudyInstanceUID))
                out.add_new(element.tag, "IS", len({stored.uid(COUNTS[name]) for stored in below}))
            elif element.tag in full:
                out[element.tag] = full[element.tag]
            else:
                out.add_new(element.tag, element.VR, None)
        out.QueryRetrieveLevel = asked.QueryRetrieveLevel
        if "SpecificCharacterSet" in full:
            out.SpecificCharacterSet = full.SpecificCharacterSet
        return out

    def _wanted(self, identifier: Dataset) -> list[Stored]:
        uids = [_list(identifier, name) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
        found = [stored for study in uids[0] for stored in self._index.under(study)]
        below = [(SERIES, uids[1]), (INSTANCE, uids[2])]
        return [stored for stored in found if all(not wanted or stored.uid(tag) in wanted for tag, wanted in below)]

    def _move(self, event: Any) -> Iterator[Any]:
        address = self._destinations.get(str(event.move_destination).strip())
        if address is None:
            yield None, None
            return
        wanted = self._wanted(event.identifier)
        contexts = {(stored.attributes["00080016"]["Value"][0], stored.transfer_syntax) for stored in wanted}
        yield (*address, {"contexts": _contexts(contexts)}) if contexts else address
        yield from self._sent(event, wanted)

    def _get(self, event: Any) -> Iterator[Any]:
        """In the stored transfer syntax where the caller took it, else plain data in the plain one that it took."""
        taken: dict[str, list[UID]] = {}
        for context in event.assoc.accepted_contexts:
            taken.setdefault(str(context.abstract_syntax), []).extend(context.transfer_syntax)
        for one in self._sent(event, self._wanted(event.identifier)):
            yield one if isinstance(one, int) or one[1] is None else (one[0], _in_one_of(one[1], taken))

    def _sent(self, event: Any, wanted: list[Stored]) -> Iterator[Any]:
        yield len(wanted)
        for stored in wanted:
            if event.is_cancelled:
                yield CANCELED, None
                return
            yield PENDING, dcmread(stored.path)

    def _store(self, event: Any) -> int:
        raw = event.encoded_dataset(include_meta=True)
        try:
            dataset = dcmread(io.BytesIO(raw))
            uid = str(dataset.SOPInstanceUID)
            str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)
        except (AttributeError, ValueError, EOFError):
            return CANNOT_UNDERSTAND
        path = self._folder / file_name(uid)
        with self._writing:
            if uid in self._index:
                return SUCCESS if _content(self._index.path(uid)) == _content(io.BytesIO(raw)) else DUPLICATE
            path.write_bytes(raw)
            self._index.add(path, dataset)
        return SUCCESS

    def _commit(self, event: Any) -> tuple[int, Dataset | None]:
        """Takes the request; the report follows on a new association, as PS3.4 J.3.3 allows."""
        information, caller = event.action_information, str(event.assoc.requestor.ae_title).strip()
        address = self._destinations.get(caller)
        if address is None or event.action_type != 1 or "TransactionUID" not in information:
            return 0x0110, None
        threading.Thread(target=self._report, args=(address, caller, information), daemon=True).start()
        return SUCCESS, None

    def _report(self, address: Address, caller: str, information: Dataset) -> None:
        kept, failed = Dataset(), []
        kept.TransactionUID, kept.ReferencedSOPSequence = information.TransactionUID, []
        for item in information.ReferencedSOPSequence:
            if str(item.ReferencedSOPInstanceUID) in self._index:
                kept.ReferencedSOPSequence.append(item)
            else:
                item.FailureReason = NOT_STORED
                failed.append(item)
        if failed:
            kept.FailedSOPSequence = failed
        ae = AE(self._title)
        ae.add_requested_context(COMMITMENT)
        roles: list[Any] = [build_role(COMMITMENT, scp_role=True)]
        association = ae.associate(*address, ae_title=caller, ext_neg=roles)
        if association.is_established:
            event_type = 2 if failed else 1
            association.send_n_event_report(kept, event_type, COMMITMENT, "1.2.840.10008.1.20.1.1")
            association.release()


def _in_one_of(dataset: Dataset, taken: Mapping[str, list[UID]]) -> Dataset:
    """The data set as it is stored, or written anew where only the other of the two plain syntaxes was taken."""
    stored, syntaxes = dataset.file_meta.TransferSyntaxUID, taken.get(str(dataset.SOPClassUID), [])
    others = [syntax for syntax in syntaxes if syntax in PLAIN]
    if stored in syntaxes or stored not in PLAIN or not others:
        return dataset
    out = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = others[0]
    dcmwrite(out, dataset, implicit_vr=others[0] == PLAIN[0], little_endian=True)
    return dcmread(io.BytesIO(out.getvalue()))


def _keys(identifier: Dataset) -> tuple[dict[str, str], list[str]]:
    """(attributes with a value to match, attributes to return)."""
    keys, fields = {}, []
    for element in identifier:
        name = f"{element.tag:08X}"
        if name in ("00080052", "00080005") or name in COUNTS:
            continue
        fields.append(name)
        values = element.value if isinstance(element.value, list) else [element.value]
        text = "\\".join(str(value) for value in values if value not in (None, ""))
        if text and element.VR != "SQ":
            keys[name] = text
    return keys, fields


def _list(identifier: Dataset, name: str) -> list[str]:
    value = identifier.get(name)
    many = [value] if value is None or isinstance(value, str) else list(value)
    return [str(one) for one in many if one]


def _contexts(wanted: set[tuple[str, str]]) -> list[Any]:
    return [build_context(sop_class, [syntax]) for sop_class, syntax in sorted(wanted)][:128]


def _no_delay(event: Any) -> None:
    event.assoc.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _content(source: Path | io.BytesIO) -> bytes:
    """The data set's bytes, without preamble and meta information."""
    dataset = dcmread(source)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    out = io.BytesIO()
    dcmwrite(out, dataset, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return out.getvalue()
