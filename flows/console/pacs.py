"""`rapha minimise` and `rapha pacs …`: one data set without its people; the archive by hand."""

import base64
import binascii
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter
from pydicom.datadict import dictionary_keyword, tag_for_keyword

from blocks.pacs import Answer, DicomWeb, value_of
from policies.manifest import MAX_MANIFEST, read_manifest
from policies.minimise import minimise_counted, project_key
from rapha.canonical import parse
from rapha.console.app import AsJson, Result, group
from rapha.errors import ConfigurationError, Refusal
from rapha.files import read_regular
from tasks.shared.collect import save_instances

MAX_INPUT = 64 << 20
NO_PROJECT = "no-project"  # pseudonyms that join to no project's
UNIQUE = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}
Level = Literal["study", "series", "instance"]
Pacs = Annotated[str, Parameter(name="--pacs", help="The endpoint's name; `primary` is RAPHA_DICOMWEB_BASE_URL.")]
_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_SHOWN = ("StudyDate", "Modality", "ModalitiesInStudy", "BodyPartExamined", "PatientID", "PatientName", "AccessionNumber")


def register(app: cyclopts.App) -> None:
    app.command(minimise_file, name="minimise")
    pacs = group(app, "pacs", "The archive, by hand. These commands show identifiers: for the hospital's side alone.")
    for command in (find, retrieve, echo, probe, store, commit):
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
        found = archive.list_studies(filters, ("ModalitiesInStudy",), limit=limit)
    else:
        fields = ("0020000D", "0020000E", "00080018", "00100020", "00080060", "00080020", "00180015")
        listed = archive.list_instances(filters, fields)
        found = list({value_of(answer, UNIQUE[level]): answer for answer in listed}.values())[:limit]
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
    """Retrieve a study, a series or an instance into the folder OUT, as the archive stores it.

    Example: `rapha pacs retrieve 1.2.840.1.2.3 --out ./study --pacs primary`

    Parameters
    ----------
    study
        Study Instance UID.
    out
        A new or empty folder; files are numbered, their names say nothing.
    """
    for uid in (study, series, instance):
        if uid is not None and not (_UID.fullmatch(uid) and len(uid) <= 64):
            raise ConfigurationError(["uid-malformed"], "a UID is digits and dots, at most 64 of them")
    if instance is not None and series is None:
        raise ConfigurationError(["series-missing"], "an instance is asked for with its series")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigurationError(["folder-not-empty"], f"{out} is no empty folder")
    files, size = save_instances(_archive(pacs), study, series, instance, out)
    return Result({"files": files, "bytes": size, "out": str(out)}, [f"{files} instances, {size} bytes in {out}"])


def echo(*, pacs: Pacs = "primary", as_json: AsJson = False) -> Result:
    """Verify an endpoint (C-ECHO). Not built yet.

    Example: `rapha pacs echo --pacs primary`
    """
    raise _not_built()


def probe(*, pacs: Pacs = "primary", as_json: AsJson = False) -> Result:
    """Write an endpoint's capability record. Not built yet.

    Example: `rapha pacs probe --pacs primary`
    """
    raise _not_built()


def store(*files: Path, pacs: Pacs = "primary", as_json: AsJson = False) -> Result:
    """Store DICOM files at an endpoint. Not built yet.

    Example: `rapha pacs store report.dcm --pacs primary`
    """
    raise _not_built()


def commit(*files: Path, pacs: Pacs = "primary", as_json: AsJson = False) -> Result:
    """Ask an endpoint to commit to what it was sent. Not built yet.

    Example: `rapha pacs commit report.dcm --pacs primary`
    """
    raise _not_built()


def _not_built() -> Refusal:
    return Refusal(["not-built"], "this comes with the reading service, which is not built yet", gate="pacs")


def _archive(name: str) -> DicomWeb:
    if name != "primary":
        raise ConfigurationError(["pacs-unknown"], "no endpoint of this name is configured; there is `primary`")
    url = os.environ.get("RAPHA_DICOMWEB_BASE_URL", "").strip()
    if not url:
        raise ConfigurationError(["missing-dicomweb-base-url"], "RAPHA_DICOMWEB_BASE_URL is not set")
    bundle = os.environ.get("RAPHA_CA_BUNDLE", "").strip()
    return DicomWeb(url, ca=Path(bundle) if bundle else None)


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
