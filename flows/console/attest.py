"""`rapha attest verify`, `rapha attest collateral import`, `rapha node enrol`: the attestation gate alone, and what it needs
to be fed."""

import datetime as dt
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cryptography import x509
from cyclopts import Parameter

from blocks.attester import Attester, read_pcrs
from blocks.collateral import read_collateral
from blocks.dcap import MAX_COLLATERAL, verify_quote
from flows.console.announce import COMMANDS
from policies.attestation import offline_gate
from policies.attestation_evidence import AttestationEvidence, PlatformFacts, TpmFacts
from policies.attestation_limits import INTEL_ROOT, read_limits
from policies.gate import Gate, Mode, explain
from policies.platform import read_platform
from policies.quote import MAX_QUOTE
from policies.tpm import MAX_PART
from policies.tpm_evidence import platform_facts, tpm_facts
from rapha.canonical import canonical, digest, parse
from rapha.console.app import AsJson, Result
from rapha.errors import ConfigurationError, Refusal
from rapha.files import read_regular
from tasks.shared.beginning import begin
from tasks.shared.enrol import enrol


def register(app: cyclopts.App) -> None:
    """Adds `attest` and `node` to the console."""
    attest = cyclopts.App(name="attest", help="Attestation evidence: verify it offline; import collateral.")
    attest.command(verify, name="verify")
    collateral = cyclopts.App(name="collateral", help="Intel's signed statements about a platform (PCS documents).")
    collateral.command(import_collateral, name="import")
    attest.command(collateral)
    node = cyclopts.App(name="node", help=COMMANDS["attest"]["node"])
    node.command(init_node, name="init")
    node.command(enrol_node, name="enrol")
    app.command(attest)
    app.command(node)


def verify(
    *,
    quote: Annotated[Path, Parameter(help="The quote's bytes.")],
    collateral: Annotated[Path, Parameter(help="The collateral bundle, JSON.")],
    policy: Annotated[Path, Parameter(help="The limits to judge by, JSON.")],
    at: Annotated[str, Parameter(help="The time to judge at, RFC 3339.")],
    root: Annotated[Path | None, Parameter(help="The root certificate, DER; its digest must be the policy's.")] = None,
    report_data: Annotated[str | None, Parameter(help="What the quote must carry: 128 hex digits.")] = None,
    tpm: Annotated[Path | None, Parameter(help="A folder with the TPM's evidence.")] = None,
    as_json: AsJson = False,
) -> Result:
    """Decide on a DCAP quote (and a TPM quote) from files alone, at a given time.

    The policy is a JSON object. Everything in it may be left out; what is left out takes the strict default shown, under which
    no enclave and no machine is named, so nothing passes:

    {"root": "sha256:DIGEST of the root certificate; default Intel's", "tee_types": ["sgx"], "quote_versions": [3],
    "measurements": ["MRENCLAVE or MRTD in hex"], "runtime": [["RTMR0", "RTMR1", "RTMR2", "RTMR3"]],
    "signers": [{"mrsigner": "64 hex digits", "isv_prod_id": 0, "min_isv_svn": 1}],
    "tcb_exceptions": [{"status": "SWHardeningNeeded", "advisories": ["INTEL-SA-00615"]}],
    "min_tcb_eval_data_number": 17, "max_zero_padding": 0, "configs": [], "sgx_types": [0],
    "allow_dynamic_platform": false, "allow_cached_keys": false, "allow_smt": false,

    "sgx_attributes": {"mask": "32 hex digits", "value": "..."}, "tdx_attributes": {"mask": "16 hex digits", "value": "..."},
    "required_pcrs": [0, 1, 2, 3, 4, 5, 6, 7], "pcr_values": {"7": "64 hex digits"},
    "platforms": ["sha256:DIGEST of an enrolment record"]}

    Without --report-data nothing is said about what the quote binds; without --tpm nothing about the TPM and the machine: the
    answer lists both under `not_checked`. DIR of --tpm holds attest, signature, pcrs.json, platform.json and, if sent, ak.pem.

    Example: `rapha attest verify --quote quote.bin --collateral collateral.json --policy policy.json --at 2025-06-25T00:00:00Z`
    """
    limits = read_limits(_object(policy, "policy"))
    raw = _bounded(quote, MAX_QUOTE + 4096)
    root_der = None if root is None else _bounded(root, 16 * 1024)
    moment = _moment(at)
    facts = verify_quote(raw, _bounded(collateral, 4 * MAX_COLLATERAL), root_der, moment, limits)
    found = _tpm(tpm, raw) if tpm else None
    gate = offline_gate(limits, with_report_data=report_data is not None, with_tpm=tpm is not None)
    mode: Mode = "production" if limits.root == INTEL_ROOT else "development"
    evidence = AttestationEvidence(
        job=facts.digest,
        attempt=0,
        nonce="",
        at=moment,
        previous=facts.digest,
        mode=mode,
        limits=limits,
        quote=facts,
        report_data=(report_data or "").strip().lower(),
        tpm=found[0] if found else None,
        platform=found[1] if found else None,
    )
    return _verdict(gate, evidence)


