"""`rapha minimise` and `rapha pacs …`: one data set without its people; the archive by hand."""

import base64
import binascii
import json
import os
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter
from pydicom import dcmread
from pydicom.datadict import dictionary_keyword, tag_for_keyword
from pydicom.errors import InvalidDicomError

from blocks.archive import Archive, Capabilities, Listed, attributes_digest
from blocks.audit import open_audit_trail
from blocks.dimse.services import ToStore
from blocks.endpoint import Endpoint
from blocks.pacs import Answer, value_of
from blocks.part10 import MAX_META, read_meta
from blocks.profile import load_profile
from blocks.receiver import Receiver
from blocks.witnessed import WitnessedArchive
from flows.console.watermark import watermark
from flows.pacs.retriever import exported
from flows.pacs.saving import Wanted, check_folder, receiver_of, save
from flows.person import person
from policies.manifest import MAX_MANIFEST, read_manifest
from policies.minimise import minimise_counted, project_key
from policies.uid import derived_uid
from rapha.canonical import parse
from rapha.console.app import AsJson, Result, group
from rapha.errors import ConfigurationError, PeerError, Refusal
from rapha.files import read_regular
from tasks.shared import probe as probing

MAX_INPUT = 64 << 20
NO_PROJECT = "no-project"  # pseudonyms that join to no project's
UNIQUE = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}
Level = Literal["study", "series", "instance"]
Proof = Literal["auto", "commitment", "read-back"]
COMMITMENT, COMMIT_SECONDS = "storage commitment", 60.0
Pacs = Annotated[str, Parameter(name="--pacs", help="The endpoint's name in the profile; without one, `primary`.")]
_FIELDS = ("00100020", "00080060", "00080020", "00180015")
_SHOWN = ("StudyDate", "Modality", "ModalitiesInStudy", "BodyPartExamined", "PatientID", "PatientName", "AccessionNumber")


def register(app: cyclopts.App) -> None:
    app.command(minimise_file, name="minimise")
    pacs = group(app, "pacs", "The archive, by hand. These commands show identifiers: for the hospital's side alone.")
    for command in (find, retrieve, echo, probe, store, commit, watermark):
        pacs.command(command)


def minimise_file(file: Path | None = None, *, project: str | None = None, as_json: AsJson = False) -> Result:
    """Print what may be kept of DICOM JSON: allow-listed attributes, and pseudonyms for patient, study, accession and record.

    Reads RAPHA_PHI_HMAC_KEY_BASE64. Input: one data set or an array of them (PS3.18 F.2), as a QIDO-RS or metadata answer has
    it; output: the same shape. With --json: {"datasets": […], "dropped": {reason: count}, "project": …}.

    Example: `curl -s $URL/studies/$UID/metadata | rapha minimise --project chest-lesion`

    Parameters
    ----------
    file
        The input; standard input, when left out or `-`.
    project
        Whose pseudonyms; that of RAPHA_DATASET_MANIFEST_PATH, when left out.
    """
    given = parse(_input(file), limit=MAX_INPUT, what="DICOM JSON")
    name = project or _manifest_project()
    key = project_key(_hospital_key(), name)
    found = [minimise_counted(dataset, key) for dataset in (given if isinstance(given, list) else [given])]
    dropped = sum((Counter(one.dropped) for one in found), Counter())
    kept = [one.metadata for one in found]
    data = {"datasets": kept, "dropped": dict(sorted(dropped.items())), "project": name}
    return Result(data, [json.dumps(kept if isinstance(given, list) else kept[0], ensure_ascii=False)])


def find(*keys: str, pacs: Pacs = "primary", level: Level = "study", limit: int = 50, as_json: AsJson = False) -> Result:
    """Find studies, series or instances by KEYWORD=VALUE, and show them with their identifiers.

    At least one key must bound the question: an empty one or only wildcards refuses.

    Example: `rapha pacs find --pacs primary StudyDate=20240101-20240107 ModalitiesInStudy=DX`

    Parameters
    ----------
    keys
        Attribute keywords or tags, such as StudyDate=20240101-20240131 ModalitiesInStudy=CT PatientID=12345678.
    """
    filters = _filters(keys)
    archive = _archive(pacs)
    if level == "study":
        found = _studies(archive, filters, limit)
    else:
        found = list({value_of(answer, UNIQUE[level]): answer for answer in _below(archive, filters)}.values())[:limit]
    rows = [_row(answer, level) for answer in found]
    lines = ["  ".join(f"{name}={value}" for name, value in row.items()) for row in rows]
    return Result({"level": level, "count": len(rows), "found": rows}, lines or ["nothing found"])


