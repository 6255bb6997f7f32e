"""A site's numbers, one section a gate, and the gates that judge by them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blocks.settings import Settings
from policies.attestation import attestation_gate, reattestation_gate
from policies.attestation_limits import AttestationLimits
from policies.attestation_limits import read_limits as read_attestation
from policies.cut import CutLimits, cut_gate
from policies.escrow import EscrowLimits, escrow_gate
from policies.gate import Gate
from policies.intake import IntakeLimits, intake_gate
from policies.manifest import ManifestLimits
from policies.manifest_gate import manifest_gate
from policies.output import OutputLimits, output_gate
from policies.policy import PolicyLimits, policy_gate
from policies.query import QueryLimits, query_gate
from policies.reconnect import RECONNECT_GATE
from policies.retrieve import RetrieveLimits, retrieve_gate
from policies.site import read_section
from policies.train import TrainLimits, train_gate
from policies.workload import WorkloadLimits, workload_gate
from rapha.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class SiteLimits:
    """What RAPHA_SITE_POLICY_PATH says, gate by gate."""

    intake: IntakeLimits
    escrow: EscrowLimits
    manifest: ManifestLimits
    workload: WorkloadLimits
    policy: PolicyLimits
    attestation: AttestationLimits
    cut: CutLimits
    query: QueryLimits
    retrieve: RetrieveLimits
    train: TrainLimits
    output: OutputLimits


_KINDS: dict[str, type[Any]] = {
    "intake": IntakeLimits,
    "escrow": EscrowLimits,
    "manifest": ManifestLimits,
    "workload": WorkloadLimits,
    "policy": PolicyLimits,
    "cut": CutLimits,
    "query": QueryLimits,
    "retrieve": RetrieveLimits,
    "train": TrainLimits,
    "output": OutputLimits,
}


def read_limits(settings: Settings) -> SiteLimits:
    """Every section, strictly: a missing or unknown section, key or type is a `ConfigurationError` that names it."""
    return limits_of(settings.site)


def limits_of(site: Mapping[str, Any]) -> SiteLimits:
    """The limits in a site policy's JSON object."""
    wanted = {*_KINDS, "attestation"}
    odd = sorted(wanted ^ set(site))
    if odd:
        raise ConfigurationError(
            [f"site-policy-section-{name}" for name in odd], f"missing or unknown sections: {', '.join(odd)}"
        )
    sections = {name: read_section(kind, site[name], name) for name, kind in _KINDS.items()}
    return SiteLimits(**sections, attestation=read_attestation(site["attestation"]))


def gates(limits: SiteLimits) -> dict[str, Gate[Any]]:
    """name -> gate, as the two doors compare the ledger's verdicts with them."""
    made: list[Gate[Any]] = [
        intake_gate(limits.intake),
        escrow_gate(limits.escrow),
        manifest_gate(limits.manifest),
        workload_gate(limits.workload),
        policy_gate(limits.policy),
        attestation_gate(limits.attestation),
        cut_gate(limits.cut),
        query_gate(limits.query),
        retrieve_gate(limits.retrieve),
        train_gate(limits.train),
        output_gate(limits.output),
        reattestation_gate(limits.attestation),
        RECONNECT_GATE,
    ]
    return {gate.name: gate for gate in made}
