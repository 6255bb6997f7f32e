"""What an archive can do, asked and not assumed: the capability record that on-boarding writes."""

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks.archive import Archive, Capabilities
from blocks.dimse.association import associated, contexts
from blocks.dimse.services import COMMITMENT, FIND, GET, MOVE, VERIFICATION
from rapha.canonical import canonical, parse
from rapha.errors import PeerError, Refusal
from rapha.files import replace_durably

SERVICES = {"C-ECHO": VERIFICATION, "C-FIND": FIND, "C-MOVE": MOVE, "C-GET": GET, "storage commitment": COMMITMENT}
STORAGE = {
    "CT Image": "1.2.840.10008.5.1.4.1.1.2",
    "MR Image": "1.2.840.10008.5.1.4.1.1.4",
    "Digital X-Ray Image": "1.2.840.10008.5.1.4.1.1.1.1",
    "VL Whole Slide Microscopy Image": "1.2.840.10008.5.1.4.1.1.77.1.6",
    "Comprehensive SR": "1.2.840.10008.5.1.4.1.1.88.33",
    "Comprehensive 3D SR": "1.2.840.10008.5.1.4.1.1.88.34",
    "Segmentation": "1.2.840.10008.5.1.4.1.1.66.4",
}
MAX_RECORD = 1 << 16


def probe(archive: Archive, at: int) -> dict[str, Any]:
    """The record: which services and storage SOP classes the archive accepts, whether QIDO-RS answers, how long a C-ECHO takes.

    Raises `PeerError` where the archive's configured side does not answer at all.
    """
    endpoint = archive.endpoint
    record: dict[str, Any] = {"version": 1, "endpoint": endpoint.name, "at": at, "services": [], "stores": [], "tls": False}
    if endpoint.port:
        offered = contexts([*map(str, SERVICES.values()), *STORAGE.values()])
        with associated(endpoint, offered) as association:
            accepted = {str(context.abstract_syntax) for context in association.accepted_contexts}
        began = time.monotonic()
        archive.echo()
        record["echo_ms"] = round(1000 * (time.monotonic() - began))
        record["services"] = sorted(name for name, uid in SERVICES.items() if str(uid) in accepted)
        record["stores"] = sorted(name for name, uid in STORAGE.items() if uid in accepted)
        record["tls"] = endpoint.tls is not None
    if endpoint.dicomweb_url:
        Archive(dataclasses.replace(endpoint, port=0)).echo()
        record["services"] = sorted({*record["services"], "QIDO-RS"})
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Keeps the record as `<folder>/<endpoint>.json`, durably."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{record['endpoint']}.json"
    try:
        replace_durably(path, canonical(dict(record)) + b"\n")
    except OSError as error:
        raise PeerError("capabilities-unwritable", f"the record cannot be kept: {error.strerror}", peer="disk") from None
    return path


def read_record(folder: Path, name: str) -> Capabilities:
    """What the last probe of this endpoint found; nothing where none was made. Raises `Refusal(capabilities-odd)`."""
    try:
        raw = (folder / f"{name}.json").read_bytes()
    except FileNotFoundError:
        return Capabilities()
    try:
        record = parse(raw, limit=MAX_RECORD, what="capability record")
        return Capabilities(frozenset(map(str, record["services"])), frozenset(map(str, record["stores"])), str(record["at"]))
    except (Refusal, KeyError, TypeError, json.JSONDecodeError):
        raise Refusal(["capabilities-odd"], "the capability record is not one that a probe wrote: probe again") from None
