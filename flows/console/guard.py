"""`rapha guard`: the output guard alone, on a folder."""

import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from policies.gate import Verdict, explain
from policies.manifest import read_manifest
from policies.output import OutputEvidence, OutputLimits, output_gate
from policies.site import read_section
from rapha.canonical import parse
from rapha.console.app import AsJson, Result
from rapha.declaration import MAX_DECLARATION, Declaration, read_declaration
from rapha.errors import ConfigurationError, Refusal
from rapha.files import read_regular
from tasks.guarding.inspection import inspect
from tasks.guarding.release import prepare_release, write_release

NOTE = "scope structure: no records were at hand and no run was seen, so this verdict seals nothing"


def register(app: cyclopts.App) -> None:
    app.command(guard, name="guard")


def guard(
    output_dir: Path,
    *,
    job: Annotated[Path, Parameter(name="--job")],
    release: Annotated[Path, Parameter(name="--release")],
    as_json: AsJson = False,
) -> Result:
    """Judge a trainer's output folder against its job and write what could leave.

    OUTPUT_DIR holds weights.safetensors and metrics.json and nothing else. DIR must be empty or absent; after a refusal it is
    empty. The verdict's scope is `structure`: no records are at hand, and it seals nothing.

    Example: `rapha guard outputs --job job.json --release release`
    """
    declaration, job_id = _declared(job)
    if not output_dir.exists():
        raise ConfigurationError(["output-dir-missing"], f"{output_dir}: there is no such folder")
    if release.resolve().is_relative_to(output_dir.resolve()):
        raise ConfigurationError(["release-inside-outputs"], "the release folder must lie outside the output folder")
    prepare_release(release)
    limits = _limits()
    granted_bytes, granted_metrics = _granted(limits)
    seen = inspect(output_dir, declaration, limits)
    evidence = OutputEvidence(
        job=job_id,
        attempt=0,
        nonce=secrets.token_hex(32),
        at=int(time.time()),
        previous=job_id,
        mode="development",
        **seen.facts,
        scope="structure",
        after="",
        granted_bytes=granted_bytes,
        granted_metrics=granted_metrics,
    )
    verdict = output_gate(limits).judge(evidence)
    if verdict.cleared:
        write_release(release, seen.files)
    return _result(verdict, evidence, release)


def _declared(path: Path) -> tuple[Declaration, str]:
    declaration, _, job_id = read_declaration(read_regular(path, MAX_DECLARATION, "job-unreadable"))
    return declaration, job_id


def _limits() -> OutputLimits:
    """This site's numbers where a site policy is configured, the built-in ones on a machine without a node."""
    path = os.environ.get("RAPHA_SITE_POLICY_PATH")
    if not path:
        return OutputLimits()
    try:
        policy = parse(Path(path).read_bytes(), what="site policy")
        section = policy["output"]
    except (OSError, Refusal, LookupError, TypeError):
        raise ConfigurationError(["site-policy-output"], "RAPHA_SITE_POLICY_PATH has no readable section output") from None
    return read_section(OutputLimits, section, "output")


def _granted(limits: OutputLimits) -> tuple[int, int]:
    """The bounds of the node's dataset manifest where one is configured, so that the answer is the one that a run would get."""
    path = os.environ.get("RAPHA_DATASET_MANIFEST_PATH")
    if not path:
        return limits.max_bytes, limits.max_metrics
    try:
        manifest, _, _ = read_manifest(Path(path).read_bytes())
    except OSError:
        raise ConfigurationError(["manifest-unreadable"], "RAPHA_DATASET_MANIFEST_PATH cannot be read") from None
    return manifest.limits.max_output_bytes, manifest.limits.max_metrics


def _result(verdict: Verdict, evidence: OutputEvidence, release: Path) -> Result:
    gate = output_gate(evidence.limits)
    reasons = explain(gate, verdict.codes)
    leak = evidence.leak.to_json()
    data: dict[str, Any] = {
        **verdict.to_json(),
        "scope": evidence.scope,
        "reasons": reasons,
        "leak_bits": leak["total"],
        "leak": leak,
        "mantissa_bits": evidence.limits.mantissa_bits,
        "parameters": evidence.weights.parameters,
        "canonicalised": evidence.weights.canonicalised,
        "released": {},
    }
    lines = [f"verdict      {data['verdict']}", f"leak budget  {leak['total']:,} bits", f"note         {NOTE}"]
    if verdict.cleared and evidence.release:
        data["released"] = {"weights.safetensors": evidence.release.weights, "metrics.json": evidence.release.metrics}
        lines += [f"released     {name}  {value}" for name, value in data["released"].items()]
        lines.append(f"into         {release}")
    else:
        lines += [f"refused      {reason['code']}: {reason['wrong']} {reason['todo']}" for reason in reasons]
    return Result(data, lines, 0 if verdict.cleared else 3)
