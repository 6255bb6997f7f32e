"""Every document of the demo: cohort, records, manifest, platform, site policy, node.env; then the AI team's workload and job."""

import base64
import json
import secrets
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from blocks.attester import Attester
from blocks.chain import Chain
from blocks.funding import Terms, fund
from infra.attester.synthetic import Enclave
from infra.demo.layout import APPROVERS, NODE, OWNER, Layout
from infra.hospital import paper
from infra.hospital.cohort import make_cohort, write_cohort
from infra.netns import PORT_A, PORT_B, NodeNetwork
from infra.workload.bundle import LAUNCHER, make_bundle, make_declaration, sign_declaration
from policies.platform import read_platform
from rapha.canonical import canonical, digest
from rapha.signing import key_id
from tasks.shared.enrol import enrol

PRICE = 25_000  # micro-USDC a record
REGO = Path(__file__).resolve().parents[1] / "hospital" / "policy.rego"
PAYEES = ("hospital", "node-owner", "onboarder", "protocol")


@dataclass(frozen=True)
class Ports:
    """TCP ports on loopback, the same at every start of one demo folder."""

    archive: int
    chain: int
    orchestrator: int
    attestor: int
    webhook: int
    engine: int
    health: int
    dimse: int
    receiver: int
    mail: int


def lay_out_dataset(layout: Layout, patients: int) -> None:
    """The cohort as DICOM files, its records file and the signed manifest; once for each folder."""
    if (layout.root / "manifest.json").exists():
        return
    cohort = make_cohort(patients)
    write_cohort(cohort, layout.root / "dicom")
    hospital_key = base64.b64decode(layout.secret("pseudonym"))
    made = paper.make_paper(cohort, hospital_key, {role: layout.signer(role) for role in APPROVERS}, now=int(time.time()))
    (layout.private / "records.jsonl").write_bytes(made.records)
    (layout.private / "identifiers.json").write_text(json.dumps(cohort.identifiers, ensure_ascii=False))
    (layout.root / "manifest.json").write_bytes(made.manifest)


def enrol_platform(layout: Layout, sockets: Path) -> str:
    """Enrols the attester's machine once, in `platform.json`; the record's digest."""
    path = layout.root / "platform.json"
    if path.exists():
        return read_platform(path.read_bytes()).digest
    platform = enrol(Attester(sockets / "attester.sock"), machine=NODE, mode="development", at=int(time.time()))
    path.write_bytes(canonical(platform.model_dump(mode="json")) + b"\n")
    return platform.digest


def site_policy(layout: Layout, chain: Mapping[str, Any], attestor: str, platform: str) -> dict[str, Any]:
    """The site's numbers, a section a gate. What is not said takes the gate's strict default."""
    accounts = chain["accounts"]
    root = (layout.root / "attester" / "dcap" / "root.der").read_bytes()
    platform_record = json.loads((layout.root / "platform.json").read_bytes())
    return {
        "intake": {"max_seconds": 600},
        "escrow": {
            "payees": [accounts[role] for role in PAYEES],
            "attestors": [attestor],
            "vault_code": chain["vault_code"],
        },
        "manifest": paper.site_section(),
        "workload": {
            "identities": [key_id(layout.signer("workload-signer").public_key())],
            "launcher": digest(LAUNCHER.read_bytes()),
        },
        "policy": {
            "purposes": [paper.PURPOSE],
            "consent_bases": [paper.CONSENT],
            "workload_identities": [key_id(layout.signer("workload-signer").public_key())],
            "launcher": digest(LAUNCHER.read_bytes()),
        },
        "attestation": {
            "root": digest(root),
            "measurements": [Enclave().measurement.hex()],
            "platforms": [platform],
            "pcr_values": platform_record["tpm"]["pcrs"],
            "required_pcrs": sorted(int(index) for index in platform_record["tpm"]["pcrs"]),
        },
        "cut": {"wan": PORT_B, "lan": [PORT_A]},
        "query": {},
        "retrieve": {},
        "train": {},
        "output": {},
    }


def common_environment(layout: Layout, ports: Ports) -> dict[str, str]:
    """What both halves of the node are told."""
    return {
        "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "false",
        "RAPHA_AUDIT_KEY_BASE64": layout.secret("audit"),
        "RAPHA_TRAINER_COMMAND": str(LAUNCHER),
        "RAPHA_NODE_ID": NODE,
        "RAPHA_STATE_DIR": str(layout.root),
        "RAPHA_KEYS_DIR": str(layout.node_keys),
        "PREFECT_API_URL": f"http://127.0.0.1:{ports.engine}/api",
    }


