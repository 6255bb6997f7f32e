"""Made-up CT images and their records file: what the loader and the retrieval are measured on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from bench.processes import HOSPITAL_KEY
from blocks.part10 import content_digest
from infra.peers.orthanc import file_bytes
from policies.minimise import project_key, pseudonym
from policies.records import Record, write_records
from policies.scope import Scope

PROJECT = "bench"
STUDY = "1.2.826.0.1.3680043.10.999.7"
SCOPE = Scope(modalities=("CT",), body_parts=("CHEST",), date_from="20240101", date_to="20241231")
SIZE = 512  # 512 x 512 of 16 bits: half a megabyte


def ct_study(images: int = 100) -> list[Dataset]:
    """One study, one series, `images` slices that do not compress."""
    random = np.random.default_rng(1)
    return [_slice(number, random.integers(0, 4096, (SIZE, SIZE), dtype=np.uint16)) for number in range(1, images + 1)]


def write_records_file(path: Path, datasets: Sequence[Dataset]) -> None:
    """The records file as a data custodian would write it."""
    key = project_key(HOSPITAL_KEY, PROJECT)
    path.write_bytes(
        write_records(
            Record(
                pseudonym(key, "record", str(dataset.SOPInstanceUID)),
                pseudonym(key, "patient", str(dataset.PatientID)),
                content_digest(file_bytes(dataset)),
                int(dataset.InstanceNumber) % 2,
            )
            for dataset in datasets
        )
    )


def _slice(number: int, pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]") -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet, dataset.SOPClassUID = "ISO_IR 192", CTImageStorage
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = STUDY, f"{STUDY}.1", f"{STUDY}.1.{number}"
    dataset.PatientID, dataset.PatientName, dataset.AccessionNumber = "BENCH-00000001", "Made^Up", "ACC-00000001"
    dataset.StudyDate, dataset.StudyTime = "20240115", "101500"
    dataset.Modality, dataset.BodyPartExamined, dataset.InstanceNumber = "CT", "CHEST", number
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = SIZE, SIZE, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.add_new(0x7FE00010, "OW", pixels.tobytes())
    return dataset
