"""`rapha job check | run | status | list | retry | cancel | fetch`: the node's side of a job.

State comes from the register.
"""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cyclopts
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from blocks.orchestrator import Orchestrator
from blocks.register import Register
from blocks.register_rows import JobStatus
from blocks.settings import READER_ALONE, Settings, load
from flows.engine import engine_answers, engine_told, engine_url
from flows.limits import gates, read_limits
from flows.node import Node
from flows.rehearsal import rehearse
from policies.gate import explain
from policies.intake import IntakeLimits
from policies.site import read_section
from rapha.canonical import is_digest
from rapha.console.announce import JOB
from rapha.console.app import AsJson, AtMost, Result, group
from rapha.declaration import MAX_DECLARATION
from rapha.errors import Refusal
from rapha.files import read_regular
from rapha.ledger import read as read_ledger
from rapha.receipt import MAX_RECEIPT, Statement, verify_receipt
from rapha.sealed import load_recipient, open_result
from rapha.signing import load_private, load_trusted
from tasks.training.intake import Admission, admit

MAX_RESULT = 8 << 30


def register(app: cyclopts.App) -> None:
    """Adds the node's commands to the group `job` that `rapha.console.job` shares."""
    jobs = group(app, "job", JOB)
    for command in (check, run, status, list_jobs, retry, cancel, fetch):
        jobs.command(command, name=command.__name__.removesuffix("_jobs"))


def check(path: Path, *, as_json: AsJson = False) -> Result:
    """Would this node take the declaration at PATH? Strict parse, signature, policy and manifest; nothing is written or sent.

    Example: `rapha job check job.json`
    """
    settings = load(os.environ, without=(READER_ALONE,))
    raw = _read(path)
    admission = admitted(raw, settings)
    rehearsed, assumed = rehearse(raw, Node.open(), admission.verdict)
    verdicts = [admission.verdict.to_json(), *rehearsed]
    refused = next((verdict for verdict in verdicts if verdict["verdict"] != "cleared"), None)
    data = {
        **(refused or verdicts[-1]),
        "codes": sorted({code for verdict in verdicts for code in verdict["codes"]}),
        "reasons": _reasons(verdicts, settings) if refused else [],
        "job": admission.job,
        "assumed": assumed,
        "verdicts": verdicts,
    }
    lines = [f"{verdict['verdict']}  {verdict['gate']}  {' '.join(verdict['codes'])}".rstrip() for verdict in verdicts]
    lines += [f"  taken as declared, its bytes are not here: {name}" for name in assumed]
    lines += [f"  {reason['code']}: {reason['wrong']} {reason['todo']}" for reason in data["reasons"]]
    return Result(data, [f"job {admission.job}", *lines], 3 if refused else 0)


def run(path: Path, *, as_json: AsJson = False) -> Result:
    """Run the training flow for the declaration at PATH now, in this process, and wait for its end.

    It goes through the register like any other: a job that is running or over is not run again.

    Example: `rapha job run job.json`
    """
    engine_url(os.environ)
    os.environ.pop(READER_ALONE, None)  # a shell that read node.env has it; a flow's process has not
    from flows.training import train  # the engine takes a second to import; no other command needs it

    settings = load(os.environ, without=(READER_ALONE,))
    raw = _read(path)
    admission = admitted(raw, settings)
    held, owner = node_register(settings), admission.declaration.owner
    engine_answers(os.environ)
    held.submit(raw, admission.declaration, admission.job, owner, now=int(time.time()))
    with engine_told():
        done = train(admission.job)
    found = _known(held, admission.job)
    folder = settings.path("RAPHA_STATE_DIR") / "attempts" / found.job.removeprefix("sha256:") / str(found.attempt)
    verdicts = [
        entry.body
        for entry in read_ledger(settings.path("RAPHA_STATE_DIR") / "ledger")
        if entry.kind == "verdict" and (entry.body["job"], entry.body["attempt"]) == (found.job, found.attempt)
    ]
    receipt = str(folder / "receipt.json") if found.state == "done" else ""
    data = {**found.to_json(), "started": done["state"] != "not-owed", "verdicts": verdicts, "receipt": receipt}
    lines = [f"{verdict['verdict']}  {verdict['gate']}  {' '.join(verdict['codes'])}".rstrip() for verdict in verdicts]
    return Result(data, [f"job {found.job}", *lines, f"{found.state}  {receipt}".rstrip()], 0 if found.state == "done" else 3)


def _reasons(verdicts: Sequence[Mapping[str, Any]], settings: Settings) -> list[dict[str, str]]:
    known = gates(read_limits(settings))
    return [reason for v in verdicts if v["gate"] in known for reason in explain(known[v["gate"]], v["codes"])]


def admitted(raw: bytes, settings: Settings) -> Admission:
    """The declaration through the admission gate, by the node's own keys and numbers; `Refusal` otherwise."""
    return admit(
        raw,
        sender=None,
        owner_keys=load_trusted(settings.path("RAPHA_TRUST_DIR") / "ai-teams"),
        node_id=settings.text("RAPHA_NODE_ID"),
        limits=read_section(IntakeLimits, settings.section("intake"), "intake"),
        mode=settings.mode,
        now=int(time.time()),
    )