def _studies(archive: Archive, filters: dict[str, str], limit: int) -> list[Answer]:
    if archive.endpoint.port:
        return archive.find_studies(filters)[:limit]
    with _told(archive, "STUDY", filters):
        return archive.web().list_studies(filters, ("ModalitiesInStudy",), limit=limit)


def _below(archive: Archive, filters: dict[str, str]) -> list[Answer]:
    """Every instance of what matches. DIMSE asks from the study down: not every archive is relational."""
    if not archive.endpoint.port:
        with _told(archive, "IMAGE", filters):
            return archive.web().list_instances(filters, ("0020000D", "0020000E", "00080018", *_FIELDS))
    found: list[Answer] = []
    for study in archive.find_studies(filters):
        found += [{**study, **image} for image in archive.find_instances(value_of(study, UNIQUE["study"]))]
    return found


def retrieve(
    study: str,
    *,
    out: Path,
    series: str | None = None,
    instance: str | None = None,
    pacs: Pacs = "primary",
    as_json: AsJson = False,
) -> Result:
    """Retrieve a study, a series or an instance into the folder OUT, by WADO-RS, C-GET, or C-MOVE to the node's receiver.

    Example: `rapha pacs retrieve 1.2.840.1.2.3 --out ./study --pacs primary`

    Parameters
    ----------
    study
        Study Instance UID.
    out
        A new or empty folder; files are numbered, their names say nothing.
    """
    wanted = Wanted(study=study, series=series, instance=instance)
    check_folder(out)
    archive = _archive(pacs)
    if isinstance(archive, WitnessedArchive):
        saved = exported(archive, wanted, out, os.environ)
    else:
        saved = save(archive, wanted, out, os.environ)
    data = {"files": saved.files, "bytes": saved.size, "out": str(out), "method": saved.method}
    return Result(data, [f"{saved.files} instances, {saved.size} bytes in {out}"])


def echo(*, pacs: Pacs = "primary", as_json: AsJson = False) -> Result:
    """Verify an endpoint: C-ECHO, or the least question to its DICOMweb side.

    Example: `rapha pacs echo --pacs primary`
    """
    archive, began = _archive(pacs), time.monotonic()
    archive.echo()
    took = round(1000 * (time.monotonic() - began))
    by = "C-ECHO" if archive.endpoint.port else "QIDO-RS"
    secure = "TLS" if archive.endpoint.tls else "in clear"
    data = {"pacs": pacs, "answered": True, "by": by, "ms": took, "vendor": archive.endpoint.vendor}
    return Result(data, [f"{pacs} ({archive.endpoint.vendor}) answered {by} in {took} ms ({secure})"])


def probe(*, pacs: Pacs = "primary", as_json: AsJson = False) -> Result:
    """Ask an endpoint what it can do, and write its capability record; the node chooses by it how to retrieve.

    Example: `rapha pacs probe --pacs primary`
    """
    archive = _archive(pacs)
    with _told(archive, "STUDY", {}):
        record = probing.probe(archive, int(time.time()))
    path = probing.write_record(_capabilities(), record)
    limit = record.get("limit", {})
    lines = [
        f"services: {', '.join(record['services']) or 'none'}",
        f"stores: {', '.join(record['stores']) or 'none'}",
        f"tls: {' '.join(record['tls'].values()) if record['tls'] else 'none'}",
        *(
            [f"one query: {limit['answers']} answers{' (a limit? ' + limit['sign'] + ')' if limit['sign'] else ''}"]
            if limit
            else []
        ),
    ]
    return Result({**record, "written": str(path)}, [*lines, f"written to {path}"])


