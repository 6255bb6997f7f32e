"""A sealed report on its way into the archive: judged, sent, read back. Its clear bytes stay in this process's memory."""

import io
from dataclasses import dataclass
from typing import Any

from pydicom.filereader import dcmread

from blocks.archive import Archive, Listed, attributes_digest
from blocks.dimse.services import ToStore
from blocks.part10 import read_meta
from blocks.validators import Check
from infra.study.opened import Opener
from policies.report import SOP_CLASSES
from rapha.errors import PeerError, Refusal
from rapha.files import in_memory


@dataclass(frozen=True, slots=True)
class _Report:
    raw: bytes
    study: str
    series: str
    sop_class: str
    sop_uid: str
    syntax: str


def check(opener: Opener, path: str, asked: Check) -> dict[str, Any]:
    """The three checks of a report. asked: how the two validators are asked.

    Raises `Refusal` report-unreadable, sealed-…; `PeerError` validator-….
    """
    from tasks.reading.validate import validate  # only where there is a report

    found = validate(_clear(opener, path), check=asked)
    return {"codes": list(found.codes), "checks": list(found.checks), "warnings": found.warnings}


def store(opener: Opener, path: str, archive: Archive) -> dict[str, Any]:
    """Sends it: "stored", or "known" where the archive has one of its UID. Raises `PeerError` store-refused, dimse-…, stow-…."""
    report = _report(opener, path)
    with in_memory(report.raw) as (_, place):
        sent = archive.store(report.study, [ToStore(place, report.sop_class, report.sop_uid, report.syntax)])
    return {"outcome": sent[report.sop_uid]}


def verify(opener: Opener, path: str, archive: Archive) -> dict[str, Any]:
    """What the archive gives back, compared: "same", "other", or "absent" (also where it cannot be had at all)."""
    report = _report(opener, path)
    found = archive.read_back(report.study, Listed(report.sop_uid, report.sop_class, report.series, "SR"))
    if found is None:
        return {"outcome": "absent"}
    return {"outcome": "same" if found == attributes_digest(report.raw) else "other"}


def _clear(opener: Opener, path: str) -> bytes:
    with opener.open(path) as stream:
        return stream.read()


def _report(opener: Opener, path: str) -> _Report:
    raw = _clear(opener, path)
    try:
        meta = read_meta(raw)
        dataset = dcmread(io.BytesIO(raw), specific_tags=["StudyInstanceUID", "SeriesInstanceUID"])
        named = str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)
    except (PeerError, AttributeError, ValueError, EOFError):
        meta = None
    if meta is None or meta.sop_class not in SOP_CLASSES:
        raise Refusal(["report-unreadable"], "the sealed file is no report", gate="report")
    return _Report(raw, *named, meta.sop_class, meta.sop_instance, meta.transfer_syntax)
