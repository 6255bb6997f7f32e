"""A report in the study reader's hands: clear in memory alone, sealed on disk, its references read from itself."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.instances import SealedReader, SealedWriter
from blocks.part10 import read_meta
from infra.hospital.reading_cohort import file_bytes, make_study
from infra.study.opened import Opener, SealedFile
from infra.study.reports import headers, keep, referenced
from rapha.canonical import digest
from rapha.errors import PeerError, Refusal
from rapha.files import in_memory

PRIVATE = X25519PrivateKey.generate()


def evidence(*uids: str) -> Dataset:
    study, series = Dataset(), Dataset()
    series.ReferencedSOPSequence = [Dataset() for _ in uids]
    for item, uid in zip(series.ReferencedSOPSequence, uids, strict=True):
        item.ReferencedSOPInstanceUID = uid
    study.ReferencedSeriesSequence = [series]
    return study


def test_a_report_refers_to_what_its_evidence_names() -> None:
    report = make_study("ct", 1, 0)[0]
    assert referenced(file_bytes(report)) == []
    report.CurrentRequestedProcedureEvidenceSequence = [evidence("1.2.3", "1.2.4")]
    report.PertinentOtherEvidenceSequence = [evidence("1.2.9"), evidence("1.2.4")]
    assert referenced(file_bytes(report)) == ["1.2.3", "1.2.4", "1.2.9"]
    with pytest.raises(Refusal) as refused:
        referenced(b"no DICOM file")
    assert refused.value.codes == ("report-malformed",)


def test_headers_are_whole_and_have_no_pixels(tmp_path: Path) -> None:
    study = make_study("ct", 1, 0)[:2]
    opened = Opener(PRIVATE, [tmp_path]).study()
    opened.add([sealed(tmp_path, file_bytes(one)) for one in study])
    found = headers(opened, [1, 0])
    assert [one.SOPInstanceUID for one in found] == [study[1].SOPInstanceUID, study[0].SOPInstanceUID]
    assert all(one.PatientID == study[0].PatientID and "PixelData" not in one and one.Rows == 256 for one in found)


def sealed(folder: Path, raw: bytes) -> SealedFile:
    writer = SealedWriter(folder, PRIVATE.public_key())
    writer.write(raw)
    meta = read_meta(raw)
    assert meta is not None
    return SealedFile(str(writer.finish().path), digest(raw[meta.length :]))


def test_a_report_is_clear_in_memory_and_sealed_on_disk(tmp_path: Path) -> None:
    raw = file_bytes(make_study("ct", 1, 0)[0])
    kept = keep(raw, tmp_path, PRIVATE.public_key())
    assert raw[:4000] not in kept.path.read_bytes() and kept.size == len(raw)
    with SealedReader(kept.path, PRIVATE) as stream:
        assert stream.read() == raw
    with in_memory(raw) as (_, path):
        assert path.read_bytes() == raw and dcmread(path).Modality == "CT"
    assert not path.exists() and [one.suffix for one in tmp_path.iterdir()] == [".sealed"]
    with pytest.raises(PeerError) as failed:
        keep(raw, tmp_path / "none", PRIVATE.public_key())
    assert failed.value.codes == ("study-disk",)