def training_environment(
    layout: Layout, sockets: Path, ports: Ports, chain: Mapping[str, Any], network: NodeNetwork
) -> dict[str, str]:
    """The settings of the training half."""
    loopback = "http://127.0.0.1:"
    named = {name: sockets / f"{name.lower()}.sock" for name in ("KEEPER", "READER", "LAUNCHER", "ATTESTER")}
    return {
        "RAPHA_DICOMWEB_BASE_URL": f"{loopback}{ports.archive}/dicom-web",
        "RAPHA_DICOMWEB_STUDY_QUERY_JSON": json.dumps(paper.OUTER_QUERY, separators=(",", ":")),
        "RAPHA_ORCHESTRATOR_API_BASE": f"{loopback}{ports.orchestrator}",
        "RAPHA_ORCHESTRATOR_CALLBACK_URL": f"{loopback}{ports.webhook}/orchestrator/callback",
        "RAPHA_PHI_HMAC_KEY_BASE64": layout.secret("pseudonym"),
        "RAPHA_DATASET_MANIFEST_PATH": str(layout.root / "manifest.json"),
        "RAPHA_OPA_POLICY_PATH": str(REGO),
        "RAPHA_TEE_ATTESTATION_REQUIRED": "true",
        "RAPHA_TRUST_DIR": str(layout.trust),
        "RAPHA_SITE_POLICY_PATH": str(layout.root / "site.json"),
        "RAPHA_DATASET_RECORDS_PATH": str(layout.private / "records.jsonl"),
        "RAPHA_CHAIN_RPC_URL": f"{loopback}{ports.chain}",
        "RAPHA_CHAIN_ID": str(chain["chain_id"]),
        "RAPHA_VAULT_ADDRESS": chain["vault"],
        "RAPHA_TOKEN_ADDRESS": chain["token"],
        "RAPHA_ATTESTOR_URL": f"{loopback}{ports.attestor}",
        "RAPHA_ORCHESTRATOR_TOKEN": layout.secret("orchestrator"),
        "RAPHA_WEBHOOK_KEYS_PATH": str(layout.private / "webhook-keys.json"),
        "RAPHA_WAN_INTERFACE": PORT_B,
        "RAPHA_WAN_PROBE": f"{network.probe[0]}:{network.probe[1]}",
        "RAPHA_LAN_INTERFACES": PORT_A,
        "RAPHA_PLATFORM_PATH": str(layout.root / "platform.json"),
        "RAPHA_COLLATERAL_PATH": str(layout.root / "attester" / "dcap" / "collateral.json"),
        "RAPHA_DCAP_ROOT_PATH": str(layout.root / "attester" / "dcap" / "root.der"),
        **{f"RAPHA_{name}_SOCKET": str(path) for name, path in named.items()},
    }


def write_node_env(layout: Layout, environment: Mapping[str, str]) -> None:
    """The node's whole configuration, for a person's shell."""
    lines = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    layout.node_env.touch(mode=0o600)
    layout.node_env.write_text("# The demo node's whole configuration:  set -a; . ./node.env; set +a\n" + "\n".join(lines) + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What an AI team may want otherwise than the demo does. source: folder of the workload, None for the demo's own;
    changes: whole fields of the declaration."""

    epochs: int = 10
    records: int = 0  # bought; 0: every record of the cohort and a few more
    source: Path | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)


def make_job(
    layout: Layout,
    chain: Chain,
    attestor: str,
    accounts: Mapping[str, str],
    orchestrator: Path,
    patients: int,
    wish: Wish = Wish(),  # frozen
) -> bytes:
    """The AI team's side: workload published at the orchestrator, money in the vault, a signed declaration in `job.json`."""
    key = layout.signer("workload-signer")
    bundle = make_bundle(key, wish.source) if wish.source else make_bundle(key)
    for name, content in bundle.blobs.items():
        (orchestrator / "blobs").mkdir(parents=True, exist_ok=True)
        (orchestrator / "blobs" / name.removeprefix("sha256:")).write_bytes(content)
    now, records = int(time.time()), wish.records or 4 * patients + 8
    payees = (accounts["hospital"], accounts["node-owner"], accounts["onboarder"], accounts["protocol"])
    terms = Terms(NODE, OWNER, PRICE, records, now + 6 * 3600, payees, (attestor,))
    escrow = fund(chain, terms, "0x" + secrets.token_hex(32))
    budget = {
        "chain_id": chain.chain_id,
        "vault": chain.vault,
        "token": chain.token,
        "escrow": escrow,
        "price_per_record": PRICE,
        "max_records": records,
    }
    recipient = layout.recipient().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    document = make_declaration(
        bundle,
        node=NODE,
        owner=OWNER,
        client_nonce=secrets.token_hex(16),
        budget=budget,
        deadline=now + 3600,
        recipient=base64.b64encode(recipient).decode(),
        epochs=wish.epochs,
    )
    raw = sign_declaration({**document, **wish.changes}, layout.signer("team"))
    (layout.root / "job.json").write_bytes(raw)
    return raw
