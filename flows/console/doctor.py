"""`rapha doctor`: may this node start?"""

import os

import cyclopts

from blocks.halves import Half, halves
from flows.console.progress import shown
from flows.doctor import examine
from flows.finding import Finding
from flows.reading_doctor import examine_reading
from rapha.canonical import digest_of
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
    findings: list[Finding] = []
    with shown(lambda: f"{len(findings)} things looked at"):
        for look in (look for half, look in _LOOKS.items() if half in wanted):
            findings.extend(look(os.environ))
    node = os.environ.get("RAPHA_NODE_ID", "").strip()
    codes = sorted({finding.code for finding in findings if not finding.ok})
    data = {
        "verdict": "refused" if codes or not findings else "cleared",
        "gate": "doctor",
        "codes": codes,
        "subject": digest_of({"rapha node": node}) if node else "",
        "checks": [{"name": f.name, "ok": f.ok, "code": f.code, "said": f.said} for f in findings],
    }
    lines = [f"{'ok     ' if f.ok else 'MISSING'}  {f.name}{_told(f)}" for f in findings]
    return Result(data, lines, 3 if codes or not findings else 0)


_LOOKS = {"training": examine, "reading": examine_reading}


def _told(finding: Finding) -> str:
    return "" if not finding.said else f"  {finding.said}" if finding.ok else f"  {finding.code}: {finding.said}"
