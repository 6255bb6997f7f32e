"""`rapha scan`: the workload scan alone, for an AI team before it signs and for a hospital that wants to see."""

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from policies.scan import REASONS, ScanLimits, counted
from policies.wheels import table
from rapha.console.app import AsJson, Result
from rapha.errors import ConfigurationError
from tasks.scanning.scan import Scanned, hospital_wheels, scanned_aside

SHOWN = 20


def register(app: cyclopts.App) -> None:
    app.command(scan_path, name="scan")


def scan_path(
    path: Path, *, wheels: Annotated[Path | None, Parameter(name="--wheels")] = None, as_json: AsJson = False
) -> Result:
    """Scan an OCI image layout, an image archive or a source folder for anything that could reach a network.

    Nothing of the workload is run. `--wheels` adds a hospital's own table of known wheels (JSON, from scripts/known_wheels.py
    --json). Exit 0: clean. Exit 3: refused, with the codes and the first places.

    Example: `rapha scan ./my-workload --json`
    """
    if not path.exists():
        raise ConfigurationError(["scan-no-such-path"], f"{path}: there is nothing there")
    if not (path.is_dir() or path.is_file()):
        raise ConfigurationError(["scan-not-a-file"], f"{path}: neither a file nor a folder")
    with scanned_aside(path, table(hospital_wheels(wheels)), ScanLimits()) as found:
        return _result(found)


def _result(found: Scanned) -> Result:
    report = found.report
    codes = list(report.codes)
    data: dict[str, object] = {
        "verdict": "refused" if codes else "cleared",
        "gate": "workload",
        "codes": codes,
        "subject": found.manifest or report.tree,
        "kind": found.kind,
        "entry_point": found.entry_point,
        "files": report.files,
        "own_files": report.own,
        "known_files": report.known,
        "bytes": report.size,
        "counts": dict(counted(report.remarks)),
        "reasons": [
            {"code": c, "side": REASONS[c].side, "wrong": REASONS[c].wrong, "todo": REASONS[c].todo}
            for c in codes
            if c in REASONS
        ],
        "findings": [{"code": r.code, "path": r.path} for r in report.remarks[:SHOWN]],
    }
    return Result(data, _lines(data), 3 if codes else 0)


def _lines(data: dict[str, object]) -> list[str]:
    head = (
        f"{data['verdict']}: {data['kind']} workload, {data['files']} files, {data['bytes']} bytes; "
        f"{data['known_files']} files of known wheels, {data['own_files']} of its own"
    )
    lines = [head]
    findings, reasons = data["findings"], data["reasons"]
    if isinstance(findings, list):
        lines += [f"  {f['code']}  {f['path']}" for f in findings]
    if isinstance(reasons, list):
        lines += [f"{r['code']}: {r['wrong']} {r['todo']}" for r in reasons]
    return lines
