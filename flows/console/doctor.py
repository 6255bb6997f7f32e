"""`rapha doctor`: may this node start?"""

import os

import cyclopts

from blocks.halves import Half, halves
from flows.doctor import examine
from flows.finding import Finding
from flows.reading_doctor import examine_reading
from rapha.console.app import AsJson, Result


def register(app: cyclopts.App) -> None:
    """Adds the command."""
    app.command(doctor, name="doctor")


def doctor(*, only: Half | None = None, as_json: AsJson = False) -> Result:
    """Look at every setting, key, peer, the clock, the disk and the isolation: one line each, a code for each thing missing.

    Exit 0 when the node may start, else 3. Example: `rapha doctor`

    Parameters
    ----------
    only
        One half of a node: train, or read. Every half that is configured, when left out.
    """
    wanted = halves(os.environ, only)
    findings = list(examine(os.environ)) if "training" in wanted else []
    findings += examine_reading(os.environ) if "reading" in wanted else []
    codes = sorted({finding.code for finding in findings if not finding.ok})
    data = {
        "verdict": "refused" if codes or not findings else "cleared",
        "gate": "doctor",
        "codes": codes,
        "subject": "",
        "checks": [{"name": f.name, "ok": f.ok, "code": f.code, "said": f.said} for f in findings],
    }
    lines = [f"{'ok     ' if f.ok else 'MISSING'}  {f.name}{_told(f)}" for f in findings]
    return Result(data, lines, 3 if codes or not findings else 0)


def _told(finding: Finding) -> str:
    return "" if not finding.said else f"  {finding.said}" if finding.ok else f"  {finding.code}: {finding.said}"
