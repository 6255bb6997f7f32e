"""`rapha job check | status | list | retry | cancel | fetch`: the node's side of a job.

State comes from the register.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cyclopts

from blocks.orchestrator import Orchestrator
from blocks.register import Register
from blocks.register_rows import JobStatus
from blocks.settings import Settings, load
from flows.limits import gates, read_limits
from policies.gate import Verdict, explain
from policies.intake import IntakeLimits
from policies.site import read_section
from rapha.canonical import is_digest
from rapha.console.app import AsJson, Result, group
from rapha.console.job import HELP
from rapha.errors import ConfigurationError, Refusal
from rapha.sealed import load_recipient, open_result
from rapha.signing import load_trusted
from tasks.training.intake import Admission, admit

MAX_RESULT = 8 << 30


def register(app: cyclopts.App) -> None:
    """Adds the node's commands to the group `job` that `rapha.console.job` shares."""
    jobs = group(app, "job", HELP)
    for command in (check, status, list_jobs, retry, cancel, fetch):
        jobs.command(command, name=command.__name__.removesuffix("_jobs"))


def check(path: Path, *, as_json: AsJson = False) -> Result:
    """Would this node take the declaration at PATH? Strict parse, signature, policy and manifest; nothing is written or sent.

    Example: `rapha job check job.json`
    """
    settings = load(os.environ)
    raw = _read(path)
    admission = admitted(raw, settings)
    verdicts = [admission.verdict, *dry_run(raw, settings)]
    refused = next((verdict for verdict in verdicts if not verdict.cleared), None)
    data = {
        **(refused or verdicts[-1]).to_json(),
        "codes": sorted({code for verdict in verdicts for code in verdict.codes}),
        "reasons": _reasons(verdicts, settings) if refused else [],
        "job": admission.job,
        "verdicts": [verdict.to_json() for verdict in verdicts],
    }
    lines = [f"{'cleared' if v.cleared else 'refused'}  {v.gate}  {' '.join(v.codes)}".rstrip() for v in verdicts]
    said = [f"  {reason['code']}: {reason['wrong']} {reason['todo']}" for reason in data["reasons"]]
    return Result(data, [f"job {admission.job}", *lines, *said], 3 if refused else 0)


def _reasons(verdicts: Sequence[Verdict], settings: Settings) -> list[dict[str, str]]:
    known = gates(read_limits(settings))
    return [reason for v in verdicts if v.gate in known for reason in explain(known[v.gate], v.codes)]


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


def dry_run(raw: bytes, settings: Settings) -> list[Verdict]:
    """The verdicts of manifest and policy for a declaration that was admitted; no side effects."""
    raise Refusal(["not-built"], "the dry run of manifest and policy is not built yet", gate="policy")


def status(job: str, *, as_json: AsJson = False) -> Result:
    """What became of a job, from the register: state, codes, attempt, stage.

    Example: `rapha job status sha256:9f86d0…`
    """
    with_register = _register()
    return _shown(with_register, _known(with_register, job))


def list_jobs(*, owner: str | None = None, limit: int = 50, as_json: AsJson = False) -> Result:
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
    """Fetch a job's sealed result from the orchestrator and open it into OUT with the recipient's private key.

    Parameters
    ----------
    job: the job's id.
    key: the X25519 private key (PEM, mode 0600) whose public half the declaration names.
    out: a folder for weights and metrics; files there are not overwritten.

    Example: `rapha job fetch sha256:9f86d0… --key team.x25519.pem --out result/`
    """
    settings = load(os.environ)
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
        opened = open_result(sealed, recipient, out, job=job)
    lines = [f"{out / name}  {value}" for name, value in sorted(opened.files.items())]
    return Result({**opened.to_json(), "sealed": digest, "out": str(out)}, lines)


def node_register(settings: Settings) -> Register:
    """The node's register, in its state folder."""
    return Register.at(settings.path("RAPHA_STATE_DIR") / "register.sqlite")


def _register() -> Register:
    return node_register(load(os.environ))


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
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(["file-unreadable"], f"{path}: {error.strerror}") from None
