"""Made-up studies for the reading service: complete objects, the same for the same seed, with lesions where they are said to be.

`make_study(kind, seed, planted)` gives the data sets of one study; `truth(study)` where its lesions are. Kinds: "ct" (a series of
slices), "dx" (one radiograph), "sm" (a whole slide: three levels and its label). Nobody is in them; identifiers are invented and
`identifiers(study)` lists them, for tests that look for them where they must not be.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from infra.hospital.scenes import Planted, scan, tissue
from infra.hospital.slide import slide_instances

Kind = Literal["ct", "dx", "sm"]
SLICES, SLIDE_SIZE = 5, 1536
_NAMES = ("Musterfrau^Erika", "Dupont^Noémie", "Lindqvist^Åsa", "Okonkwo^Chidi", "Papadaki^Eleni", "Novák^Jiří")


@dataclass(frozen=True, slots=True)
class Person:
    """An invented patient."""

    name: str
    number: str
    birth: str
    accession: str
    day: str


def make_study(kind: Kind, seed: int, planted: int = 1) -> list[Dataset]:
    """The study's instances, each with its file meta. planted: lesions in the whole study, on one image of it."""
    person = _person(kind, seed)
    random = np.random.default_rng([seed, {"ct": 1, "dx": 2, "sm": 3}[kind]])
    if kind == "ct":
        return _slices(person, random, seed, planted)
    if kind == "dx":
        pixels, where = scan(random, 384, 320, planted)
        return [_remember(_radiograph(person, seed, pixels), where)]
    picture, where = tissue(random, SLIDE_SIZE, planted)
    instances = slide_instances(_patient(person, kind, seed), picture, lambda what: uid(kind, seed, what))
    return [_remember(instances[0], where), *instances[1:]]


def truth(study: Sequence[Dataset]) -> Mapping[str, tuple[Planted, ...]]:
    """SOP Instance UID -> the lesions planted on that image; of a slide, on its finest level."""
    return {str(one.SOPInstanceUID): getattr(one, "planted", ()) for one in study}


def identifiers(study: Sequence[Dataset]) -> tuple[str, ...]:
    """Every text of the study that names its patient or itself."""
    names = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "StudyInstanceUID")
    found = {str(one.get(name, "")) for one in study for name in (*names, "SeriesInstanceUID", "SOPInstanceUID")}
    return tuple(sorted(text for text in found if len(text) >= 8))


def file_bytes(dataset: Dataset) -> bytes:
    """The data set as a file of PS3.10."""
    stream = io.BytesIO()
    bare = FileDataset(stream, Dataset(dict(dataset.items())), file_meta=dataset.file_meta, preamble=b"\0" * 128)
    bare.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def uid(kind: str, seed: int, what: str) -> str:
    """A UID of the 2.25 root (PS3.5 B.2), the same for the same thing."""
    return "2.25." + str(int.from_bytes(hashlib.sha256(f"reading {kind} {seed} {what}".encode()).digest()[:16], "big"))


def _person(kind: str, seed: int) -> Person:
    digits = hashlib.sha256(f"person {kind} {seed}".encode()).hexdigest()
    number = str(int(digits[:12], 16))[:9].zfill(9)
    return Person(
        name=_NAMES[seed % len(_NAMES)],
        number=f"RD{number}",
        birth=f"19{30 + seed % 60}{1 + seed % 12:02d}{1 + seed % 28:02d}",
        accession=f"ACR{number[::-1]}",
        day=f"2026{1 + seed % 10:02d}{1 + seed % 27:02d}",
    )


