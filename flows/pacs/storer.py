"""The storer: reports and images that a person has made, into an archive, and the proof that it holds them."""

import io
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from blocks.archive import Listed, attribute_digests
from blocks.audit import Patient, Study, audited
from blocks.dimse.services import ToStore
from blocks.part10 import read_meta
from blocks.witnessed import WitnessedArchive, inward, outward, sop_classes
from flows.pacs.saving import receiver_of
from policies.coercion import Compared, compare
from policies.report import SOP_CLASSES
from rapha.errors import PeerError, Refusal
from rapha.files import in_memory
from tasks.reading.validate import validate
from tasks.shared.returning import NOTHING, given_back


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent under a UID. digests: of each attribute (`blocks.archive.attribute_digests`)."""

    study: str
    listed: Listed
    digests: Mapping[str, str]
    patient: str


class Storer:
    """Stores into one archive. Each is in the audit trail, with its patient, before it is sent."""

    def __init__(self, archive: WitnessedArchive, *, environment: Mapping[str, str] = os.environ) -> None:
        """environment: names the receiver, for archives that give back by C-MOVE."""
        self._archive, self._environment = archive, environment
        self._sent: dict[str, Sent] = {}

    def store_structured_report(self, sr_dataset: Dataset) -> dict[str, Any]:
        """Stores a report that passes all three checks (`rapha report validate`): `status` stored or known, `sop_instance_uid`.

        sr_dataset: with file meta information. Raises `Refusal` report-…, object-malformed, store-conflict; `PeerError`
        store-refused, validator-…, and of the archive.
        """
        raw = file_of(sr_dataset)
        if str(sr_dataset.get("SOPClassUID", "")) not in SOP_CLASSES:
            raise Refusal(["report-sop-class"], "this is neither Comprehensive SR nor Comprehensive 3D SR", gate="report")
        if codes := validate(raw).codes:
            raise Refusal(sorted(codes), "the report does not pass its checks", gate="report")
        return self._stored(sr_dataset, raw)

    def store_image(self, image_dataset: Dataset) -> dict[str, Any]:
        """Stores an image, or another object that is no report. Raises as `store_structured_report`, and object-is-report."""
        if str(image_dataset.get("SOPClassUID", "")) in SOP_CLASSES:
            raise Refusal(["object-is-report"], "a report is stored by store_structured_report, which checks it", gate="store")
        return self._stored(image_dataset, file_of(image_dataset))

    def verify_storage(self, sop_instance_uid: str) -> dict[str, Any]:
        """Reads an object of this storer's back and compares every attribute: `verified`, `by`, and `coerced`, the tags of what
        the archive changed of patient, study and order (`policies.coercion`).

        Raises `Refusal` store-unknown (it was not stored here), store-conflict (the archive holds other content under the UID);
        `PeerError` pacs-proves-nothing where the archive gives nothing back, and of archive and receiver.
        """
        sent = self._sent.get(sop_instance_uid)
        if sent is None:
            raise Refusal(["store-unknown"], "this storer has stored no object of this UID", gate="store")
        held = self._given_back(sent)
        if held.outcome == "other":
            raise Refusal(["store-conflict"], "the archive holds another object under a UID that was sent", gate="store")
        verified = held.outcome in ("same", "coerced")
        return {"sop_instance_uid": sop_instance_uid, "verified": verified, "by": "read-back", "coerced": list(held.tags)}

    def _stored(self, dataset: Dataset, raw: bytes) -> dict[str, Any]:
        sent, to_store = described(dataset, raw)
        study = Study(sent.study, sop_classes=sop_classes([sent.listed.sop_class]))
        act = outward(self._archive.endpoint, self._archive.person, study, patient=Patient(sent.patient))
        with audited(self._archive.trail, "store", act), in_memory(raw) as (_, path):
            one = ToStore(path, to_store.sop_class, to_store.sop_instance, to_store.transfer_syntax)
            outcome = self._archive.plain.store(sent.study, [one])[sent.listed.sop_uid]
        self._sent[sent.listed.sop_uid] = sent
        if outcome == "known" and self._known(sent) == "other":
            raise Refusal(["store-conflict"], "the archive holds another object under a UID that was sent", gate="store")
        return {"status": outcome, "sop_instance_uid": sent.listed.sop_uid, "study_instance_uid": sent.study}

    def _known(self, sent: Sent) -> str:
        """With which content the archive knows it: as `_given_back`, "" where it gives nothing back."""
        try:
            return self._given_back(sent).outcome
        except PeerError as error:
            if error.codes != (NOTHING,):
                raise
            return ""

    def _given_back(self, sent: Sent) -> Compared:
        """What the archive gives back, against what was sent."""
        study = Study(sent.study, sop_classes=sop_classes([sent.listed.sop_class]))
        act = inward(self._archive.endpoint, self._archive.person, study, patient=Patient(sent.patient))
        with audited(self._archive.trail, "transfer", act), receiver_of(self._environment) or nullcontext() as receiver:
            found = given_back(self._archive.plain, receiver, sent.study, sent.listed)
        return Compared("absent") if found is None else compare(sent.digests, attribute_digests(found))


def file_of(dataset: Dataset) -> bytes:
    """The data set as a file of PS3.10. Raises `Refusal(object-malformed)`."""
    stream = io.BytesIO()
    try:
        dataset.save_as(stream, enforce_file_format=True)
    except (ValueError, TypeError, AttributeError, KeyError, OSError):
        said = "the data set cannot be written as a file: has it file meta information?"
        raise Refusal(["object-malformed"], said, gate="store") from None
    return stream.getvalue()


def described(dataset: Dataset, raw: bytes) -> tuple[Sent, ToStore]:
    """(what is remembered of it, what is sent, still without a path). Raises `Refusal(object-malformed)`."""
    meta = read_meta(raw)
    named = {
        name: str(dataset.get(name, "")) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID")
    }
    if meta is None or not all(named.values()) or meta.sop_instance != named["SOPInstanceUID"]:
        raise Refusal(["object-malformed"], "the data set lacks its UIDs or its patient, or bears two names", gate="store")
    listed = Listed(meta.sop_instance, meta.sop_class, named["SeriesInstanceUID"], str(dataset.get("Modality", "")))
    try:
        sent = Sent(named["StudyInstanceUID"], listed, attribute_digests(raw), named["PatientID"])
    except PeerError:
        raise Refusal(["object-malformed"], "the data set does not read back from its own file", gate="store") from None
    return sent, ToStore(Path(), meta.sop_class, meta.sop_instance, meta.transfer_syntax)
