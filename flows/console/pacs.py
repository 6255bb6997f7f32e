"""`rapha minimise` and `rapha pacs …`: one data set without its people; the archive by hand."""

import base64
import binascii
import json
import os
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

from blocks.archive import Archive, Capabilities, Listed, attribute_digests
from blocks.audit import Study, audited, open_audit_trail
from blocks.dimse.services import ToStore
from blocks.elements import read_whole
from blocks.endpoint import Endpoint
from blocks.pacs import Answer
from blocks.part10 import UNREADABLE
from blocks.profile import load_profile
from blocks.receiver import Receiver
from blocks.settings import url_problem
from blocks.witnessed import WitnessedArchive, inward, sop_classes
from flows.console.progress import shown
from flows.console.watermark import watermark
from flows.pacs.asking import UNIQUE, Level, ask
from flows.pacs.retriever import exported
from flows.pacs.saving import Wanted, check_folder, receiver_of, save
from flows.person import person
from policies.coercion import Compared, compare
from policies.commitment import standing
from policies.manifest import MAX_MANIFEST, read_manifest
from policies.minimise import minimise_counted, project_key
from policies.question import Question, read_question
from policies.uid import derived_uid
from rapha.canonical import digest_file, parse
from rapha.console.app import AsJson, Result, Some, group
from rapha.errors import ConfigurationError, PeerError, Refusal
from rapha.files import open_regular, read_regular
from tasks.shared import probe as probing
from tasks.shared.returning import NOTHING, given_back

MAX_INPUT = 64 << 20
NO_PROJECT = "no-project"  # pseudonyms that join to no project's
Proof = Literal["auto", "commitment", "read-back"]
COMMITMENT, COMMIT_SECONDS = "storage commitment", 60.0
Pacs = Annotated[str, Parameter(name="--pacs", help="The endpoint's name in the profile; without one, `primary`.")]
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


def find(*keys: str, pacs: Pacs = "primary", level: Level = "study", limit: Some = 50, as_json: AsJson = False) -> Result:
    """Find studies, series or instances by KEYWORD=VALUE, and show them with their identifiers.

    At least one key of a patient, study, series or instance must bound the question: an empty one or only wildcards refuses. An
    archive that answers beyond it is a failed peer, and nothing is shown.

    Example: `rapha pacs find --pacs primary StudyDate=20240101-20240107 ModalitiesInStudy=DX`

    Parameters
    ----------
    keys
        Attribute keywords or tags, such as StudyDate=20240101-20240131 ModalitiesInStudy=CT PatientID=12345678.
    """
    question = _question(keys)
    found = ask(_archive(pacs), question, level, limit)
    rows = [_row(answer, level) for answer in found]
    lines = ["  ".join(f"{name}={value}" for name, value in row.items()) for row in rows]
    return Result({"level": level, "count": len(rows), "found": rows}, lines or ["nothing found"])


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
    with shown(lambda: f"retrieving: {sum(1 for _ in out.glob('*.dcm'))} instances"):
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
    archive = _archive(pacs, known=False)
    with _told(archive, "STUDY", {}), shown("asking what it can do"):
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
        with shown(f"storing: {len(outcomes)} of {len(files)} files done"):
            stored = archive.store(study, objects)
            known = [one for one in objects if stored[one.sop_instance] == "known"]
            for other in (one for one in known if _known(archive, study, one) == "other"):
                said = "the archive holds another object under a UID that was sent"
                raise Refusal(["store-conflict"], said, gate="pacs", subject=_digest(other))
        outcomes += stored.values()
    counts = dict(Counter(outcomes))
    return Result({"pacs": pacs, **counts}, [f"{count} {outcome}" for outcome, count in counts.items()])


def commit(*files: Path, pacs: Pacs = "primary", by: Proof = "auto", as_json: AsJson = False) -> Result:
    """Have an endpoint show that it holds these files. Exit 3 when it does not hold one.

    By storage commitment where a probe saw it and the node's receiver runs (the archive reports to it), else by reading each file
    back and comparing every attribute. What the archive changed of patient, study and order (PS3.4 B.4.1.3) is shown by its tags.

    Example: `rapha pacs commit report.dcm --pacs primary`

    Parameters
    ----------
    by
        One of the two ways alone.
    """
    archive, studies = _archive(pacs), _by_study(files)
    commits = by == "commitment" or (by == "auto" and COMMITMENT in archive.capabilities.services)
    everything = [(study, one) for study, objects in studies.items() for one in objects]
    tags: set[str] = set()
    with shown(f"asking about {len(everything)} files"), _receiving(needed=commits) as receiver:
        how = "commitment" if by == "commitment" or (commits and receiver) else "read-back"
        if how == "commitment":
            committed = _committed(archive, [one for _, one in everything], receiver)
            lost = [one for _, one in everything if one.sop_instance not in committed]
        else:
            found = [(one, _held(archive, study, one, receiver)) for study, one in everything]
            lost = [one for one, compared in found if compared.outcome not in ("same", "coerced")]
            tags = {tag for _, compared in found for tag in compared.tags}
    held = len(everything) - len(lost)
    if lost:
        said = f"the archive does not hold {len(lost)} of {len(everything)} files as they are"
        raise Refusal(["not-committed"], said, gate="pacs", subject=_digest(lost[0]))
    alike = f"every attribute the same but {', '.join(sorted(tags))}," if tags else "every attribute the same,"
    said = "commits to" if how == "commitment" else f"gives back, {alike}"
    changed = {"coerced": sorted(tags)} if tags else {}
    return Result({"pacs": pacs, "held": held, "by": how, **changed}, [f"{pacs} {said} {held} files"])


