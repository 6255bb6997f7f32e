"""What all objects that we make have in common: whose they are, when they were made, how they are written (PS3.10)."""

import datetime as dt
import io

from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from policies.model import Code
from policies.uid import derived_uid

MANUFACTURER = "rapha"
IMPLEMENTATION, VERSION_NAME = derived_uid("implementation", ["rapha"]), "RAPHA_1"
SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"


def coded(code: Code) -> CodedConcept:
    """As a content item has it."""
    return CodedConcept(code.value, code.scheme, code.meaning)


def dated(dataset: Dataset, at: dt.datetime) -> Dataset:
    """The library's clock is replaced by the register's."""
    date, time = at.strftime("%Y%m%d"), at.strftime("%H%M%S")
    for prefix in ("Content", "InstanceCreation", "Series"):
        for suffix, value in (("Date", date), ("Time", time)):
            if f"{prefix}{suffix}" in dataset or prefix == "Content":
                setattr(dataset, f"{prefix}{suffix}", value)
    dataset.TimezoneOffsetFromUTC = "+0000"
    for element in dataset.iterall():
        if element.keyword in ("ObservationDateTime", "VerificationDateTime", "ContributionDateTime"):
            element.value = f"{date}{time}"
    return dataset


def to_bytes(dataset: Dataset) -> bytes:
    """A file of PS3.10, Explicit VR Little Endian."""
    meta = dataset.file_meta
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(IMPLEMENTATION), VERSION_NAME
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()