def import_collateral(
    file: Path, /, *, into: Path, at: str | None = None, root: Path | None = None, as_json: AsJson = False
) -> Result:
    """Check an offline bundle of collateral (signatures of its documents are checked again with each quote) and lay it where
    the node reads it.

    A bundle is one JSON object: tcb_info, qe_identity, their signatures and issuer chains, and the two revocation lists in hex.
    A bundle that is older than the one it would replace is refused.

    Example: `rapha attest collateral import bundle.json --into /var/lib/rapha/collateral.json`
    """
    raw = _bounded(file, MAX_COLLATERAL)
    now = _moment(at) if at else int(dt.datetime.now(dt.UTC).timestamp())
    new = read_collateral(raw, None if root is None else _bounded(root, 16 * 1024), now)
    if into.exists():
        old = read_collateral(_bounded(into, MAX_COLLATERAL), None if root is None else _bounded(root, 16 * 1024), None)
        if old.fmspc == new.fmspc and new.number < old.number:
            raise Refusal(["collateral-rolled-back"], "the bundle is older than the one in use", gate="attestation")
    _replace(into, raw)
    data = {"imported": str(into), "digest": digest(raw), "fmspc": new.fmspc, "number": new.number, "expires_at": new.expires_at}
    return Result(data, [f"imported collateral for FMSPC {new.fmspc}, number {new.number}, valid until {_utc(new.expires_at)}"])


def init_node(folder: Path, *, name: str, mode: Mode = "production", as_json: AsJson = False) -> Result:
    """Make a new node's folder for the reading service: keys, an empty ledger and audit trail, a profile to fill in, node.env.

    Nothing is written over. The secrets lie in node.env and keys/, which nobody but their owner reads.

    Example: `rapha node init /var/lib/rapha --name st-elsewhere`

    Parameters
    ----------
    folder
        A new or empty folder; it becomes RAPHA_STATE_DIR.
    name
        The node's name, in ledger, receipts and reports.
    """
    made = begin(folder, name, mode)
    data = {"mode": mode, **{what.replace(" ", "_"): str(path) for what, path in made.items()}}
    lines = [f"{what:<12} {path}" for what, path in made.items()]
    env = shlex.quote(str(made["environment"]))
    steps = ("rapha pacs echo", "rapha pacs probe", "rapha doctor --only read", "rapha serve --only read")
    return Result(
        data, [*lines, "next: fill in the profile, then", f"  set -a; . {env}; set +a", *(f"  {step}" for step in steps)]
    )


def enrol_node(
    *,
    socket: Path,
    machine: str,
    out: Path,
    mode: Mode = "production",
    ek_root: tuple[Path, ...] = (),
    days: int = 365,
    as_json: AsJson = False,
) -> Result:
    """Enrol this machine's TPM key and platform: run by a person at the machine, with its attester process up.

    The key is proven to sit in the TPM of its endorsement certificate, and that certificate to come from a given maker's
    authority (--ek-root, PEM, repeatable; required in production). Put the printed digest into `platforms` of the site's
    attestation policy.

    Example: `rapha node enrol --socket /run/rapha/attester.sock --machine node-1 --ek-root maker.pem --out platform.json`
    """
    roots = [certificate for path in ek_root for certificate in _certificates(path)]
    now = int(dt.datetime.now(dt.UTC).timestamp())
    platform = enrol(Attester(socket), machine=machine, mode=mode, at=now, ek_roots=roots, days=days)
    document = platform.model_dump(mode="json")
    _replace(out, canonical(document) + b"\n")
    data = {"platform": platform.digest, "machine": machine, "mode": mode, "bound": platform.tpm.bound, "written": str(out)}
    lines = [f"enrolled {machine} ({mode}): {platform.digest}", f"  record: {out}", "  list this digest in the policy"]
    return Result(data, lines)


