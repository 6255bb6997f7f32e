"""The compliance scan of one workload: unpack it, tell known wheels by digest, read the rest, judge.

`scan` never raises for what is wrong with a workload: every reason is a remark in its report, and an empty list of remarks
is the only pass. Reading stops at the first thing that makes the rest unreadable.
"""

import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from policies.image import ROOT
from policies.python_source import module_names
from policies.scan import FileFact, Remark, Report, ScanLimits, judge_files
from policies.wheels import INSTALLER_FILES, MAX_RECORD, KnownTable, read_record, table
from rapha.canonical import MAX_BYTES, parse
from rapha.errors import ConfigurationError, Refusal
from rapha.files import read_regular
from tasks.scanning.forms import read_form
from tasks.scanning.layout import is_layout, unpack_image
from tasks.scanning.unpack import Unpacked

_RECORD = ".dist-info/RECORD"
_SMALL = 4096


@dataclass(frozen=True)
class Scanned:
    """kind: "source" or "oci"; manifest: the image's platform manifest digest ("" for a source); entry_point: what the image
    starts, or the declared one."""

    kind: str
    manifest: str
    entry_point: str
    report: Report


def scan(
    path: Path,
    destination: Path,
    known: KnownTable,
    limits: ScanLimits,
    *,
    kind: str | None = None,
    declared: str | None = None,
    entry_point: str | None = None,
) -> Scanned:
    """Unpacks the workload at `path` into the new folder `destination` and judges it.

    kind: "source" | "oci", or None to tell by the layout's own mark; declared: the digest that an image's manifest must have.
    """
    destination.mkdir(parents=True)
    tree = Unpacked(destination, limits)
    manifest, started, found = "", entry_point or "", kind or "source"
    try:
        found = kind or ("oci" if is_layout(path) else "source")
        if found == "oci":
            image = unpack_image(path, tree, known.layers, declared, entry_point)
            manifest, started = image.manifest, started or image.entry_point
        elif path.is_dir():
            tree.add_folder(path)
        else:
            with path.open("rb") as stream:
                tree.add_tar(stream)
        wanted = started if found == "oci" or entry_point is not None else None
        remarks, own, passed = _judge(tree, known.wheels, wanted, f"{ROOT}/" if found == "oci" else "")
    except Refusal as stop:
        remarks, own, passed = [Remark(code) for code in stop.codes], 0, 0
    except OSError as error:
        raise ConfigurationError(["scan-unreadable"], f"the workload cannot be read ({type(error).__name__})") from None
    report = Report(
        files=len(tree.files),
        own=own,
        known=passed,
        size=tree.size,
        tree=tree.tree,
        wheels=known.digest,
        remarks=(*tree.remarks, *remarks),
    )
    return Scanned(found, manifest, started, report)


def hospital_wheels(path: Path | None) -> list[dict[str, str]]:
    """The hospital's own rows of known wheels (RAPHA_KNOWN_WHEELS_PATH), none without a file. Raises `ConfigurationError`."""
    if path is None:
        return []
    try:
        rows = parse(read_regular(path, MAX_BYTES, "known-wheels-malformed"), what="table of known wheels")
    except Refusal:
        raise ConfigurationError(["known-wheels-malformed"], f"{path}: not a readable JSON array of known wheels") from None
    if not isinstance(rows, list) or not all(isinstance(r, dict) and all(isinstance(v, str) for v in r.values()) for r in rows):
        raise ConfigurationError(["known-wheels-malformed"], f"{path}: not an array of objects with name, version, record")
    table(rows)
    return rows


@contextmanager
def scanned_aside(path: Path, known: KnownTable, limits: ScanLimits) -> Iterator[Scanned]:
    """A scan that leaves nothing behind."""
    with tempfile.TemporaryDirectory(prefix="rapha-scan-") as folder:
        yield scan(path, Path(folder) / "tree", known, limits)


def _judge(tree: Unpacked, wheels: Set[str], entry_point: str | None, below: str) -> tuple[list[Remark], int, int]:
    """(remarks, own files, files that pass by digest). `below`: where the workload's own files are."""
    listed, remarks = _listed(tree, wheels)
    known, changed = {path for path, written in tree.files.items() if written.known}, []
    for path, wanted in listed.items():
        written = tree.files.get(path)
        if written is None or written.known:
            continue
        if wanted in {written.digest, ""}:
            known.add(path)
        else:
            changed.append(Remark("wheel-file-changed", path))
    own = [path for path in tree.files if path not in known]
    local = {name for path in own if path.endswith(".py") for name in module_names(path.removeprefix(below))}
    entry_point = None if entry_point is None else below + entry_point
    facts: list[FileFact] = [read_form(tree.folder, path, tree.files[path], local) for path in sorted(own)]
    return [*remarks, *changed, *judge_files(facts, local, entry_point)], len(own), len(known)


def _listed(tree: Unpacked, wheels: Set[str]) -> tuple[dict[str, str], list[Remark]]:
    """path -> digest that a known wheel's RECORD gives it ("" for what the installer itself wrote)."""
    listed: dict[str, str] = {}
    remarks = []
    for path in [p for p, written in tree.files.items() if p.endswith(_RECORD) and not written.known]:
        record = read_record((tree.folder / path).read_bytes()) if tree.files[path].size <= MAX_RECORD else None
        if record is None or record.digest not in wheels:
            remarks.append(Remark("record-unknown", path))
            continue
        info = path.removesuffix("/RECORD")
        root = info.rpartition("/")[0]
        prefix = f"{root}/" if root else ""
        listed.update({f"{prefix}{name}": found for name, found in record.files.items()})
        listed.update({f"{info}/{name}": "" for name in INSTALLER_FILES if _small(tree, f"{info}/{name}")})
    return listed, remarks


def _small(tree: Unpacked, path: str) -> bool:
    return path in tree.files and (path.endswith("/RECORD") or tree.files[path].size <= _SMALL)
