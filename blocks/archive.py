"""One face over an archive, whichever protocol it speaks: find, list, retrieve, store, prove.

What is used follows from the endpoint's configuration and, where a probe has written one, its capability record. An endpoint with
port 0 has no DIMSE side, one without `dicomweb_url` no DICOMweb side.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from pydicom import dcmread

from blocks import stow
from blocks.dimse import hierarchical, services
from blocks.dimse.services import Commitment, Elsewhere, MoveOutcome, ToStore
from blocks.endpoint import Endpoint
from blocks.pacs import Answer, DicomWeb, Timeouts, WebTls, value_of
from blocks.part10 import UNREADABLE
from policies.movement import MOST_IN_VAIN
from rapha.errors import ConfigurationError, PeerError

Method = Literal["C-GET", "C-MOVE", "WADO-RS"]
Sink = Callable[[str, str, Iterable[bytes]], None]
STUDY, SERIES, INSTANCE, SOP_CLASS, MODALITY = "0020000D", "0020000E", "00080018", "00080016", "00080060"
_NAMES = "StudyInstanceUID StudyDate StudyTime ModalitiesInStudy PatientID AccessionNumber"
STUDY_KEYS = (*_NAMES.split(), "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances")
DUPLICATE = 0x0111
COERCED = (
    0xB000,
    0xB006,
    0xB007,
)  # stored, with attributes changed, discarded, or not those of the SOP class (PS3.4 table B.2-1)
# Storage SOP classes by what is common, nine an association, for archives that do not say of which class an instance is.
_COMMON = "2 4 1 1.1 1.2 7 6.1 77.1.6 88.33 88.34 88.22 88.11 66.4 2.1 4.1 20 128 12.1 3.1 77.1.1 77.1.2 77.1.4 88.59 11.1 481.1"
_CLASSES = [f"1.2.840.10008.5.1.4.1.1.{end}" for end in _COMMON.split()]
GUESSED = [_CLASSES[at : at + services.MOST_CLASSES] for at in range(0, len(_CLASSES), services.MOST_CLASSES)]
TRAILING_PADDING = 0xFFFCFFFC


@dataclass(frozen=True, slots=True)
class Listed:
    """One instance that the archive lists."""

    sop_uid: str
    sop_class: str
    series_uid: str
    modality: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a probe found. services: names that answered; stores: storage SOP classes; probed: when, "" for never; limit: answers
    at which one query may have been cut off, None where it showed no sign of that."""

    services: frozenset[str] = field(default_factory=frozenset)
    stores: frozenset[str] = field(default_factory=frozenset)
    probed: str = ""
    limit: int | None = None


