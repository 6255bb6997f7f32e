"""A cohort of made-up patients, the same for the same number: what a node meets in a real archive, with nobody in it.

Each patient has two studies of chest radiographs (DX, 64 x 64, 12 of 16 bits), each with one image with a lesion and one without,
so that no split by patient favours a class. Identifiers have eight characters and more; text is in three character sets; numbers,
names and dates hide in free text, private attributes and nested sequences; some numbers are written in several ways. Beside
the cohort lie studies that no query within its bounds may bring: another body part, another modality, another year.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from infra.hospital.pictures import BITS, SIZE, picture

PROJECT = "chest-lesion"
NAME = "chest-dx"
DATES = ("20240101", "20241231")
STRANGERS = 6  # studies outside the cohort's bounds
_NAMES = (
    ("ISO_IR 100", ("Müller-Lüdenscheidt^Jürgen", "Ångström^Åse", "Peñaranda^Iñigo", "Lefèvre-Dupré^Noémie")),
    (["", "ISO 2022 IR 87"], ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Kobayashi^Hanako=小林^花子=こばやし^はなこ")),
    ("ISO_IR 144", ("Люксембургова^Надежда", "Достоевцев^Фёдор", "Чернышевич^Ольга")),
    ("ISO_IR 192", ("Παπαδοπούλου^Ελένη", "Kowalczykówna^Żaneta")),
)
_WRITINGS = (lambda n: n, lambda n: n.lower(), lambda n: f"{n} ", lambda n: f"000{n}")


@dataclass(frozen=True, slots=True)
class Image:
    """One instance: its file, its label (1: a lesion is planted), whether it lies in the cohort's bounds."""

    uid: str
    patient: str
    file: bytes
    label: int
    inside: bool


@dataclass(frozen=True)
class Cohort:
    """images; identifiers: every planted text that must be seen nowhere but in the archive, each of eight characters or more."""

    images: tuple[Image, ...]
    identifiers: tuple[str, ...]

    @property
    def inside(self) -> tuple[Image, ...]:
        return tuple(image for image in self.images if image.inside)

    @property
    def labels(self) -> dict[str, int]:
        """SOP Instance UID -> label, as the hospital's reports would give it."""
        return {image.uid: image.label for image in self.inside}


@dataclass
class _Person:
    number: str
    name: str
    charset: str | list[str]
    birth: str
    phone: str
    address: str
    planted: set[str] = field(default_factory=set)


def make_cohort(patients: int = 48, *, seed: int = 1) -> Cohort:
    """`patients` people in the cohort's bounds, four images each, and a few strangers outside them."""
    random = np.random.default_rng(seed)
    people = [_person(random, n) for n in range(patients)]
    images = [image for person in people for image in _images_of(person, random)]
    strangers = [_person(random, patients + n) for n in range(STRANGERS)]
    images += [_stranger(person, n, random) for n, person in enumerate(strangers)]
    planted = set().union(*(person.planted for person in (*people, *strangers))) if people else set()
    return Cohort(tuple(images), tuple(sorted(text for text in planted if len(text) >= 8)))


def write_cohort(cohort: Cohort, folder: Path) -> None:
    """One file an instance, named by the digest of its UID."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in cohort.images:
        (folder / file_name(image.uid)).write_bytes(image.file)


def file_name(uid: str) -> str:
    """A file's name says nothing of what is in it, and no UID can climb out of the folder."""
    return hashlib.sha256(uid.encode()).hexdigest() + ".dcm"


def _person(random: np.random.Generator, n: int) -> _Person:
    charset, names = _NAMES[n % len(_NAMES)]
    digits = "".join(str(d) for d in random.integers(1, 10, 24))
    family, _, given = str(random.choice(names)).partition("^")
    person = _Person(
        number=f"HX{digits[:8]}",
        name=f"{family}^{given}",
        charset=charset,
        birth=f"19{random.integers(30, 99):02d}{random.integers(1, 13):02d}{random.integers(1, 29):02d}",
        phone=f"+44 7700 {digits[8:14]}",
        address=f"Flat {digits[14:16]}, {digits[16:19]} Invented Lane, Nowhere",
    )
    person.planted |= {person.number, person.phone, person.address, *person.name.split("="), person.birth}
    return person