def _patient(person: Person, kind: str, seed: int) -> Dataset:
    """What all instances of a study share: Patient, General Study, General Equipment (PS3.3 C.7.1.1, C.7.2.1, C.7.5.1)."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = person.name, person.number
    dataset.PatientBirthDate, dataset.PatientSex = person.birth, "O"
    dataset.StudyInstanceUID = uid(kind, seed, "study")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = dataset.AcquisitionDate = person.day
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = dataset.AcquisitionTime = "101112"
    dataset.AccessionNumber, dataset.StudyID = person.accession, "1"
    dataset.ReferringPhysicianName = "Nobody^Doctor"
    dataset.SeriesInstanceUID, dataset.SeriesNumber = uid(kind, seed, "series"), "1"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = uid(kind, seed, "frame of reference"), None
    dataset.Manufacturer, dataset.ManufacturerModelName = "Nowhere Imaging", "Made up"
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "0001", "1"
    dataset.InstitutionName = "Nowhere General Hospital"
    return dataset


def _instance(dataset: Dataset, sop_class: UID, kind: str, seed: int, number: int) -> None:
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = uid(kind, seed, f"instance {number}")
    dataset.InstanceNumber = str(number)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, dataset.SOPInstanceUID
    dataset.file_meta = meta


def _slices(person: Person, random: np.random.Generator, seed: int, planted: int) -> list[Dataset]:
    diseased = int(random.integers(SLICES)) if planted else -1
    slices = []
    for number in range(SLICES):
        pixels, where = scan(random, 256, 256, planted if number == diseased else 0)
        slices.append(_remember(_slice(person, seed, number, pixels), where))
    return slices


def _slice(person: Person, seed: int, number: int, pixels: NDArray[np.float64]) -> Dataset:
    """A CT slice (PS3.3 A.3), 1.25 mm a pixel, 5 mm apart."""
    dataset = _patient(person, "ct", seed)
    _instance(dataset, CTImageStorage, "ct", seed, number + 1)
    dataset.Modality, dataset.BodyPartExamined, dataset.PatientPosition = "CT", "CHEST", "HFS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.AcquisitionNumber, dataset.KVP = "1", "120"
    dataset.PixelSpacing, dataset.SliceThickness = ["1.25", "1.25"], "5"
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.ImagePositionPatient = ["-160", "-160", str(-5 * number)]
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1000", "1", "HU"
    _paint(dataset, pixels)
    return dataset


def _radiograph(person: Person, seed: int, pixels: NDArray[np.float64]) -> Dataset:
    """A digital radiograph for presentation (PS3.3 A.26)."""
    dataset = _patient(person, "dx", seed)
    _instance(dataset, DigitalXRayImageStorageForPresentation, "dx", seed, 1)
    dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition = "DX", "CHEST", "PA"
    dataset.ImageType, dataset.PresentationIntentType = ["ORIGINAL", "PRIMARY", ""], "FOR PRESENTATION"
    dataset.ImageLaterality, dataset.PatientOrientation = "U", ["L", "F"]
    dataset.BurnedInAnnotation, dataset.LossyImageCompression, dataset.PresentationLUTShape = "NO", "00", "IDENTITY"
    dataset.PixelIntensityRelationship, dataset.PixelIntensityRelationshipSign = "LOG", -1
    dataset.ImagerPixelSpacing, dataset.DetectorType = ["1.0", "1.0"], "DIRECT"
    dataset.PositionerType = None
    del dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"
    dataset.WindowCenter, dataset.WindowWidth = "2048", "4096"
    dataset.AcquisitionContextSequence = Items([])
    dataset.AnatomicRegionSequence = Items([_code("51185008", "SCT", "Chest")])
    dataset.ViewCodeSequence = Items([_code("399348003", "SCT", "postero-anterior")])
    dataset.ViewCodeSequence[0].ViewModifierCodeSequence = Items([])
    _paint(dataset, pixels)
    return dataset


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _paint(dataset: Dataset, pixels: NDArray[np.float64]) -> None:
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.add_new(0x7FE00010, "OW", np.clip(pixels * 3600 + 200, 0, 4095).astype("<u2").tobytes())


def _remember(dataset: Dataset, planted: tuple[Planted, ...]) -> Dataset:
    """Beside the attributes, in memory alone: a file of this data set says nothing of it."""
    plain: Any = dataset
    object.__setattr__(plain, "planted", planted)
    return dataset
