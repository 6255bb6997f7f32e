"""Stages 6 and 12: the machine is attested before any data is asked for, and again before anything is sealed.

The gate makes its own nonce and writes it to the ledger before it asks. What comes back is parsed, compared and verified here
with collateral, root and enrolment record that the node holds; the process that sent it is believed in nothing. What was
judged is kept in the attempt's `evidence-files/` (or `reattestation-files/`), enough to repeat the decision with `rapha
attest verify`.
"""

import datetime as dt
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blocks.attester import Attester, Bundle
from blocks.dcap import verify_quote
from blocks.lastseen import LastSeenFile
from policies.attestation import attestation_gate, reattestation_gate
from policies.attestation_evidence import (
    Asking,
    AttestationEvidence,
    Binding,
    LastSeen,
    SamePlatform,
    report_data,
    same_platform,
)
from policies.attestation_limits import AttestationLimits
from policies.gate import Evidence, Gate, limits_json
from policies.platform import Platform
from policies.tpm_evidence import platform_facts, tpm_facts
from rapha.canonical import canonical
from tasks.attempt import Attempt
from tasks.gate import Cleared, require

NONCE_KIND = "attestation-nonce"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What this attempt's quote must name beside its number and nonce: digests, and the key that results are sealed to."""

    workload: str
    policy: str
    manifest: str
    recipient: str


@dataclass(frozen=True, kw_only=True)
class Site:
    """What the node holds to judge by. collateral: a bundle's bytes; root: DER, None for Intel's; trusted_time: seconds, a source
    other than the host's clock where there is one (the chain's last block, an authenticated time server)."""

    limits: AttestationLimits
    platform: Platform
    collateral: bytes
    root: bytes | None
    last_seen: LastSeenFile
    trusted_time: Callable[[], int]


def attest(
    previous: Cleared[Evidence], attempt: Attempt, bound: Bound, attester: Attester, site: Site
) -> Cleared[AttestationEvidence]:
    """Clears only the enrolled machine, running a named enclave, over this attempt's own challenge."""
    return _attested(attestation_gate(site.limits), "evidence-files", previous.subject, attempt, bound, attester, site, None)


def reattest(
    previous: Cleared[Evidence],
    attempt: Attempt,
    bound: Bound,
    attester: Attester,
    site: Site,
    first: Cleared[AttestationEvidence],
) -> Cleared[AttestationEvidence]:
    """All of it again before sealing, with a new nonce, on the same machine since the same boot."""
    before = same_platform(first.evidence)
    gate = reattestation_gate(site.limits)
    return _attested(gate, "reattestation-files", previous.subject, attempt, bound, attester, site, before)


def _attested(
    gate: Gate[AttestationEvidence],
    folder: str,
    previous: str,
    attempt: Attempt,
    bound: Bound,
    attester: Attester,
    site: Site,
    first: SamePlatform | None,
) -> Cleared[AttestationEvidence]:
    nonce = secrets.token_hex(32)
    attempt.record(NONCE_KIND, gate=gate.name, nonce=nonce)
    binding = _binding(attempt, bound, nonce, site.platform)
    asked_at = attempt.clock()
    bundle = attester.evidence(report_data(binding))
    asking = Asking(
        nonce=nonce,
        records=_records_of(nonce, attempt),
        asked_at=asked_at,
        answered_at=attempt.clock(),
        trusted_at=site.trusted_time(),
    )
    _keep(attempt.folder / folder, bundle, binding, asking, site)
    evidence = AttestationEvidence(
        **attempt.facts(previous),
        limits=site.limits,
        quote=verify_quote(bundle.quote, site.collateral, site.root, asking.trusted_at, site.limits),
        binding=binding,
        report_data=report_data(binding).hex(),
        tpm=tpm_facts(
            bundle.attest, bundle.signature, bundle.pcrs, quote=bundle.quote, platform=site.platform, claimed_ak=bundle.ak_pem
        ),
        platform=platform_facts(site.platform),
        last=site.last_seen.read(site.platform.digest),
        asking=asking,
        first=first,
    )
    cleared = require(gate, evidence, attempt)
    site.last_seen.write(site.platform.digest, _seen(evidence))
    return cleared


def _binding(attempt: Attempt, bound: Bound, nonce: str, platform: Platform) -> Binding:
    return Binding(
        job=attempt.job,
        attempt=attempt.number,
        nonce=nonce,
        workload=bound.workload,
        policy=bound.policy,
        manifest=bound.manifest,
        recipient=bound.recipient,
        tpm_ak=platform.ak_digest,
    )


def _records_of(nonce: str, attempt: Attempt) -> int:
    """How often the ledger on disk holds this nonce, for any attempt."""
    return sum(1 for entry in attempt.ledger.entries() if entry.kind == NONCE_KIND and entry.body.get("nonce") == nonce)


def _seen(evidence: AttestationEvidence) -> LastSeen:
    """The newest numbers, from evidence that passed."""
    tpm, tcb, asking = evidence.tpm, evidence.quote.tcb, evidence.asking
    if tpm is None or tcb is None or asking is None:
        raise TypeError("evidence without these facts does not pass the gate")
    return LastSeen(
        clock=tpm.clock,
        reset_count=tpm.reset_count,
        restart_count=tpm.restart_count,
        number=min(tcb.number, tcb.qe_number),
        at=min(evidence.at, asking.trusted_at),
    )


def _keep(folder: Path, bundle: Bundle, binding: Binding, asking: Asking, site: Site) -> None:
    """Everything that the decision was made from, as `rapha attest verify` reads it."""
    tpm = folder / "tpm"
    tpm.mkdir(parents=True, exist_ok=True)
    (folder / "quote.bin").write_bytes(bundle.quote)
    (folder / "collateral.json").write_bytes(site.collateral)
    (folder / "policy.json").write_bytes(canonical(limits_json(site.limits)) + b"\n")
    if site.root is not None:
        (folder / "root.der").write_bytes(site.root)
    (folder / "report_data.hex").write_text(report_data(binding).hex() + "\n")
    (folder / "at.txt").write_text(dt.datetime.fromtimestamp(asking.trusted_at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ") + "\n")
    (tpm / "attest").write_bytes(bundle.attest)
    (tpm / "signature").write_bytes(bundle.signature)
    (tpm / "pcrs.json").write_text(json.dumps({str(index): value.hex() for index, value in bundle.pcrs.items()}) + "\n")
    (tpm / "ak.pem").write_text(bundle.ak_pem)
    (tpm / "platform.json").write_bytes(canonical(site.platform.model_dump(mode="json")) + b"\n")
