"""Third-party code that passes by digest: what makes a wheel a known one.

A wheel's RECORD lists each of its files with a SHA-256. What an installer adds or may leave out (INSTALLER, REQUESTED,
direct_url.json, compiled caches, scripts outside the library folder, RECORD itself) is taken off, the rest sorted: the digest of
that text names the wheel's content wherever it is installed (the binary distribution format of PyPA, section "RECORD").
"""

import base64
import binascii
import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from policies.known_wheels import KNOWN_WHEELS
from rapha.canonical import digest, is_digest
from rapha.errors import ConfigurationError

INSTALLER_FILES = frozenset({"INSTALLER", "REQUESTED", "RECORD", "direct_url.json"})
MAX_RECORD = 8 << 20


@dataclass(frozen=True, slots=True)
class KnownWheel:
    name: str
    version: str
    record: str  # digest of the normalised RECORD


@dataclass(frozen=True, slots=True)
class Record:
    """A parsed RECORD. `files`: path below the library folder -> `sha256:…`."""

    digest: str
    files: Mapping[str, str]


def read_record(raw: bytes) -> Record | None:
    """The normalised RECORD, or None for what is not one."""
    if len(raw) > MAX_RECORD:
        return None
    try:
        rows = list(csv.reader(io.StringIO(raw.decode("utf-8")), strict=True))
        files = {row[0]: _hex(row[1]) for row in rows if row and not _installer_added(row[0])}
    except (ValueError, IndexError, csv.Error, binascii.Error):
        return None
    if any(".." in path.split("/") or path.startswith("/") for path in files):
        return None
    text = "".join(f"{path},{files[path]}\n" for path in sorted(files))
    return Record(digest(text.encode()), files)


def table(extra: Iterable[Mapping[str, str]] = ()) -> dict[str, KnownWheel]:
    """record digest -> wheel: the project's table and the hospital's own (objects with name, version, record)."""
    out: dict[str, KnownWheel] = {}
    for row in (*KNOWN_WHEELS, *extra):
        if set(row) != {"name", "version", "record"} or not is_digest(row["record"]):
            raise ConfigurationError(
                ["known-wheels-malformed"], "a row of the table of known wheels has not exactly name, version, record"
            )
        out[row["record"]] = KnownWheel(row["name"], row["version"], row["record"])
    return out


def table_digest(wheels: Mapping[str, KnownWheel]) -> str:
    return digest("".join(f"{record}\n" for record in sorted(wheels)).encode())


def _installer_added(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return path.startswith("../") or name.endswith(".pyc") or (folder.endswith(".dist-info") and name in INSTALLER_FILES)


def _hex(field: str) -> str:
    algorithm, _, value = field.partition("=")
    raw = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    if algorithm != "sha256" or len(raw) != 32:
        raise ValueError("not a SHA-256")
    return "sha256:" + raw.hex()
