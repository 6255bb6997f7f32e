"""What the study reader keeps of a report: sealed like an instance, in clear in memory alone, and what it refers to."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from pydicom.dataset import Dataset
from pydicom.filereader import dcmread

from blocks.instances import SealedInstance, SealedWriter
from infra.reader.decode import MAX_HEADER, PARSER_ERRORS
from infra.study.images import FOREIGN
from infra.study.opened import Opened
from rapha.errors import PeerError, Refusal

EVIDENCE = ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")


def headers(opened: Opened, indexes: Sequence[int]) -> list[Dataset]:
    """The clear headers of these instances, without their pixels.

    Raises `Refusal` record-malformed, sealed-…, study-file-missing; `PeerError` study-file-unreadable.
    """
    found: list[Dataset] = []
    for index in indexes:
        with opened.stream(index) as stream:
            stream.budget = MAX_HEADER
            try:
                found.append(dcmread(cast(BinaryIO, stream), stop_before_pixels=True))
            except FOREIGN:
                raise Refusal(["record-malformed"], "an instance's header cannot be read whole") from None
    return found


def keep(report: bytes, folder: Path, recipient: X25519PublicKey) -> SealedInstance:
    """The report sealed and durable. Raises `PeerError` study-disk."""
    try:
        writer = SealedWriter(folder, recipient)
        try:
            writer.write(report)
            return writer.finish()
        finally:
            writer.discard()
    except OSError:
        raise PeerError("study-disk", "a report cannot be written to disk", peer="study") from None


def referenced(report: bytes) -> list[str]:
    """SOP Instance UIDs that a structured report names as its evidence (PS3.3 C.17.2), sorted.

    Raises `Refusal` report-malformed.
    """
    try:
        dataset = dcmread(io.BytesIO(report))
        lists = [dataset.get(name) or () for name in EVIDENCE]
        return sorted(
            {
                str(instance.ReferencedSOPInstanceUID)
                for study in (item for listed in lists for item in listed)
                for series in study.ReferencedSeriesSequence
                for instance in series.ReferencedSOPSequence
            }
        )
    except PARSER_ERRORS:
        raise Refusal(["report-malformed"], "the report does not say what it refers to") from None
