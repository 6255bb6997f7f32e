"""`rapha doctor`: may this node start?"""

import os

import cyclopts

from flows.doctor import examine
from rapha.console.app import AsJson, Result


def register(app: cyclopts.App) -> None:
    """Adds the command."""
    app.command(doctor, name="doctor")


def doctor(*, as_json: AsJson = False) -> Result:
    """Look at every setting, key, peer, the clock, the disk and the isolation: one line each, a code for each thing missing.

    Exit 0 when the node may start, else 3. Example: `rapha doctor`
    """
    findings = list(examine(os.environ))
    codes = sorted({finding.code for finding in findings if not finding.ok})
    data = {
        "verdict": "refused" if codes or not findings else "cleared",
        "gate": "doctor",
        "codes": codes,
        "subject": "",
        "checks": [{"name": f.name, "ok": f.ok, "code": f.code, "said": f.said} for f in findings],
    }
    lines = [f"{'ok     ' if f.ok else 'MISSING'}  {f.name}{'' if f.ok else f'  {f.code}: {f.said}'}" for f in findings]
    return Result(data, lines, 3 if codes or not findings else 0)
