"""`rapha report validate`: the checks that a report must pass before it is stored."""

from pathlib import Path

import cyclopts

from policies.report import REASONS
from rapha.canonical import digest
from rapha.console.app import AsJson, Result, group
from rapha.files import read_regular
from tasks.reading.validate import MAX_REPORT
from tasks.reading.validate import validate as run_checks


def register(app: cyclopts.App) -> None:
    """Adds the commands."""
    reports = group(app, "report", "The checks that a report must pass before it is stored.")
    reports.command(validate)


def validate(report: Path, *, as_json: AsJson = False) -> Result:
    """Judge a structured report: our own check, the IOD validator's and the template validator's. Exit 3 when one refuses.

    Example: `rapha report validate sr.dcm`
    """
    raw = read_regular(report, MAX_REPORT, "report-unreadable")
    found = run_checks(raw)
    verdict = "refused" if found.codes else "cleared"
    data = {
        "verdict": verdict,
        "gate": "report",
        "codes": list(found.codes),
        "subject": digest(raw),
        "checks": list(found.checks),
        "warnings": found.warnings,
    }
    lines = [verdict, *(f"{code}: {REASONS[code]}" for code in found.codes), f"checks: {', '.join(found.checks)}"]
    return Result(data, lines, 3 if found.codes else 0)
