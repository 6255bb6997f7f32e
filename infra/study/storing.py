"""A sealed report or segmentation on its way into the archive: judged, sent, read back.

Its clear bytes stay in this process's memory.
"""

import io
from dataclasses import dataclass
from typing import Any

from pydicom.filereader import dcmread

from blocks.archive import Archive, Listed, attribute_digests
from blocks.dimse.services import ToStore
from blocks.part10 import read_meta
from blocks.validators import Check
from infra.study.opened import Opener
from policies import coercion
from policies.coercion import Compared
from policies.report import SEGMENTATION, SOP_CLASSES
from rapha.errors import PeerError, Refusal
from rapha.files import in_memory


@dataclass(frozen=True, slots=True)
class _Object:
    raw: bytes
    study: str
    series: str
    sop_class: str
    sop_uid: str
    syntax: str
    modality: str


def check(opener: Opener, path: str, asked: Check) -> dict[str, Any]:
    """The three checks of a report, or the two of a segmentation. asked: how the validators are asked.

    Raises `Refusal` report-unreadable, sealed-…; `PeerError` validator-….
    """
    from tasks.reading.validate import validate, validate_segmentation  # only where there is a report

    made = _object(opener, path)
    found = (validate_segmentation if made.sop_class == SEGMENTATION else validate)(made.raw, check=asked)
    return {"codes": list(found.codes), "checks": list(found.checks), "warnings": found.warnings}


def store(opener: Opener, path: str, archive: Archive) -> dict[str, Any]:
    """Sends it: "stored", or "known" where the archive has one of its UID. Raises `PeerError` store-refused, dimse-…, stow-…."""
    report = _object(opener, path)
    with in_memory(report.raw) as (_, place):
        sent = archive.store(report.study, [ToStore(place, report.sop_class, report.sop_uid, report.syntax)])
    return {"outcome": sent[report.sop_uid]}


def verify(opener: Opener, path: str, archive: Archive) -> dict[str, Any]:
    """What the archive gives back, compared: "same", "coerced" with the `tags`, "other", or "absent".

    Raises `PeerError(dimse-no-context)` where the archive gives nothing back on our own association, and of the archive.
    """
    report = _object(opener, path)
    found = archive.given_back(report.study, Listed(report.sop_uid, report.sop_class, report.series, report.modality))
    return _said(Compared("absent") if found is None else _compared(report.raw, found))


def compare(opener: Opener, path: str, given: str) -> dict[str, Any]:
    """The same of what the archive sent to our receiver, which lies sealed at `given`."""
    return _said(_compared(_object(opener, path).raw, _clear(opener, given)))


def _compared(ours: bytes, theirs: bytes) -> Compared:
    return coercion.compare(attribute_digests(ours), attribute_digests(theirs))


def _said(found: Compared) -> dict[str, Any]:
    return {"outcome": found.outcome, "tags": list(found.tags)}


def _clear(opener: Opener, path: str) -> bytes:
    with opener.open(path) as stream:
        return stream.read()


def _object(opener: Opener, path: str) -> _Object:
    raw = _clear(opener, path)
    try:
        meta = read_meta(raw)
        dataset = dcmread(io.BytesIO(raw), specific_tags=["StudyInstanceUID", "SeriesInstanceUID", "Modality"])
        named = str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID)
        modality = str(dataset.Modality)
    except (PeerError, AttributeError, ValueError, EOFError):
        meta = None
    if meta is None or meta.sop_class not in (*SOP_CLASSES, SEGMENTATION):
        raise Refusal(["report-unreadable"], "the sealed file is no report of ours, nor a segmentation", gate="report")
    return _Object(raw, *named, meta.sop_class, meta.sop_instance, meta.transfer_syntax, modality)
