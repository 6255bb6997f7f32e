"""The study reader: the process that opens what the receiver sealed. One connection is one study.

Verbs: open · facts · attach · detach · counts · fetch · fetched · report · check · store · verify · recipient · compare · holds.
What comes back is indexes, counts, digests, tags and codes, and for each instance its SOP Instance UID, which the caller pairs
with the archive's list and writes nowhere in clear. Closing the connection lets go of all that was held.
"""

import base64
import binascii
import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast, get_args

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from blocks.archive import Listed
from blocks.channel import Channel
from blocks.reading_rows import OwnReport
from blocks.receiver import Arrived
from policies.applicability import InstanceFacts
from policies.coercion import COERCIBLE, Compared, Outcome
from policies.findings import Finding, to_json
from policies.model import Model
from policies.movement import Level
from policies.report import SEGMENTATION
from rapha.errors import PeerError

PAGE = 500  # files named in one request: a page stays well below the channel's frame
OPEN_SECONDS = 3600.0
FETCH_SECONDS = 6 * 3600.0
REPORT_SECONDS = 600.0
CHECKS = {SEGMENTATION: {"own", "dciodvfy"}}
REPORT_CHECKS = {"own", "dciodvfy", "DicomSRValidator"}


@dataclass(frozen=True, slots=True)
class SealedFile:
    """path: where the sealed file lies; sha256: of the data set in it, as the receiver wrote it down (`sha256:…`)."""

    path: Path
    sha256: str


@dataclass(frozen=True, slots=True)
class OpenedInstance:
    """sop_uid: in clear, for memory and the register's encrypted columns only."""

    sop_uid: str
    facts: InstanceFacts


@dataclass(frozen=True, slots=True)
class Counts:
    """handed: replies with pixels; unique: instances among them; total: instances attached; malformed: that did not decode."""

    handed: int
    unique: int
    total: int
    malformed: int


@dataclass(frozen=True, slots=True)
class Handed:
    """frames: different frames of the instance that were handed over; failed: something of it did not decode."""

    frames: int
    failed: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """What an archive answered to one request: a hint. status: None where it broke off, with the error's code; the counts are
    C-GET's, where it gave them. counted: whether its protocol has any."""

    status: int | None
    completed: int | None
    failed: int | None
    error: str
    counted: bool

    def __post_init__(self) -> None:
        numbers = (self.status, self.completed, self.failed)
        if (
            any(type(one) not in (int, type(None)) for one in numbers)
            or type(self.error) is not str
            or type(self.counted) is not bool
        ):
            raise TypeError("of another type")


class ReadBy(Protocol):
    """One model's part of a report, as `tasks.reading.analyse.ModelResult` has it."""

    @property
    def model(self) -> Model: ...
    @property
    def digest(self) -> str: ...
    @property
    def read(self) -> frozenset[int]: ...
    @property
    def findings(self) -> tuple[Finding, ...]: ...


@dataclass(frozen=True, slots=True)
class BuiltObject:
    """An object of ours, sealed. UIDs in clear, for memory and encrypted columns; sha256: of its data set."""

    sop_uid: str
    sop_class: str
    series_uid: str
    sha256: str
    size: int
    path: Path


@dataclass(frozen=True, slots=True)
class BuiltReport(BuiltObject):
    """A report. referenced: SOP Instance UIDs of the images that it names as its evidence; segmentations: those that it refers
    to beside them."""

    referenced: frozenset[str]
    segmentations: tuple[BuiltObject, ...] = ()

    @property
    def objects(self) -> tuple[BuiltObject, ...]:
        """All of them, in the order in which they are stored: what is referred to is there first."""
        return (*self.segmentations, self)

    @property
    def digests(self) -> list[str]:
        """Of each, in that order."""
        return [one.sha256 for one in self.objects]