def _images_of(person: _Person, random: np.random.Generator) -> Iterator[Image]:
    for visit in range(2):
        day = f"2024{random.integers(1, 13):02d}{random.integers(1, 29):02d}"
        accession = "ACC" + "".join(str(d) for d in random.integers(1, 10, 9))
        study, series = _uid(person, f"study {visit}"), _uid(person, f"series {visit}")
        writing = _WRITINGS[int(random.integers(len(_WRITINGS)))]
        for label in (0, 1):
            dataset = _dataset(person, day, accession, study, series, label + 1)
            _identify(dataset, person, writing)
            _hide(dataset, person, accession)
            _paint(dataset, picture(random, bool(label)))
            person.planted |= {dataset.SOPInstanceUID, study, series, accession, dataset.PatientID.strip()}
            yield Image(dataset.SOPInstanceUID, person.number, _file(dataset, person), label, True)


def _stranger(person: _Person, n: int, random: np.random.Generator) -> Image:
    """Out of bounds in one respect: body part, modality or date."""
    image = next(iter(_images_of(person, random)))
    dataset = _read(image.file)
    if n % 3 == 0:
        dataset.BodyPartExamined = "HAND"
    elif n % 3 == 1:
        dataset.Modality = "CR"
    else:
        dataset.StudyDate = "20190607"
    return Image(image.uid, image.patient, _file(dataset, person), 0, False)


def _read(file: bytes) -> Dataset:
    from pydicom import dcmread

    return dcmread(io.BytesIO(file))


def _uid(person: _Person, what: str) -> str:
    """A UID of the 2.25 root (PS3.5 B.2), the same for the same person and thing."""
    return "2.25." + str(int.from_bytes(hashlib.sha256(f"{person.number} {what}".encode()).digest()[:16], "big"))


def _dataset(person: _Person, day: str, accession: str, study: str, series: str, number: int) -> Dataset:
    dataset = Dataset()
    dataset.SpecificCharacterSet = person.charset
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = _uid(person, f"{series} image {number}")
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = day
    dataset.StudyTime = dataset.ContentTime = "101112"
    dataset.AccessionNumber, dataset.Modality = accession, "DX"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.SeriesNumber, dataset.InstanceNumber = 1, number
    dataset.BodyPartExamined, dataset.ViewPosition, dataset.ImageLaterality = "CHEST", "PA", "U"
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    dataset.KVP, dataset.Exposure = "110", 3
    dataset.ImagerPixelSpacing = [1.5, 1.5]
    return dataset


def _identify(dataset: Dataset, person: _Person, writing: object) -> None:
    dataset.PatientName = person.name
    dataset.PatientID = writing(person.number)  # type: ignore[operator]
    dataset.IssuerOfPatientID = "NOWHERE-HOSPITAL"
    dataset.PatientBirthDate, dataset.PatientSex = person.birth, "O"
    dataset.PatientTelephoneNumbers, dataset.PatientAddress = person.phone, person.address


def _hide(dataset: Dataset, person: _Person, accession: str) -> None:
    """What a list of attributes to remove would miss: text, private attributes, sequences in sequences."""
    dataset.InstitutionName = "Nowhere General Hospital"
    dataset.StudyDescription = f"Chest, {person.number}"
    dataset.ImageComments = f"Patient {person.number} called from {person.phone} about {accession}"
    dataset.ProtocolName = f"CHEST {accession}"
    block = dataset.private_block(0x0011, "RAPHA MADE UP 1.0", create=True)
    block.add_new(0x01, "LO", person.number)
    block.add_new(0x02, "UT", f"{person.address}; born {person.birth}")
    inner, outer = Dataset(), Dataset()
    inner.PatientID, inner.CodeMeaning = person.number, f"seen as {person.number}"
    outer.AccessionNumber, outer.RequestedProcedureDescription = accession, f"for {person.number}"
    outer.ReferencedStudySequence = Sequence([inner])
    dataset.RequestAttributesSequence = Sequence([outer])


def _paint(dataset: Dataset, pixels: "np.ndarray[tuple[int, ...], np.dtype[np.uint16]]") -> None:
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = SIZE, SIZE, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, BITS, BITS - 1
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = pixels.astype("<u2").tobytes()


def _file(dataset: Dataset, person: _Person) -> bytes:
    """A file of PS3.10; those with Cyrillic text in Implicit VR, as older devices write."""
    implicit = person.charset == "ISO_IR 144"
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    stream = io.BytesIO()
    bare = Dataset(dict(dataset.items()))
    FileDataset(stream, bare, file_meta=meta, preamble=b"\0" * 128).save_as(stream, enforce_file_format=True)
    return stream.getvalue()