def _receiving(*, needed: bool) -> AbstractContextManager[Receiver | None]:
    """Our receiver, where one is configured. needed: one that does not answer is a failed peer, not a way less."""
    try:
        return receiver_of(os.environ) or nullcontext()
    except PeerError:
        if needed:
            raise
        return nullcontext()


def _committed(archive: Archive, objects: Sequence[ToStore], receiver: Receiver | None) -> frozenset[str]:
    """Which of them it commits to, by their UIDs. The report comes on our association, or at the receiver where there is one."""
    asked = [(one.sop_class, one.sop_instance) for one in objects]
    transaction = derived_uid("transaction", [secrets.token_hex(16)])
    elsewhere = receiver.commitment if receiver else None
    report = archive.commit(asked, transaction, seconds=COMMIT_SECONDS, elsewhere=elsewhere)
    return frozenset(uid for sop_class, uid in asked if standing([report], sop_class, uid) == "committed")


def _digest(one: ToStore) -> str:
    with open_regular(one.path, "file-unreadable") as stream:
        return digest_file(stream)


def _known(archive: Archive, study: str, one: ToStore) -> str:
    """With which content the archive knows it: as `_held`, "" where it gives nothing back."""
    try:
        with _receiving(needed=False) as receiver:
            return _held(archive, study, one, receiver).outcome
    except PeerError as error:
        if error.codes != (NOTHING,):
            raise
        return ""


def _held(archive: Archive, study: str, one: ToStore, receiver: Receiver | None) -> Compared:
    """Whether the archive gives the file back as it is. Raises `PeerError` pacs-proves-nothing, and of the archive."""
    _, series = _names(one.path) or ("", "")
    found = _given(archive, receiver, study, Listed(one.sop_instance, one.sop_class, series))
    if found is None:
        return Compared("absent")
    return compare(attribute_digests(one.path.read_bytes()), attribute_digests(found))


def _given(archive: Archive, receiver: Receiver | None, study: str, one: Listed) -> bytes | None:
    if not isinstance(archive, WitnessedArchive):
        return given_back(archive, receiver, study, one)
    act = inward(archive.endpoint, archive.person, Study(study, sop_classes=sop_classes([one.sop_class])))
    with audited(archive.trail, "transfer", act):
        return given_back(archive.plain, receiver, study, one)


def _by_study(files: Sequence[Path]) -> dict[str, list[ToStore]]:
    if not files:
        raise ConfigurationError(["file-missing"], "name at least one DICOM file")
    found: dict[str, list[ToStore]] = {}
    for path in files:
        meta, names = read_whole(path, "file-unreadable"), _names(path)
        if meta is None or names is None:
            raise ConfigurationError(["file-not-dicom"], f"{path} is no DICOM file (PS3.10), or not a whole one")
        found.setdefault(names[0], []).append(ToStore(path, meta.sop_class, meta.sop_instance, meta.transfer_syntax))
    return found


def _names(path: Path) -> tuple[str, str] | None:
    """The UIDs of its study and series."""
    try:
        read = dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID", "SeriesInstanceUID"])
        names = str(read.StudyInstanceUID), str(read.SeriesInstanceUID)
    except UNREADABLE:
        return None
    return names if all(names) else None


def _capabilities() -> Path:
    state = os.environ.get("RAPHA_STATE_DIR", "").strip()
    if not state:
        raise ConfigurationError(["missing-state-dir"], "RAPHA_STATE_DIR is not set: capability records are kept there")
    return Path(state) / "capabilities"


def _archive(name: str, *, known: bool = True) -> Archive:
    """An endpoint of the profile at RAPHA_PROFILE_PATH; without a profile `primary` is RAPHA_DICOMWEB_BASE_URL.

    known: with what its last probe found; a probe does without, so that it mends a record that cannot be read.
    """
    bundle = os.environ.get("RAPHA_CA_BUNDLE", "").strip()
    profile = os.environ.get("RAPHA_PROFILE_PATH", "").strip()
    if profile:
        endpoints = load_profile(Path(profile)).endpoints
        if name not in endpoints:
            raise ConfigurationError(["pacs-unknown"], f"no endpoint of this name is configured; there is {', '.join(endpoints)}")
        state = os.environ.get("RAPHA_STATE_DIR", "").strip()
        found = probing.read_record(Path(state) / "capabilities", name) if state and known else Capabilities()
        return _witnessed(Archive(endpoints[name], found, ca=Path(bundle) if bundle else None))
    if name != "primary":
        raise ConfigurationError(["pacs-unknown"], "no endpoint of this name is configured; there is `primary`")
    url = os.environ.get("RAPHA_DICOMWEB_BASE_URL", "").strip()
    if not url:
        raise ConfigurationError(["missing-dicomweb-base-url"], "RAPHA_DICOMWEB_BASE_URL is not set, nor RAPHA_PROFILE_PATH")
    production = os.environ.get("RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION") == "true"
    if wrong := url_problem("RAPHA_DICOMWEB_BASE_URL", url, production=production):
        raise ConfigurationError(sorted(wrong), "; ".join(wrong.values()))
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


def _question(keys: tuple[str, ...]) -> Question:
    if not all("=" in key for key in keys):
        raise ConfigurationError(["key-malformed"], "give each key as KEYWORD=VALUE, with a keyword or a tag of PS3.6")
    return read_question((name, value) for name, _, value in (key.partition("=") for key in keys))


def _row(answer: Answer, level: str) -> dict[str, str]:
    tags = [tag for name, tag in UNIQUE.items() if name in (level, "study") or level == "instance"]
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