def _verdict(gate: Gate[AttestationEvidence], evidence: AttestationEvidence) -> Result:
    verdict = gate.judge(evidence)
    ran = verdict.ran
    parts = {"report-data": "report-data-mismatch", "tpm": "tpm"}
    unchecked = [name for name, check in parts.items() if check not in ran]
    reasons = explain(gate, verdict.codes)
    body, tcb = evidence.quote.body, evidence.quote.tcb
    data: dict[str, Any] = {
        **verdict.to_json(),
        "reasons": reasons,
        "not_checked": unchecked,
        "quote": evidence.quote.digest,
        "measurement": body.measurement if body else "",
        "tcb_status": tcb.status if tcb else "",
        "advisories": list(tcb.advisories) if tcb else [],
    }
    lines = [f"attestation: {data['verdict']} ({verdict.mode}), quote {evidence.quote.digest}"]
    lines += [f"  {reason['code']}: {reason['wrong']} {reason['todo']}" for reason in reasons]
    lines += [f"  not checked: {name} (option not given)" for name in unchecked]
    return Result(data, lines, 0 if verdict.cleared else 3)


def _tpm(folder: Path, quote: bytes) -> tuple[TpmFacts | None, PlatformFacts | None]:
    """(facts or None where a part is missing, facts of the record or None)."""
    if not folder.is_dir():
        raise ConfigurationError(["file-unreadable"], f"{folder}: not a folder")
    if not (folder / "platform.json").is_file():
        return None, None
    platform = read_platform(_bounded(folder / "platform.json", 64 * 1024))
    parts = [folder / name for name in ("attest", "signature", "pcrs.json")]
    if not all(part.is_file() for part in parts):
        return None, platform_facts(platform)
    attest, signature = (_bounded(part, MAX_PART + 1) for part in parts[:2])
    try:
        pcrs = read_pcrs(_object(parts[2], "PCR values"))
    except ValueError:
        raise Refusal(["tpm-malformed"], "pcrs.json does not hold PCR values in hex", gate="attestation") from None
    claimed = folder / "ak.pem"
    key = _bounded(claimed, MAX_PART).decode("ascii", "replace") if claimed.is_file() else None
    facts = tpm_facts(attest, signature, pcrs, quote=quote, platform=platform, claimed_ak=key)
    return facts, platform_facts(platform)


def _bounded(path: Path, limit: int) -> bytes:
    """The file's first `limit` + 1 bytes: what is longer is refused by the check that knows the limit."""
    return read_regular(path, limit, "file-unreadable")


def _object(path: Path, what: str) -> dict[str, Any]:
    try:
        document = parse(_bounded(path, 256 * 1024), what=what)
    except Refusal as refusal:
        raise ConfigurationError(refusal.codes, f"{path}: {refusal.message}") from None
    if not isinstance(document, dict):
        raise ConfigurationError(["not-an-object"], f"{path}: the {what} is not a JSON object")
    return document


def _moment(text: str) -> int:
    """Seconds since the epoch of an RFC 3339 time with its offset."""
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigurationError(["time-malformed"], "--at is not an RFC 3339 time such as 2025-06-25T00:00:00Z") from None
    if moment.tzinfo is None:
        raise ConfigurationError(["time-malformed"], "--at has no offset: write 2025-06-25T00:00:00Z")
    return int(moment.timestamp())


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(_bounded(path, 256 * 1024))
    except ValueError:
        raise ConfigurationError(["certificate-unreadable"], f"{path}: no PEM certificate") from None


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _utc(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