class StudyReader(Channel):
    """A connection to the study reader, for one study. Not shared between threads."""

    def __init__(self, path: Path, *, timeout: float = 60.0) -> None:
        super().__init__(path, peer="study", timeout=timeout)

    def open(self, files: Sequence[SealedFile]) -> tuple[OpenedInstance, ...]:
        """Opens a study's sealed files: each is hashed again and its header read. Facts in the order of `files`.

        `facts.same` says whether the bytes are those that were named. Raises `Refusal` study-path-outside, study-file-missing,
        sealed-…, record-malformed (no header at all); `PeerError` study-….
        """
        for start in range(0, len(files), PAGE):
            page = [{"path": str(one.path), "sha256": one.sha256} for one in files[start : start + PAGE]]
            self.call("open", first=start == 0, files=page, timeout=OPEN_SECONDS)
        found: list[OpenedInstance] = []
        while len(found) < len(files):
            answer = self.call("facts", start=len(found), timeout=OPEN_SECONDS)
            entries = answer.get("instances")
            if not isinstance(entries, list) or not entries:
                raise _odd()
            found += [_instance(entry, len(found) + place) for place, entry in enumerate(entries)]
        if len(found) != len(files):
            raise _odd()
        return tuple(found)

    def fetch(self, endpoint: str, study: str, level: Level, wanted: Sequence[Listed]) -> Fetched:
        """One request by C-GET or WADO-RS: of the series of `wanted` as a whole (SERIES), or of these instances of it (IMAGE).

        What comes is sealed, in the form of the receiver's, and stays for as long as this connection: `fetched` tells it.
        Raises `PeerError` of the archive where nothing stood, study-disk; `Refusal` study-fetch-by-move, study-no-endpoint.
        """
        # Of a series as a whole its classes are needed: they are offered.
        named = wanted if level == "IMAGE" else list({(one.series_uid, one.sop_class): one for one in wanted}.values())
        page = [{"sop_uid": one.sop_uid, "sop_class": one.sop_class, "series_uid": one.series_uid} for one in named]
        answer = self.call("fetch", endpoint=endpoint, study=study, level=level, wanted=page, timeout=FETCH_SECONDS)
        try:
            return Fetched(**{field.name: answer[field.name] for field in dataclasses.fields(Fetched)})
        except (KeyError, TypeError):
            raise _odd() from None

    def fetched(self, endpoint: str, study: str) -> list[Arrived]:
        """Everything of a study that came from this endpoint on this connection, and was not moved aside."""
        found: list[Arrived] = []
        while True:
            answer = self.call("fetched", endpoint=endpoint, study=study, start=len(found))
            page = answer.get("received")
            if not isinstance(page, list):
                raise _odd()
            found += [_arrived(entry) for entry in page]
            if not page or len(found) >= _count(answer.get("total")):
                return found

    def report(
        self,
        results: Sequence[ReadBy],
        *,
        at: int,
        device: str,
        three_d: bool = True,
        segments: bool = False,
        earlier: Sequence[OwnReport] = (),
    ) -> BuiltReport:
        """The report of the open study on what models found, sealed. at: seconds since the epoch, from the register; segments:
        whether regions become segmentations beside it; earlier: our reports of this study that it follows.

        Raises `Refusal` study-model-unknown, findings-…, report-…; `PeerError` study-disk.
        """
        listed = [
            {"digest": one.digest, "read": sorted(one.read), "findings": [to_json(one.model, each) for each in one.findings]}
            for one in results
        ]
        said: dict[str, Any] = {"results": listed, "at": at, "device": device, "three_d": three_d, "segments": segments}
        said["earlier"] = [dataclasses.asdict(one) for one in earlier]
        answer = self.call("report", **said, timeout=REPORT_SECONDS)
        return _report({name: value for name, value in answer.items() if name != "ok"})

    def check(self, built: BuiltReport) -> tuple[str, ...]:
        """Codes of what is wrong with a sealed report and its segmentations, `()` when every check ran on each and passed.

        Raises `PeerError` validator-….
        """
        found: list[str] = []
        for one in built.objects:
            answer = self.call("check", path=str(one.path), timeout=REPORT_SECONDS)
            codes, checks = answer.get("codes"), answer.get("checks")
            if not isinstance(codes, list) or not isinstance(checks, list):
                raise _odd()
            if set(checks) != CHECKS.get(one.sop_class, REPORT_CHECKS):
                raise _odd()
            found += map(str, codes)
        return tuple(found)

    def store(self, endpoint: str, report: Path) -> str:
        """Sends a sealed report: "stored" or "known". Raises `PeerError` store-refused, and of the archive."""
        return _outcome(self.call("store", endpoint=endpoint, path=str(report), timeout=REPORT_SECONDS), {"stored", "known"})

    def verify(self, endpoint: str, report: Path) -> Compared:
        """What the archive gives back of it, by C-GET or WADO-RS. Raises `PeerError` dimse-no-context, and of the archive."""
        return _compared(self.call("verify", endpoint=endpoint, path=str(report), timeout=REPORT_SECONDS))

    def compare(self, report: Path, given: Path) -> Compared:
        """The same of what the archive sent to the receiver, sealed at `given` to the key of `recipient`."""
        return _compared(self.call("compare", path=str(report), given=str(given), timeout=REPORT_SECONDS))

    def recipient(self) -> X25519PublicKey:
        """The key that the study reader opens files of."""
        try:
            return X25519PublicKey.from_public_bytes(base64.b64decode(str(self.call("recipient")["public"]), validate=True))
        except (KeyError, binascii.Error, ValueError):
            raise _odd() from None

    def attach(self, fds: Sequence[int], indexes: Sequence[int]) -> None:
        """Hands the reader its ends of the loader's sockets (at most 16), which are closed here. Records 0, 1, … are `indexes`.

        Raises `Refusal` study-not-readable for an instance with a fault.
        """
        try:
            self.call("attach", fds=list(fds), indexes=list(indexes), timeout=60.0)
        finally:
            for fd in fds:
                os.close(fd)

    def counts(self) -> Counts:
        answer = self.call("counts", timeout=60.0)
        try:
            return Counts(**{field.name: _count(answer[field.name]) for field in dataclasses.fields(Counts)})
        except KeyError:
            raise _odd() from None

    def detach(self) -> dict[int, Handed]:
        """Ends the handing over: what was handed of each attached instance, by index."""
        listed = self.call("detach", timeout=120.0).get("handed")
        if not isinstance(listed, list) or not all(isinstance(one, list) and len(one) == 3 for one in listed):
            raise _odd()
        return {_count(index): Handed(_count(frames), bool(_count(failed))) for index, frames, failed in listed}


