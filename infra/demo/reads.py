"""The reading half, shown: two new studies from a modality to validated reports in the archive, the mail, the audit trail."""

import email
import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from blocks.archive import Archive, Listed
from blocks.profile import load_profile
from blocks.reading import ReadingRegister, open_reading_register
from infra.demo import clinic
from infra.demo.show import Show, rapha
from infra.demo.world import World
from rapha.errors import PeerError, RaphaError, Refusal
from rapha.ledger import read

PATIENCE = 240.0
GATES = ("arrival", "completeness")


def read_half(up: World, show: Show) -> dict[str, Any]:
    """From the modality to the audit trail; raises at the first thing that did not happen."""
    environment, root = up.environment, up.layout.root
    _onboard(environment, show)
    studies = clinic.new_studies()
    for study in studies:
        clinic.send(up.layout, environment, study)
    show.say(f"a modality sends {len(studies)} new studies to the archive, by C-STORE")
    start_run(up.ui, "poll/poll", {"pacs": "primary"})
    rows = _followed(up, show, len(studies))
    report = _fetched(environment, root / "report.dcm", studies[0])
    status, checked = rapha("report", "validate", str(report), environment=environment)
    _must(status == 0 and checked.get("verdict") == "cleared", "demo-report-not-valid")
    show.say("the report, fetched from the archive as report.dcm: passes dciodvfy, DicomSRValidator and our own check")
    mails = _mails(root / "mail", len(studies))
    for one in mails:
        show.say(f"  mail to [bold]{one['To']}[/bold]: {one['Subject']}")
    _acknowledged(environment, show)
    return {"studies": rows, "report": str(report), "mails": [str(one["Subject"]) for one in mails], "audit": _audit(up, show)}


def _onboard(environment: dict[str, str], show: Show) -> None:
    """What an engineer does first with a new archive."""
    status, answered = rapha("pacs", "echo", "--pacs", "primary", environment=environment)
    _must(status == 0, "demo-echo-failed")
    status, record = rapha("pacs", "probe", "--pacs", "primary", environment=environment)
    _must(status == 0, "demo-probe-failed")
    show.say(f"archive: {answered['by']} answered in {answered['ms']} ms; it offers {', '.join(record['services'])}")


def start_run(ui: str, deployment: str, parameters: dict[str, Any]) -> None:
    """One run of a deployment, as its schedule would start it, and not two. Raises `PeerError(demo-engine)`."""
    once = {"parameters": parameters, "idempotency_key": secrets.token_hex(16)}
    try:
        found = _posted(f"{ui}/api/deployments/filter", {"deployments": {"name": {"any_": [deployment.partition("/")[2]]}}})
        _posted(f"{ui}/api/deployments/{found[0]['id']}/create_flow_run", once)
    except (OSError, ValueError, LookupError) as error:
        said = f"the engine did not start {deployment}: {error}"
        raise PeerError("demo-engine", said, peer="engine") from None


def _posted(url: str, body: dict[str, Any]) -> Any:
    """The engine's answer. Its SQLite is locked now and then (503): asked again, as its own client does."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    for pause in (0.2, 0.5, 1.0, 2.0, None):
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            if error.code != 503 or pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("the last one raises")


def _followed(up: World, show: Show, wanted: int) -> list[dict[str, Any]]:
    """Shows each row's stage and each verdict as it falls, until every study is done."""
    register, seen, told = open_reading_register(up.environment), dict[int, tuple[str, str]](), 0
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        told = _verdicts(up.layout.root / "ledger", show, told)
        for row, state in _states(register).items():
            if seen.get(row) != state:
                show.say(f"  study {row}: {state[1] if state[0] == 'in-progress' else state[0]}")
                seen[row] = state
        if len(seen) >= wanted and all(state == "completed" for state, _ in seen.values()):
            return [{"row": row, "state": state} for row, (state, _) in sorted(seen.items())]
        if any(state == "canceled" for state, _ in seen.values()):
            break
        time.sleep(0.2)
    raise PeerError("demo-studies-not-read", f"not every study was read; see {up.layout.logs} and `rapha dead-letters list`")


