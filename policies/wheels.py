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


@dataclass(frozen=True, slots=True)
class KnownTable:
    """What passes by digest. wheels: digests of normalised RECORDs; layers: diff ids of base image layers that the hospital has
    checked itself (an interpreter and its libraries): every file of such a layer passes."""

    wheels: frozenset[str]
    layers: frozenset[str] = frozenset()

    @property
    def digest(self) -> str:
        lines = [f"record {d}\n" for d in sorted(self.wheels)] + [f"layer {d}\n" for d in sorted(self.layers)]
        return digest("".join(lines).encode())


def table(extra: Iterable[Mapping[str, str]] = ()) -> KnownTable:
    """The project's table and the hospital's own rows: objects with name, version and either record or layer."""
    found: dict[str, set[str]] = {"record": set(), "layer": set()}
    for row in (*KNOWN_WHEELS, *extra):
        kind = "layer" if "layer" in row else "record"
        if set(row) != {"name", "version", kind} or not is_digest(row[kind]):
            raise ConfigurationError(
                ["known-wheels-malformed"], "a row of the table of known wheels has not exactly name, version, record"
            )
        found[kind].add(row[kind])
    return KnownTable(frozenset(found["record"]), frozenset(found["layer"]))


def _installer_added(path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return path.startswith("../") or name.endswith(".pyc") or (folder.endswith(".dist-info") and name in INSTALLER_FILES)


def _hex(field: str) -> str:
    algorithm, _, value = field.partition("=")
    raw = base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    if algorithm != "sha256" or len(raw) != 32:
        raise ValueError("not a SHA-256")
    return "sha256:" + raw.hex()
