"""`rapha report validate`: the checks that a report must pass before it is stored."""

from pathlib import Path

import cyclopts

from flows.console.progress import shown
from policies.report import REASONS
from rapha.canonical import digest_file
from rapha.console.app import AsJson, Result, group
from rapha.errors import ConfigurationError, Refusal
from rapha.files import open_regular, read_regular
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
    subject = _digest(report)
    raw = read_regular(report, MAX_REPORT, "report-unreadable")
    try:
        with shown("three checks"):
            found = run_checks(raw)
    except Refusal as refusal:
        raise Refusal(refusal.codes, refusal.message, gate=refusal.gate, side=refusal.side, subject=subject) from None
    verdict = "refused" if found.codes else "cleared"
    data = {
        "verdict": verdict,
        "gate": "report",
        "codes": list(found.codes),
        "subject": subject,
        "checks": list(found.checks),
        "warnings": found.warnings,
    }
    lines = [verdict, *(f"{code}: {REASONS[code]}" for code in found.codes), f"checks: {', '.join(found.checks)}"]
    return Result(data, lines, 3 if found.codes else 0)


def _digest(report: Path) -> str:
    """Of the whole file, however long: what is refused is named too."""
    with open_regular(report, "report-unreadable") as stream:
        try:
            return digest_file(stream)
        except OSError as error:
            raise ConfigurationError(["report-unreadable"], f"{report}: {error.strerror}") from None
