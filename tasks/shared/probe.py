"""What an archive can do, asked and not assumed: the capability record that on-boarding writes."""

import json
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydicom.datadict import tag_for_keyword
from pynetdicom.association import Association
from pynetdicom.presentation import build_context

from blocks.archive import STUDY_KEYS, Archive, Capabilities
from blocks.dimse import services
from blocks.dimse.association import associated, contexts
from blocks.dimse.services import COMMITMENT, FIND, GET, MOVE, SYNTAXES, VERIFICATION
from blocks.endpoint import Endpoint
from blocks.pacs import Answer, value_of
from rapha.canonical import canonical, parse
from rapha.errors import PeerError, Refusal
from rapha.files import made_folder, replace_durably

SERVICES = {"C-ECHO": VERIFICATION, "C-FIND": FIND, "C-MOVE": MOVE, "C-GET": GET, "storage commitment": COMMITMENT}
STORAGE = {
    "CT Image": "1.2.840.10008.5.1.4.1.1.2",
    "MR Image": "1.2.840.10008.5.1.4.1.1.4",
    "Digital X-Ray Image": "1.2.840.10008.5.1.4.1.1.1.1",
    "VL Whole Slide Microscopy Image": "1.2.840.10008.5.1.4.1.1.77.1.6",
    "Comprehensive SR": "1.2.840.10008.5.1.4.1.1.88.33",
    "Comprehensive 3D SR": "1.2.840.10008.5.1.4.1.1.88.34",
    "Segmentation": "1.2.840.10008.5.1.4.1.1.66.4",
}
PATIENT_ROOT = "1.2.840.10008.5.1.4.1.2.1.1"
MAX_RECORD = 1 << 16
DAYS = (1, 7, 31, 366, 36600)  # how far back the studies of a query lie
MOST_ANSWERS = 2000
ROUND = frozenset((50, 100, 200, 250, 256, 300, 400, 500, 512, 999, 1000, 1001, 1024, 2000))


def probe(archive: Archive, at: int) -> dict[str, Any]:
    """The record. Nothing in it names a patient or a study; nothing is stored in the archive.

    services, stores: names that the archive accepts; syntaxes: in which transfer syntaxes each; roots, max_pdu; tls: version,
    cipher and the end of the certificate as they were seen, None in clear; levels: how a query at each ended; relational: whether
    instances can be asked for without their series; keys: attributes of a study that it fills in; limit: how many answers came to
    one query, and the sign of a limit in that; stow: whether its DICOMweb side takes objects. Raises `PeerError` where a
    configured side does not answer.
    """
    endpoint = archive.endpoint
    record: dict[str, Any] = {"version": 2, "endpoint": endpoint.name, "at": at, "services": [], "stores": [], "tls": None}
    if endpoint.port:
        record |= _negotiated(archive)
        began = time.monotonic()
        archive.echo()
        record["echo_ms"] = round(1000 * (time.monotonic() - began))
        if "C-FIND" in record["services"]:
            record |= _queried(endpoint, at)
    if endpoint.dicomweb_url:
        web = archive.web_alone()
        web.echo()
        record["stow"] = web.offers_stow()
        record["services"] = sorted({*record["services"], "QIDO-RS", *(["STOW-RS"] if record["stow"] else [])})
    return record


def _negotiated(archive: Archive) -> dict[str, Any]:
    """What one association shows (PS3.8 section 7.1.1): services, SOP classes with their transfer syntaxes, TLS."""
    offered = contexts([*map(str, SERVICES.values()), PATIENT_ROOT])
    offered += [build_context(name, [syntax]) for name in STORAGE.values() for syntax in SYNTAXES]
    with associated(archive.endpoint, offered) as association:
        taken = [(str(one.abstract_syntax), str(one.transfer_syntax[0])) for one in association.accepted_contexts]
        accepted = {name for name, _ in taken}
        largest, tls = association.acceptor.maximum_length, _seen(association)
    stores = sorted(name for name, uid in STORAGE.items() if uid in accepted)
    roots = {"study": str(FIND), "patient": PATIENT_ROOT}
    return {
        "services": sorted(name for name, uid in SERVICES.items() if str(uid) in accepted),
        "stores": stores,
        "syntaxes": {name: sorted(syntax for uid, syntax in taken if uid == STORAGE[name]) for name in stores},
        "roots": sorted(name for name, uid in roots.items() if uid in accepted),
        "max_pdu": int(largest or 0),
        "tls": tls,
    }