def _instance(entry: object, index: int) -> OpenedInstance:
    """The entry as facts: every field, of its type, and no other."""
    fields = {field.name: field.type for field in dataclasses.fields(InstanceFacts)}
    if not isinstance(entry, dict) or set(entry) != {*fields, "sop_uid"} or not isinstance(entry["sop_uid"], str):
        raise _odd()
    values: dict[str, Any] = {name: entry[name] for name in fields}
    if any(type(values[name]) is not kind for name, kind in fields.items()) or values["index"] != index:
        raise _odd()
    return OpenedInstance(entry["sop_uid"], InstanceFacts(**values))


_OBJECT = {"sop_uid": str, "sop_class": str, "series_uid": str, "sha256": str, "size": int, "path": str}


def _report(entry: dict[str, Any]) -> BuiltReport:
    if {name: type(value) for name, value in entry.items()} != {**_OBJECT, "referenced": list, "segmentations": list}:
        raise _odd()
    referenced, segmentations = entry.pop("referenced"), tuple(_object(one) for one in entry.pop("segmentations"))
    if not all(isinstance(uid, str) for uid in referenced) or any(one.sop_class != SEGMENTATION for one in segmentations):
        raise _odd()
    own = _object(entry)
    if own.sop_class == SEGMENTATION:
        raise _odd()
    return BuiltReport(**dataclasses.asdict(own), referenced=frozenset(referenced), segmentations=segmentations)


def _object(entry: object) -> BuiltObject:
    if not isinstance(entry, dict) or {name: type(value) for name, value in entry.items()} != _OBJECT:
        raise _odd()
    return BuiltObject(**{**entry, "path": Path(entry["path"])})


def _arrived(entry: object) -> Arrived:
    names = {"sop_uid": str, "sop_class": str, "sha256": str, "size": int, "path": str, "conflict": bool}
    if not isinstance(entry, dict) or {name: type(value) for name, value in entry.items()} != names:
        raise _odd()
    return Arrived(**{**entry, "path": Path(entry["path"])})


def _compared(answer: dict[str, Any]) -> Compared:
    tags = answer.get("tags")
    outcome = cast(Outcome, _outcome(answer, set(get_args(Outcome))))
    if not isinstance(tags, list) or not set(tags) <= set(COERCIBLE) or bool(tags) != (outcome == "coerced"):
        raise _odd()
    return Compared(outcome, tuple(tags))


def _outcome(answer: dict[str, Any], known: set[str]) -> str:
    if answer.get("outcome") not in known:
        raise _odd()
    return str(answer["outcome"])


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise _odd()
    return value


def _odd() -> PeerError:
    return PeerError("study-odd-answer", "the study reader answered with other facts than its verb's", peer="study")