class Archive:
    """One archive. Safe between threads: each call opens its own association or request."""

    def __init__(self, endpoint: Endpoint, capabilities: Capabilities | None = None, *, ca: Path | None = None) -> None:
        if not endpoint.port and not endpoint.dicomweb_url:
            raise ConfigurationError(["endpoint-without-protocol"], f"endpoint {endpoint.name} has neither port nor dicomweb_url")
        if endpoint.tls and (endpoint.dicomweb_url or "https:").lower().startswith("http:"):
            raise ConfigurationError(
                ["endpoint-clear-dicomweb"], f"endpoint {endpoint.name} is secure: its dicomweb_url is https"
            )
        self.endpoint = endpoint
        self.capabilities = capabilities or Capabilities()
        self._ca = ca or (endpoint.tls.ca_bundle if endpoint.tls else None)
        self._timeouts = Timeouts(connect=endpoint.connect_seconds, idle=endpoint.idle_seconds, whole=endpoint.whole_seconds)

    @property
    def method(self) -> Method:
        """How it is retrieved from: as declared, else WADO-RS, C-GET where a probe saw it, C-MOVE."""
        if self.endpoint.retrieve != "auto":
            return self.endpoint.retrieve
        if self.endpoint.dicomweb_url:
            return "WADO-RS"
        return "C-GET" if "C-GET" in self.capabilities.services else "C-MOVE"

    @property
    def stores_by_web(self) -> bool:
        if self.endpoint.store != "auto":
            return self.endpoint.store == "STOW-RS"
        return not self.endpoint.port

    def echo(self) -> None:
        """C-ECHO, or the least QIDO-RS question there is. Raises `PeerError`."""
        if self.endpoint.port:
            services.echo(self.endpoint)
        else:
            self.web().list_studies({}, (), limit=1)

    def find_studies(self, keys: Mapping[str, str], *, most: int = 1_000_000) -> list[Answer]:
        """Studies that match, with the attributes of STUDY_KEYS where the archive gives them."""
        if self.endpoint.port:
            return services.find(self.endpoint, "STUDY", {**dict.fromkeys(STUDY_KEYS, ""), **keys}, most=most)
        return self._pages("studies", keys, most)

    def find_series(self, study: str) -> list[Answer]:
        """The series of a study: UID and modality."""
        if self.endpoint.port:
            asked = {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": ""}
            return services.find(self.endpoint, "SERIES", asked)
        found = {value_of(answer, SERIES): answer for answer in self.find_instances(study)}
        return list(found.values())

    def find_instances(self, study: str, series: str | None = None) -> list[Answer]:
        """The instances of a study, asked for series by series over DIMSE: not every archive is relational (PS3.4 C.4.1.2.2)."""
        if not self.endpoint.port:
            keys = {"StudyInstanceUID": study} | ({"SeriesInstanceUID": series} if series else {})
            return self.web().list_instances(keys, (SERIES, INSTANCE, SOP_CLASS, MODALITY, STUDY))
        found: list[Answer] = []
        for answer in [None] if series else self.find_series(study):
            one = series or value_of(answer or {}, SERIES)
            asked = {"StudyInstanceUID": study, "SeriesInstanceUID": one, "SOPInstanceUID": "", "SOPClassUID": ""}
            modality = value_of(answer or {}, MODALITY)
            for image in services.find(self.endpoint, "IMAGE", asked):
                image.setdefault(SERIES, {"vr": "UI", "Value": [one]})
                image.setdefault(MODALITY, {"vr": "CS", "Value": [modality]})
                found.append(image)
        return found

    def list_instances(self, filters: Mapping[str, str], fields: tuple[str, ...]) -> list[Answer]:
        """Every instance that matches `filters` (attribute keyword -> value), with `fields` (tags): by QIDO-RS where there is a
        `dicomweb_url`, else by C-FIND down the levels."""
        if self.endpoint.dicomweb_url:
            return self.web().list_instances(filters, fields)
        return hierarchical.find_instances(self.endpoint, filters)

    def list_study(self, study: str) -> tuple[Listed, ...]:
        """Every instance of a study, in the order of their UIDs. Raises `PeerError` pacs-list-odd for an answer without UIDs,
        pacs-list-cut for a list over DIMSE that is shorter than the archive itself counts: some stop at a limit and call it
        success, twice in the same way."""
        counted = self._counted(study) if self.endpoint.port else 0
        found: dict[str, Listed] = {}
        for answer in self.find_instances(study):
            one = Listed(*(value_of(answer, tag) for tag in (INSTANCE, SOP_CLASS, SERIES, MODALITY)))
            if not one.sop_uid or not one.series_uid or found.setdefault(one.sop_uid, one) != one:
                raise PeerError("pacs-list-odd", "the archive lists an instance without its UIDs, or twice", peer="pacs")
            found[one.sop_uid] = one
        if len(found) < counted:
            said = f"the archive lists {len(found)} of the {counted} instances that it counts in the study"
            raise PeerError("pacs-list-cut", said, peer="pacs")
        return tuple(found[uid] for uid in sorted(found))

    def _counted(self, study: str) -> int:
        """How many instances of a study the archive counts, of whatever kind (PS3.4 C.3.4); 0 where it does not.

        Asked before the list is: an instance that comes meanwhile makes the list longer. By the study, else by its series.
        """
        answers = services.find(self.endpoint, "STUDY", {"StudyInstanceUID": study, "NumberOfStudyRelatedInstances": ""})
        counts = [value_of(answer, "00201208") for answer in answers if value_of(answer, STUDY) in ("", study)]
        if any(count.isdecimal() for count in counts):
            return max(int(count) for count in counts if count.isdecimal())
        asked = {"StudyInstanceUID": study, "SeriesInstanceUID": "", "NumberOfSeriesRelatedInstances": ""}
        series = {value_of(one, SERIES): value_of(one, "00201209") for one in services.find(self.endpoint, "SERIES", asked)}
        return sum(int(count) for count in series.values() if count.isdecimal())

    def move(self, study: str, *, message_id: int, series: str | None = None, instances: Sequence[str] = ()) -> MoveOutcome:
        """C-MOVE of a study, a series, or some of its instances, to our receiver. Many instances are asked for in several."""
        outcomes: list[MoveOutcome] = []
        for portion in _portions(instances) or [()]:
            level, keys = _keys(study, series, portion)
            outcomes.append(services.move(self.endpoint, keys, level, message_id=message_id))
        return _joined(outcomes)

    def get(self, study: str, wanted: Sequence[Listed], sink: Sink) -> MoveOutcome | None:
        """Each wanted instance as a DICOM file to `sink(sop_class, sop_uid, blocks)`; by WADO-RS or C-GET. Raises `PeerError`.

        What comes is whatever the archive sends: the caller holds it against what was wanted. The outcome is C-GET's, a hint.
        """
        if self.method == "WADO-RS":
            self._wado(study, wanted, sink)
            return None

        came: set[str] = set()
        outcomes: list[MoveOutcome] = []

        def keep(sop_class: str, sop_uid: str, blocks: Iterable[bytes]) -> None:
            came.add(sop_uid)
            sink(sop_class, sop_uid, blocks)

        for series in sorted({one.series_uid for one in wanted}):
            for classes, instances in _by_class([one for one in wanted if one.series_uid == series]):
                for portion in _portions([uid for uid in instances if uid not in came]):
                    level, keys = _keys(study, series, portion)
                    outcomes.append(services.get(self.endpoint, keys, level, classes, keep))
        return _joined(outcomes) if outcomes else None

    def get_series(self, study: str, wanted: Sequence[Listed], sink: Sink) -> MoveOutcome | None:
        """The same, but each series of `wanted` as a whole: fewer requests, and whatever else the series holds comes too.

        The sink hears a name only from C-GET, which says one: the file bears its own.
        """
        if self.method != "WADO-RS":
            return self._get_series(study, wanted, sink)
        web = self.web()
        for series in sorted({one.series_uid for one in wanted}):
            with web.retrieve(study, series) as parts:
                for part in parts:
                    sink("", "", part.body)
        return None

    def _get_series(self, study: str, wanted: Sequence[Listed], sink: Sink) -> MoveOutcome | None:
        outcomes: list[MoveOutcome | None] = []
        for series in sorted({one.series_uid for one in wanted}):
            these = [one for one in wanted if one.series_uid == series]
            classes = sorted({one.sop_class for one in these})
            if "" in classes or len(classes) > services.MOST_CLASSES:
                outcomes.append(self.get(study, these, sink))
            else:
                level, keys = _keys(study, series, ())
                outcomes.append(services.get(self.endpoint, keys, level, classes, sink))
        given = [one for one in outcomes if one is not None]
        return _joined(given) if given else None

    def store(self, study: str, objects: Sequence[ToStore]) -> dict[str, Literal["stored", "known"]]:
        """SOP instance -> stored, or known: the archive has one of this UID, or says that it changed what it took (PS3.4 B.2.3).

        With which content it is known is for `read_back` to show. Raises `PeerError` store-refused when any is neither,
        store-full where the archive is out of resources.
        """
        if self.stores_by_web:
            url = self.endpoint.dicomweb_url or ""
            how = {"ca": self._ca, "token": self.endpoint.dicomweb_token, "timeouts": self._timeouts, "tls": self._tls()}
            answers = stow.stow(url, study, objects, **how)  # type: ignore[arg-type]
        else:
            answers = services.store(self.endpoint, objects)
        codes = {one.sop_instance: answers.get(one.sop_instance, -1) for one in objects}
        refused = [code for code in codes.values() if code not in (0, DUPLICATE, *COERCED)]
        if refused:
            code = "store-full" if all(0xA700 <= one <= 0xA7FF for one in refused) else "store-refused"
            raise PeerError(code, f"the archive refused {len(refused)} of {len(objects)} objects", peer="pacs")
        return {name: "stored" if code == 0 else "known" for name, code in codes.items()}

    def commit(
        self,
        references: Sequence[tuple[str, str]],
        transaction: str,
        *,
        seconds: float = 30.0,
        elsewhere: Elsewhere | None = None,
    ) -> Commitment:
        """Storage commitment. Raises `PeerError` commitment-not-offered where there is none."""
        if not self.endpoint.port:
            raise PeerError("commitment-not-offered", "commitment is a DIMSE service, and this endpoint has none", peer="pacs")
        return services.commit(self.endpoint, references, transaction, seconds=seconds, elsewhere=elsewhere)

    def read_back(self, study: str, one: Listed) -> str | None:
        """`attributes_digest` of the object as the archive gives it back; None where it is not there or cannot be had."""
        try:
            found = self.given_back(study, one)
        except PeerError as error:
            if error.codes != ("dimse-no-context",):  # an archive with C-MOVE alone gives nothing back
                raise
            return None
        return attributes_digest(found) if found is not None else None

    def given_back(self, study: str, one: Listed) -> bytes | None:
        """The object's file, by C-GET or WADO-RS; None where it does not come, or comes twice.

        Raises `PeerError(dimse-no-context)` where the archive has no C-GET: `tasks.shared.returning` has C-MOVE.
        """
        found: list[bytes] = []

        def take(sop_class: str, sop_uid: str, blocks: Iterable[bytes]) -> None:
            if sop_uid == one.sop_uid:
                found.append(b"".join(blocks))

        self.get(study, [one], take)
        return found[0] if len(found) == 1 else None

    def _wado(self, study: str, wanted: Sequence[Listed], sink: Sink) -> None:
        """Each by a request of its own. A failure that is answered is raised at the end: it keeps no other instance back."""
        web, failed, in_a_row = self.web(), None, 0
        for one in wanted:
            try:
                with web.retrieve(study, one.series_uid, one.sop_uid) as parts:
                    for part in parts:
                        sink(one.sop_class, one.sop_uid, part.body)
                in_a_row = 0
            except PeerError as error:
                failed, in_a_row = error, in_a_row + 1
                if error.codes != ("pacs-status",) or in_a_row >= MOST_IN_VAIN:
                    raise
        if failed is not None:
            raise failed

    def web(self) -> DicomWeb:
        """Its DICOMweb side. Raises `ConfigurationError(endpoint-without-dicomweb)`."""
        if not self.endpoint.dicomweb_url:
            raise ConfigurationError(["endpoint-without-dicomweb"], f"endpoint {self.endpoint.name} has no dicomweb_url")
        token = self.endpoint.dicomweb_token
        return DicomWeb(self.endpoint.dicomweb_url, timeouts=self._timeouts, ca=self._ca, token=token, tls=self._tls())

    def web_alone(self) -> "Archive":
        """The same endpoint without its DIMSE side."""
        return Archive(dataclasses.replace(self.endpoint, port=0, retrieve="auto", store="auto"), self.capabilities, ca=self._ca)

    def offers_stow(self) -> bool:
        """Whether its DICOMweb side takes objects. Raises `PeerError` stow-unreachable, tls-…."""
        url, token = self.endpoint.dicomweb_url or "", self.endpoint.dicomweb_token
        return stow.offers_stow(url, token=token, timeouts=self._timeouts, ca=self._ca, tls=self._tls())

    def _tls(self) -> WebTls | None:
        """Its TLS for a request, its files read anew."""
        tls = self.endpoint.tls
        return WebTls(tls.client(self.endpoint.connect_seconds), tls.ca_bundle, tls.server_name) if tls else None

    def _pages(self, level: str, keys: Mapping[str, str], most: int) -> list[Answer]:
        web, found = self.web(), list[Answer]()
        while page := web._page(level, keys, (), len(found)):
            found += page
            if len(found) > most:
                raise PeerError("pacs-too-many", f"the archive answers with more than {most} matches", peer="pacs")
        return found


def _keys(study: str, series: str | None, instances: Sequence[str]) -> tuple[str, dict[str, str | Sequence[str]]]:
    """(level, unique keys) of a retrieval (PS3.4 C.4.2.2.1); an instance is asked for below its series."""
    keys: dict[str, Any] = {"StudyInstanceUID": study}
    if series:
        keys["SeriesInstanceUID"] = series
    if instances:
        keys["SOPInstanceUID"] = list(instances)
    return ("IMAGE" if instances else "SERIES" if series else "STUDY"), keys


def _portions(instances: Sequence[str]) -> list[Sequence[str]]:
    return [instances[at : at + services.MOST_UIDS] for at in range(0, len(instances), services.MOST_UIDS)]


def _by_class(series: Sequence[Listed]) -> list[tuple[list[str], list[str]]]:
    """(SOP classes to offer, instances) of each C-GET: only what is asked for may come, and all of that must be offered."""
    if not all(one.sop_class for one in series):
        return [(offered, [one.sop_uid for one in series]) for offered in GUESSED]
    names = sorted({one.sop_class for one in series})
    offers = [names[at : at + services.MOST_CLASSES] for at in range(0, len(names), services.MOST_CLASSES)]
    return [(offered, [one.sop_uid for one in series if one.sop_class in offered]) for offered in offers]


def _joined(outcomes: Sequence[MoveOutcome]) -> MoveOutcome:
    """The worst status of several, the sum of counts that all of them gave."""
    if len(outcomes) == 1:
        return outcomes[0]

    def total(counts: Iterable[int | None]) -> int | None:
        given = list(counts)
        return None if None in given else sum(count or 0 for count in given)

    return MoveOutcome(
        max(one.status for one in outcomes),
        total(one.completed for one in outcomes),
        total(one.failed for one in outcomes),
        total(one.warning for one in outcomes),
        total(one.remaining for one in outcomes),
        sum(one.pending for one in outcomes),
    )


def attributes_digest(file: bytes) -> str:
    """`sha256:…` of every attribute of a DICOM file as DICOM JSON (PS3.18 annex F), however an archive encodes them.

    Archives write group lengths, padding, item lengths and implicit or explicit VR in their own way when they send: the values
    are what they must give back. Raises `PeerError(pacs-file-odd)`.
    """
    return _digest(_plain(file))


def attribute_digests(file: bytes) -> dict[str, str]:
    """Tag -> digest of each attribute's value, "" for an empty one, for `policies.coercion`. Raises as `attributes_digest`."""
    return {tag: _digest(value) if value.keys() - {"vr"} else "" for tag, value in _plain(file).items()}


def _digest(plain: Mapping[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _plain(file: bytes) -> dict[str, dict[str, Any]]:
    try:
        dataset = dcmread(BytesIO(file))
        return {f"{e.tag:08X}": e.to_json_dict(None, 1 << 40) for e in dataset if e.tag.element and e.tag != TRAILING_PADDING}
    except UNREADABLE:
        raise PeerError("pacs-file-odd", "the archive sent what is no DICOM file", peer="pacs") from None