def _seen(association: Association) -> dict[str, str] | None:
    wire = association.dul.socket.socket if association.dul.socket else None
    if not isinstance(wire, ssl.SSLSocket):
        return None
    cipher, certificate = wire.cipher(), wire.getpeercert() or {}
    until = str(certificate.get("notAfter", ""))
    return {"version": str(wire.version()), "cipher": str(cipher[0] if cipher else ""), "certificate_until": until}


def _queried(endpoint: Endpoint, at: int) -> dict[str, Any]:
    """What queries show, asked of the studies of the last day, week, month, years: the first of these in which there are any."""
    limit: dict[str, Any] = {"answers": 0, "sign": ""}
    answers: list[Answer] = []
    levels = dict.fromkeys(("STUDY", "SERIES", "IMAGE"), "nothing-to-ask")
    for days in DAYS:
        since = time.strftime("%Y%m%d", time.gmtime(max(0, at - days * 86400)))
        try:
            answers = services.find(
                endpoint, "STUDY", {**dict.fromkeys(STUDY_KEYS, ""), "StudyDate": f"{since}-"}, most=MOST_ANSWERS
            )
        except PeerError as error:
            if error.codes == ("dimse-too-many",):
                limit["sign"] = "more-or-refused"
                break
            levels["STUDY"] = error.codes[0]
            return {"levels": levels, "relational": None, "keys": [], "limit": limit}
        if answers:
            limit = {"answers": len(answers), "sign": "round-number" if len(answers) in ROUND else ""}
            break
    levels["STUDY"] = "answered"
    keys = sorted(key for key in STUDY_KEYS if any(value_of(answer, _tag(key)) for answer in answers))
    study = value_of(answers[0], _tag("StudyInstanceUID")) if answers else ""
    below = _below(endpoint, study, levels) if study else None
    return {"levels": levels, "relational": below, "keys": keys, "limit": limit}


def _below(endpoint: Endpoint, study: str, levels: dict[str, str]) -> bool | None:
    """Fills in `levels` below a study; whether its instances come without naming their series (PS3.4 C.4.1.2.2.2)."""
    asked = {"StudyInstanceUID": study, "SeriesInstanceUID": ""}
    try:
        series = services.find(endpoint, "SERIES", asked)
        levels["SERIES"] = "answered" if series else "nothing"
        one = value_of(series[0], _tag("SeriesInstanceUID")) if series else ""
        instances = services.find(endpoint, "IMAGE", {**asked, "SeriesInstanceUID": one, "SOPInstanceUID": ""}) if one else []
        levels["IMAGE"] = "answered" if instances else "nothing"
    except PeerError as error:
        levels["IMAGE" if levels["SERIES"] == "answered" else "SERIES"] = error.codes[0]
        return None
    try:
        return len(services.find(endpoint, "IMAGE", {**asked, "SOPInstanceUID": ""})) >= max(1, len(instances))
    except PeerError:
        return False


def _tag(keyword: str) -> str:
    return f"{tag_for_keyword(keyword):08X}"


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Keeps the record as `<folder>/<endpoint>.json`, durably."""
    made_folder(folder, "state-dir-unusable")
    path = folder / f"{record['endpoint']}.json"
    try:
        replace_durably(path, canonical(dict(record)) + b"\n")
    except OSError as error:
        raise PeerError("capabilities-unwritable", f"the record cannot be kept: {error.strerror}", peer="disk") from None
    return path


def read_record(folder: Path, name: str) -> Capabilities:
    """What the last probe of this endpoint found; nothing where none was made. Raises `Refusal(capabilities-odd)`."""
    try:
        raw = (folder / f"{name}.json").read_bytes()
    except FileNotFoundError:
        return Capabilities()
    except OSError:
        raw = b""
    try:
        record = parse(raw, limit=MAX_RECORD, what="capability record")
        named = (frozenset(map(str, record["services"])), frozenset(map(str, record["stores"])))
        return Capabilities(*named, str(record["at"]), _limit(record.get("limit") or {}))
    except (Refusal, KeyError, TypeError, AttributeError, json.JSONDecodeError):
        said = "the capability record is not one that a probe wrote: probe again"
        raise Refusal(["capabilities-odd"], said, gate="pacs") from None


def _limit(found: Mapping[str, Any]) -> int | None:
    """A count of answers is a limit only where there is a sign of one; a record by DICOMweb alone has none."""
    answers = found.get("answers")
    return answers if found.get("sign") and type(answers) is int and answers > 0 else None