def store(*files: Path, pacs: Pacs = "primary", as_json: AsJson = False) -> Result:
    """Store DICOM files at an endpoint, by C-STORE or STOW-RS. Exit 4 when it refuses one, 3 when it holds another of its UID.

    Example: `rapha pacs store report.dcm --pacs primary`
    """
    archive, outcomes = _archive(pacs), list[str]()
    for study, objects in _by_study(files).items():
        stored = archive.store(study, objects)
        known = [one for one in objects if stored[one.sop_instance] == "known"]
        if any(_held(archive, study, one) is False for one in known):
            said = "the archive holds another object under a UID that was sent"
            raise Refusal(["store-conflict"], said, gate="pacs")
        outcomes += stored.values()
    counts = dict(Counter(outcomes))
    return Result({"pacs": pacs, **counts}, [f"{count} {outcome}" for outcome, count in counts.items()])


def commit(*files: Path, pacs: Pacs = "primary", by: Proof = "auto", as_json: AsJson = False) -> Result:
    """Have an endpoint show that it holds these files. Exit 3 when it does not hold one.

    By storage commitment where a probe saw it and the node's receiver runs (the archive reports to it), else by reading each file
    back and comparing every attribute.

    Example: `rapha pacs commit report.dcm --pacs primary`

    Parameters
    ----------
    by
        One of the two ways alone.
    """
    archive, studies = _archive(pacs), _by_study(files)
    receiver = receiver_of(os.environ)
    how = by if by != "auto" else "commitment" if COMMITMENT in archive.capabilities.services and receiver else "read-back"
    everything = [(study, one) for study, objects in studies.items() for one in objects]
    if how == "commitment":
        held = _committed(archive, [one for _, one in everything], receiver)
    else:
        held = sum(_held(archive, study, one) is True for study, one in everything)
    if lost := len(everything) - held:
        raise Refusal(["not-committed"], f"the archive does not hold {lost} of {len(everything)} files as they are", gate="pacs")
    said = "commits to" if how == "commitment" else "gives back, every attribute the same,"
    return Result({"pacs": pacs, "held": held, "by": how}, [f"{pacs} {said} {held} files"])


def _committed(archive: Archive, objects: Sequence[ToStore], receiver: Receiver | None) -> int:
    """How many of them it commits to. The report comes on our association, or at the receiver where there is one."""
    asked = [(one.sop_class, one.sop_instance) for one in objects]
    transaction = derived_uid("transaction", [secrets.token_hex(16)])
    if receiver is None:
        report = archive.commit(asked, transaction, seconds=COMMIT_SECONDS)
    else:
        with receiver:
            report = archive.commit(asked, transaction, seconds=COMMIT_SECONDS, elsewhere=receiver.commitment)
    return sum(one.sop_instance in report.committed for one in objects)


def _held(archive: Archive, study: str, one: ToStore) -> bool | None:
    """Whether the archive gives the file back as it is; None where it gives nothing back."""
    series = str(dcmread(one.path, specific_tags=["SeriesInstanceUID"], stop_before_pixels=True).SeriesInstanceUID)
    found = archive.read_back(study, Listed(one.sop_instance, one.sop_class, series))
    return None if found is None else found == attributes_digest(one.path.read_bytes())