def _states(register: ReadingRegister) -> dict[int, tuple[str, str]]:
    """row -> (state, stage), of the first rows: the register is the demo's own."""
    found: dict[int, tuple[str, str]] = {}
    for row in range(1, 1 + len(clinic.STUDIES)):
        try:
            one = register.study(row)
        except Refusal:  # no poll has made it yet
            continue
        found[row] = (one.state, one.stage)
    return found


def _verdicts(ledger: Path, show: Show, told: int) -> int:
    """Shows the reading gates' verdicts beyond the first `told` ones."""
    try:
        mine = [entry.body for entry in read(ledger) if entry.kind == "verdict" and entry.body.get("gate") in GATES]
    except RaphaError:
        return told  # an entry is being written just now
    for body in mine[told:]:
        mark = "[green]cleared[/green]" if body["verdict"] == "cleared" else f"[red]refused[/red] {', '.join(body['codes'])}"
        show.say(f"  gate [bold]{body['gate']:<14}[/bold] {mark}  [dim]{len(body['ran'])} checks, {body['subject'][:19]}…[/dim]")
    return max(told, len(mine))


def _fetched(environment: Mapping[str, str], to: Path, study: list[Dataset]) -> Path:
    """The study's report as the archive gives it, by WADO-RS."""
    endpoint = load_profile(Path(environment["RAPHA_PROFILE_PATH"]), environment).endpoints["primary"]
    uid, mine = str(study[0].StudyInstanceUID), {str(one.SOPInstanceUID) for one in study}
    archive = Archive(endpoint).web_alone()
    reports = [one for one in archive.list_study(uid) if one.sop_uid not in mine]
    _must(len(reports) == 1, "demo-report-missing")

    def keep(sop_class: str, sop_uid: str, blocks: Any) -> None:
        to.write_bytes(b"".join(blocks))

    archive.get(uid, [Listed(reports[0].sop_uid, reports[0].sop_class, reports[0].series_uid)], keep)
    return to


def _mails(box: Path, wanted: int) -> list[Message]:
    until = time.monotonic() + 60.0
    while time.monotonic() < until:
        found = sorted(box.glob("*.eml"))
        if len(found) >= wanted:
            return [email.message_from_bytes(path.read_bytes()) for path in found]
        time.sleep(0.2)
    raise PeerError("demo-mail-missing", "the mail server was not given what somebody must be told")


def _acknowledged(environment: dict[str, str], show: Show) -> None:
    """What nobody acknowledged in time would go to the next person."""
    status, owed = rapha("notify", "list", environment=environment)
    _must(status == 0 and [one["kind"] for one in owed["notices"]] == ["critical"], "demo-notices-odd")
    number = str(owed["notices"][0]["id"])
    status, _ = rapha("notify", "ack", number, environment=environment)
    _must(status == 0, "demo-notice-not-acknowledged")
    show.say(f"the critical finding is acknowledged: rapha notify ack {number}")


def _audit(up: World, show: Show) -> dict[str, Any]:
    """The trail's counts, and its chain verified with the public key alone."""
    status, counts = rapha("audit", "report", environment=up.environment)
    _must(status == 0, "demo-audit-report")
    trail, key = up.layout.root / "audit", up.layout.keys / "audit.pem"
    status, _ = rapha("ledger", "verify", str(trail), "--key", str(key), environment={})
    _must(status == 0, "demo-audit-not-verified")
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts["by_kind"].items())
    show.say(f"audit trail verified: {counts['entries']} entries; {kinds}")
    return {"entries": counts["entries"], "by_kind": counts["by_kind"]}


def _must(held: bool, code: str) -> None:
    if not held:
        raise PeerError(code, "a step of the demo did not happen as it must")