def status(job: str, *, as_json: AsJson = False) -> Result:
    """What became of a job, from the register: state, codes, attempt, stage.

    Example: `rapha job status sha256:9f86d0…`
    """
    with_register = _register()
    return _shown(with_register, _known(with_register, job))


def list_jobs(*, owner: str | None = None, limit: AtMost = 50, as_json: AsJson = False) -> Result:
    """The newest jobs, of one owner or of all.

    Example: `rapha job list --owner team-a`
    """
    found = _register().jobs(owner, limit=limit)
    lines = [f"{job.job}  {job.state:<10} {job.owner}  attempt {job.attempt} {' '.join(job.codes)}".rstrip() for job in found]
    return Result({"jobs": [{"owner": job.owner, **job.to_json()} for job in found]}, lines or ["no jobs"])


def retry(job: str, *, as_json: AsJson = False) -> Result:
    """Owe a job again after a node-side refusal, a crash or a dead letter: a new attempt, from the first gate on.

    Example: `rapha job retry sha256:9f86d0…`
    """
    held = _register()
    held.retry(_known(held, job).job, now=int(time.time()))
    return _shown(held, _known(held, job))


def cancel(job: str, *, as_json: AsJson = False) -> Result:
    """Cancel a job: at once, or at the next stage of a running one; refused once money may be on its way.

    Example: `rapha job cancel sha256:9f86d0…`
    """
    held = _register()
    held.cancel(_known(held, job).job, now=int(time.time()))
    return _shown(held, _known(held, job))


def fetch(job: str, *, key: Path, out: Path, as_json: AsJson = False) -> Result:
    """Fetch a job's sealed result and receipt from the orchestrator, check the one by the other, and open the result into OUT.

    Anyone can seal something to a public key: nothing is written to OUT unless the receipt is signed by this node, is of this
    job, attempt and mode, and names the sealed file and the opened files by their digests.

    Example: `rapha job fetch sha256:9f86d0… --key team.x25519.pem --out result/`

    Parameters
    ----------
    job
        The job's id.
    key
        The X25519 private key (PEM, mode 0600) whose public half the declaration names.
    out
        A folder for weights and metrics; files there are not overwritten.
    """
    settings = load(os.environ, without=(READER_ALONE,))
    found = _known(node_register(settings), job)
    if found.state != "done":
        raise Refusal(["job-not-done"], f"the job is {found.state}: there is no result to fetch", subject=job)
    recipient = load_recipient(key)
    bundle = settings.optional("RAPHA_CA_BUNDLE")
    peer = Orchestrator(
        settings.text("RAPHA_ORCHESTRATOR_API_BASE"),
        settings.text("RAPHA_ORCHESTRATOR_TOKEN"),
        ca_bundle=Path(bundle) if bundle else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        sealed = Path(folder) / "result"
        digest = peer.get(job, found.attempt, "result", sealed, MAX_RESULT)
        receipt = Path(folder) / "receipt.json"
        peer.get(job, found.attempt, "receipt", receipt, MAX_RECEIPT)
        statement = verify_receipt(receipt.read_bytes(), _receipt_key(settings), job=job)
        if (statement.predicate.attempt, statement.mode) != (found.attempt, settings.mode):
            raise Refusal(["receipt-other-attempt"], "the receipt is of another attempt or mode", gate="receipt", subject=job)
        _named(statement, {"sealed-result": digest}, job)
        _named(statement, open_result(sealed, recipient, Path(folder) / "opened", job=job).files, job)
        opened = open_result(sealed, recipient, out, job=job)
    lines = [f"{out / name}  {value}" for name, value in sorted(opened.files.items())]
    lines.append(f"receipt {statement.digest} ({statement.mode}) names what was fetched")
    data = {"sealed": digest, "receipt": statement.digest, "mode": statement.mode, "out": str(out)}
    return Result({**opened.to_json(), **data}, lines)


def _receipt_key(settings: Settings) -> Ed25519PublicKey:
    return load_private(settings.path("RAPHA_KEYS_DIR") / "receipt.key").public_key()


def _named(statement: Statement, files: Mapping[str, str], job: str) -> None:
    """Each file must be the one in the receipt."""
    wrong = sorted(name for name, value in files.items() if statement.subjects.get(name) != value)
    if wrong:
        raise Refusal(["receipt-other-output"], f"{wrong[0]} is not the one in the receipt", gate="receipt", subject=job)


def node_register(settings: Settings) -> Register:
    """The node's register, in its state folder."""
    return Register.at(settings.path("RAPHA_STATE_DIR") / "register.sqlite")


def _register() -> Register:
    return node_register(load(os.environ, without=(READER_ALONE,)))


def _known(held: Register, job: str) -> JobStatus:
    found = held.status(job) if is_digest(job) else None
    if found is None:
        raise Refusal(["job-unknown"], "no such job in this node's register")
    return found


def _shown(held: Register, found: JobStatus) -> Result:
    data: dict[str, Any] = {"owner": found.owner, **found.to_json()}
    where = f" in {found.stage}" if found.stage else ""
    codes = f" ({', '.join(found.codes)}{', ' + found.side + '-side' if found.side else ''})" if found.codes else ""
    return Result(data, [f"{found.job}", f"{found.state}{where}, attempt {found.attempt}{codes}"])


def _read(path: Path) -> bytes:
    return read_regular(path, MAX_DECLARATION, "file-unreadable")