def _by_study(files: Sequence[Path]) -> dict[str, list[ToStore]]:
    if not files:
        raise ConfigurationError(["file-missing"], "name at least one DICOM file")
    found: dict[str, list[ToStore]] = {}
    for path in files:
        try:
            meta = read_meta(read_regular(path, MAX_META, "file-unreadable"))
            study = str(dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"]).StudyInstanceUID)
        except (PeerError, InvalidDicomError, AttributeError, ValueError, EOFError):
            meta = None
        if meta is None:
            raise ConfigurationError(["file-not-dicom"], f"{path} is no DICOM file (PS3.10)")
        found.setdefault(study, []).append(ToStore(path, meta.sop_class, meta.sop_instance, meta.transfer_syntax))
    return found


def _capabilities() -> Path:
    state = os.environ.get("RAPHA_STATE_DIR", "").strip()
    if not state:
        raise ConfigurationError(["missing-state-dir"], "RAPHA_STATE_DIR is not set: capability records are kept there")
    return Path(state) / "capabilities"


def _archive(name: str) -> Archive:
    """An endpoint of the profile at RAPHA_PROFILE_PATH; without a profile `primary` is RAPHA_DICOMWEB_BASE_URL."""
    bundle = os.environ.get("RAPHA_CA_BUNDLE", "").strip()
    profile = os.environ.get("RAPHA_PROFILE_PATH", "").strip()
    if profile:
        endpoints = load_profile(Path(profile)).endpoints
        if name not in endpoints:
            raise ConfigurationError(["pacs-unknown"], f"no endpoint of this name is configured; there is {', '.join(endpoints)}")
        state = os.environ.get("RAPHA_STATE_DIR", "").strip()
        known = probing.read_record(Path(state) / "capabilities", name) if state else Capabilities()
        return _witnessed(Archive(endpoints[name], known, ca=Path(bundle) if bundle else None))
    if name != "primary":
        raise ConfigurationError(["pacs-unknown"], "no endpoint of this name is configured; there is `primary`")
    url = os.environ.get("RAPHA_DICOMWEB_BASE_URL", "").strip()
    if not url:
        raise ConfigurationError(["missing-dicomweb-base-url"], "RAPHA_DICOMWEB_BASE_URL is not set, nor RAPHA_PROFILE_PATH")
    endpoint = Endpoint(name=name, host="", port=0, ae_title="", calling_ae_title="", dicomweb_url=url)
    return _witnessed(Archive(endpoint, ca=Path(bundle) if bundle else None))


def _witnessed(plain: Archive) -> Archive:
    """With every access in the audit trail, where this node has one; production does nothing without."""
    production = os.environ.get("RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION") == "true"
    if not production and not os.environ.get("RAPHA_AUDIT_KEY_BASE64", "").strip():
        return plain
    return WitnessedArchive(plain, open_audit_trail(os.environ), person())


def _told(archive: Archive, level: str, filters: Mapping[str, str]) -> AbstractContextManager[object]:
    return archive.query(level, filters) if isinstance(archive, WitnessedArchive) else nullcontext()


def _filters(keys: tuple[str, ...]) -> dict[str, str]:
    filters: dict[str, str] = {}
    for key in keys:
        name, equals, value = key.partition("=")
        tag = tag_for_keyword(name) if not re.fullmatch(r"[0-9A-Fa-f]{8}", name) else int(name, 16)
        if not equals or tag is None or name in filters:
            raise ConfigurationError(["key-malformed"], "give each key once, as KEYWORD=VALUE with a keyword of PS3.6")
        filters[name] = value
    if not any(value.strip("*? -") for value in filters.values()):
        raise Refusal(["query-broad"], "a query must be bound by at least one value that is no wildcard", gate="pacs", side="job")
    return filters


def _row(answer: Answer, level: str) -> dict[str, str]:
    tags = [UNIQUE[name] for name in ("study", "series", "instance") if name in (level, "study") or level == "instance"]
    named = [f"{tag_for_keyword(name):08X}" for name in _SHOWN]
    return {dictionary_keyword(tag): text for tag in (*tags, *named) if (text := _text(answer, tag))}


def _text(answer: Answer, tag: str) -> str:
    attribute: Any = answer.get(tag) or {}
    values = attribute.get("Value") or []
    return "\\".join("=".join(map(str, value.values())) if isinstance(value, dict) else str(value) for value in values)


def _input(file: Path | None) -> bytes:
    try:
        if file is None or str(file) == "-":
            return sys.stdin.buffer.read(MAX_INPUT + 1)
    except OSError as error:
        raise ConfigurationError(["file-unreadable"], f"standard input: {error.strerror}") from None
    return read_regular(file, MAX_INPUT, "file-unreadable")


def _manifest_project() -> str:
    path = os.environ.get("RAPHA_DATASET_MANIFEST_PATH", "").strip()
    if not path:
        return NO_PROJECT
    try:
        with Path(path).open("rb") as stream:
            return read_manifest(stream.read(MAX_MANIFEST + 1))[0].projects[0]
    except OSError as error:
        raise ConfigurationError(["file-unreadable"], f"RAPHA_DATASET_MANIFEST_PATH: {error.strerror}") from None


def _hospital_key() -> bytes:
    text = os.environ.get("RAPHA_PHI_HMAC_KEY_BASE64", "").strip()
    if not text:
        raise ConfigurationError(["missing-phi-hmac-key-base64"], "RAPHA_PHI_HMAC_KEY_BASE64 is not set")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise ConfigurationError(["bad-phi-hmac-key-base64"], "RAPHA_PHI_HMAC_KEY_BASE64 is not base64") from None
