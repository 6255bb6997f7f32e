"""An archive whose every question, retrieval and store is in the audit trail before it is made (PS3.15 A.5.3).

What an archive is asked is one message for each call here, even where the protocol needs several exchanges for it. C-MOVE is not
told here: a retrieval by it is several requests, and the stage tells it whole.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal
from urllib.parse import urlencode

from pynetdicom.dsutils import encode

from blocks.archive import STUDY_KEYS, Archive, Listed, Sink
from blocks.audit import Act, Audited, AuditTrail, Study, audited
from blocks.dimse.services import ToStore, query_identifier
from blocks.endpoint import Endpoint
from blocks.pacs import Answer
from policies.audit_message import SopClass


class WitnessedArchive(Archive):
    """`plain` as `person` uses it. Each call may also raise `PeerError(audit-unwritable)`, before anything is asked."""

    def __init__(self, plain: Archive, trail: AuditTrail, person: str) -> None:
        super().__init__(plain.endpoint, plain.capabilities, ca=plain._ca)
        self.plain, self.trail, self.person = plain, trail, person

    def find_studies(self, keys: Mapping[str, str], *, most: int = 1_000_000) -> list[Answer]:
        with self.query("STUDY", {**dict.fromkeys(STUDY_KEYS, ""), **keys}):
            return self.plain.find_studies(keys, most=most)

    def find_series(self, study: str) -> list[Answer]:
        with self.query("SERIES", {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": ""}, study):
            return self.plain.find_series(study)

    def find_instances(self, study: str, series: str | None = None) -> list[Answer]:
        with self.query("IMAGE", {"StudyInstanceUID": study, "SeriesInstanceUID": series or "", "SOPInstanceUID": ""}, study):
            return self.plain.find_instances(study, series)

    def list_instances(self, filters: Mapping[str, str], fields: tuple[str, ...]) -> list[Answer]:
        with self.query("IMAGE", filters):
            return self.plain.list_instances(filters, fields)

    def list_study(self, study: str) -> tuple[Listed, ...]:
        with self.query("IMAGE", {"StudyInstanceUID": study, "SeriesInstanceUID": "", "SOPInstanceUID": ""}, study):
            return self.plain.list_study(study)

    def get(self, study: str, wanted: Sequence[Listed], sink: Sink) -> None:
        classes = sop_classes([one.sop_class for one in wanted])
        with audited(self.trail, "transfer", inward(self.endpoint, self.person, Study(study, sop_classes=classes))):
            self.plain.get(study, wanted, sink)

    def get_series(self, study: str, wanted: Sequence[Listed], sink: Sink) -> None:
        classes = sop_classes([one.sop_class for one in wanted])
        with audited(self.trail, "transfer", inward(self.endpoint, self.person, Study(study, sop_classes=classes))):
            self.plain.get_series(study, wanted, sink)

    def read_back(self, study: str, one: Listed) -> str | None:
        what = Study(study, sop_classes=sop_classes([one.sop_class]))
        with audited(self.trail, "transfer", inward(self.endpoint, self.person, what)):
            return self.plain.read_back(study, one)

    def store(self, study: str, objects: Sequence[ToStore]) -> dict[str, Literal["stored", "known"]]:
        classes = sop_classes([one.sop_class for one in objects])
        with audited(self.trail, "store", outward(self.endpoint, self.person, Study(study, sop_classes=classes))):
            return self.plain.store(study, objects)

    def query(self, level: str, keys: Mapping[str, str], study: str = "") -> AbstractContextManager[Audited]:
        """The query's message around the question itself; level: STUDY, SERIES or IMAGE; study: whose UID, where it is of one."""
        studies = (Study(study),) if study else ()
        asked: dict[str, Any] = {"query": self._asked(level, keys), "studies": studies}
        return audited(self.trail, "query", outward(self.endpoint, self.person, *studies, **asked))

    def _asked(self, level: str, keys: Mapping[str, str]) -> bytes:
        """The query as it is sent: the identifier in Implicit VR Little Endian, or the question of QIDO-RS (PS3.18 10.6)."""
        if self.endpoint.port:
            return encode(query_identifier(level, keys), True, True) or b""
        wanted = {keyword: value for keyword, value in keys.items() if value}
        return f"{level.lower()}?{urlencode(wanted)}".encode()


def inward(endpoint: Endpoint, person: str, *studies: Study, **facts: Any) -> Act:
    """From the archive to this node."""
    us, them = _sides(endpoint)
    return Act(person=person, **{**_between(them, us), "studies": studies, **facts})


def outward(endpoint: Endpoint, person: str, *studies: Study, **facts: Any) -> Act:
    """From this node to the archive; of a query, from who asks to who answers."""
    us, them = _sides(endpoint)
    return Act(person=person, **{**_between(us, them), "studies": studies, **facts})


def sop_classes(names: Sequence[str]) -> tuple[SopClass, ...]:
    """How many instances of each class; an archive need not say which class one is of."""
    return tuple(SopClass(name, count) for name, count in sorted(Counter(filter(None, names)).items()))


def _sides(endpoint: Endpoint) -> tuple[tuple[str, str], tuple[str, str]]:
    web = endpoint.dicomweb_url or ""
    them = (endpoint.ae_title or web or endpoint.name, endpoint.host)
    return (endpoint.calling_ae_title or "RAPHA", ""), them


def _between(source: tuple[str, str], destination: tuple[str, str]) -> dict[str, str]:
    return {"source": source[0], "source_host": source[1], "destination": destination[0], "destination_host": destination[1]}
