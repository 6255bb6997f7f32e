"""The node's configuration: environment variables in, one frozen object out, every missing thing named at once.

Production (`RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION=true`) refuses every development root and key, loopback peers and any
`RAPHA_TEE_ATTESTATION_REQUIRED` but `true`. Development allows loopback peers and the development chain only.
"""

import base64
import binascii
import ipaddress
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from policies.gate import Mode
from rapha.canonical import parse
from rapha.errors import ConfigurationError, Refusal

MODE = "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION"
# Always required, in development too.
ALWAYS = (
    MODE,
    "RAPHA_DICOMWEB_BASE_URL",
    "RAPHA_DICOMWEB_STUDY_QUERY_JSON",
    "RAPHA_ORCHESTRATOR_API_BASE",
    "RAPHA_ORCHESTRATOR_CALLBACK_URL",
    "RAPHA_PHI_HMAC_KEY_BASE64",
    "RAPHA_TRAINER_COMMAND",
    "RAPHA_DATASET_MANIFEST_PATH",
    "RAPHA_OPA_POLICY_PATH",
    "RAPHA_TEE_ATTESTATION_REQUIRED",
)
# The rest of what a node needs before it may run a job; there is no default that opens anything.
NODE = (
    "RAPHA_NODE_ID",
    "RAPHA_STATE_DIR",
    "RAPHA_KEYS_DIR",
    "RAPHA_TRUST_DIR",
    "RAPHA_SITE_POLICY_PATH",
    "RAPHA_DATASET_RECORDS_PATH",
    "RAPHA_CHAIN_RPC_URL",
    "RAPHA_CHAIN_ID",
    "RAPHA_VAULT_ADDRESS",
    "RAPHA_TOKEN_ADDRESS",
    "RAPHA_ATTESTOR_URL",
    "RAPHA_ORCHESTRATOR_TOKEN",
    "RAPHA_WEBHOOK_KEYS_PATH",
    "RAPHA_WAN_INTERFACE",
    "RAPHA_WAN_PROBE",
    "RAPHA_LAN_INTERFACES",
    "RAPHA_KEEPER_SOCKET",
    "RAPHA_READER_SOCKET",
    "RAPHA_LAUNCHER_SOCKET",
    "RAPHA_ATTESTER_SOCKET",
    "RAPHA_PLATFORM_PATH",
    "RAPHA_COLLATERAL_PATH",
)
OPTIONAL = (
    "RAPHA_LAN_ROUTES",
    "RAPHA_OPA_URL",
    "RAPHA_OPA_TOKEN",
    "RAPHA_DCAP_ROOT_PATH",
    "RAPHA_CA_BUNDLE",
    "RAPHA_KNOWN_WHEELS_PATH",
    "RAPHA_TRAINING_ENDPOINT",  # of the profile: where the cohort is retrieved from, instead of RAPHA_DICOMWEB_BASE_URL
    "RAPHA_PROFILE_PATH",
    "RAPHA_RECEIVER_BIND",
    "RAPHA_RECEIVER_SOCKET",
    "RAPHA_RECEIVER_STORE",
)
URLS = (
    "RAPHA_DICOMWEB_BASE_URL",
    "RAPHA_ORCHESTRATOR_API_BASE",
    "RAPHA_ORCHESTRATOR_CALLBACK_URL",
    "RAPHA_CHAIN_RPC_URL",
    "RAPHA_ATTESTOR_URL",
)
BESIDE = "RAPHA_OPA_URL"  # a policy server stands beside the node in production too; beyond this machine it is https
FILES = (
    "RAPHA_TRAINER_COMMAND",
    "RAPHA_DATASET_MANIFEST_PATH",
    "RAPHA_DATASET_RECORDS_PATH",
    "RAPHA_OPA_POLICY_PATH",
    "RAPHA_SITE_POLICY_PATH",
    "RAPHA_PLATFORM_PATH",
    "RAPHA_COLLATERAL_PATH",
    "RAPHA_WEBHOOK_KEYS_PATH",
)
READER_ALONE = "RAPHA_PHI_HMAC_KEY_BASE64"  # the one value that the reader's process has and a flow's has not
# Switches of our parts and of others that weaken a gate: set in production, the node does not start (A14).
WEAKENING = ("MOCK", "ALLOW_DEBUG", "_INSECURE", "RAPHA_DEMO", "SKIP_GATE")
DEVELOPMENT_MARK = "DEVELOPMENT"  # a file beside keys that were made for development
DEVELOPMENT_CHAINS = (1337, 31337, 131277322940537)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One node's configuration. `values` holds every RAPHA_* text as given, tokens too (but never the
    pseudonym key): do not log it."""

    mode: Mode
    values: Mapping[str, str]
    outer_query: Mapping[str, str]
    chain_id: int
    site: Mapping[str, Any]

    def text(self, name: str) -> str:
        return self.values[name]

    def path(self, name: str) -> Path:
        return Path(self.values[name])

    def optional(self, name: str) -> str | None:
        return self.values.get(name) or None

    def section(self, gate: str) -> dict[str, Any]:
        """The site's numbers for one gate; a site policy without the section is not a site policy."""
        section = self.site.get(gate)
        if not isinstance(section, dict):
            raise ConfigurationError(["site-policy-section-missing"], f"the site policy has no section {gate!r}")
        return section

    def __repr__(self) -> str:
        return f"Settings({self.mode}, node {self.values.get('RAPHA_NODE_ID', '?')})"


def problems(environment: Mapping[str, str], *, without: Collection[str] = ()) -> dict[str, str]:
    """code -> sentence, for every setting that is missing or wrong; empty when a node may be configured so."""
    found: dict[str, str] = {}
    for name in (*ALWAYS, *NODE):
        if name not in without and not environment.get(name, "").strip():
            found[f"missing-{_kebab(name)}"] = f"{name} is not set"
    for name in (MODE, "RAPHA_TEE_ATTESTATION_REQUIRED"):
        if environment.get(name) and environment[name] not in ("true", "false"):
            found[f"bad-{_kebab(name)}"] = f"{name} must be exactly true or false"
    if environment.get("RAPHA_TRAINING_ENDPOINT", "").strip() and not environment.get("RAPHA_PROFILE_PATH", "").strip():
        found["missing-profile-path"] = "RAPHA_TRAINING_ENDPOINT names an endpoint of a profile: set RAPHA_PROFILE_PATH"
    found |= _key_problems(environment) | _query_problems(environment) | _file_problems(environment)
    found |= _peer_problems(environment, production=environment.get(MODE) == "true")
    if environment.get(MODE) == "true":
        found |= _production_problems(environment)
    return found


def load(environment: Mapping[str, str], *, without: Collection[str] = ()) -> Settings:
    """The settings, or `ConfigurationError` with a code for each thing that is missing or wrong.

    `without`: names that this process must do without, because another process alone holds them.
    """
    found = problems(environment, without=without)
    if found:
        raise ConfigurationError(sorted(found), "; ".join(found[code] for code in sorted(found)))
    site = parse(Path(environment["RAPHA_SITE_POLICY_PATH"]).read_bytes(), what="site policy")
    if not isinstance(site, dict):
        raise ConfigurationError(["site-policy-unreadable"], "RAPHA_SITE_POLICY_PATH does not hold a JSON object")
    known = (*ALWAYS, *NODE, *OPTIONAL)
    return Settings(
        mode=mode_of(environment),
        values={name: environment[name] for name in known if environment.get(name) and name != READER_ALONE},
        outer_query=json.loads(environment["RAPHA_DICOMWEB_STUDY_QUERY_JSON"]),
        chain_id=int(environment["RAPHA_CHAIN_ID"]),
        site=site,
    )


def mode_of(environment: Mapping[str, str], *, absent: Mode | None = None) -> Mode:
    """production or development, as `RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION` says. absent: what it is where that is not set.

    Raises `ConfigurationError` missing-… or bad-enable-hospital-data-integration: a value that is misspelt opens nothing.
    """
    said = environment.get(MODE, "")
    if not said.strip():
        if absent is None:
            raise ConfigurationError([f"missing-{_kebab(MODE)}"], f"{MODE} is not set")
        return absent
    if said not in ("true", "false"):
        raise ConfigurationError([f"bad-{_kebab(MODE)}"], f"{MODE} must be exactly true or false")
    return "production" if said == "true" else "development"


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine and nothing else."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _kebab(name: str) -> str:
    return name.removeprefix("RAPHA_").lower().replace("_", "-")


def _key_problems(environment: Mapping[str, str]) -> dict[str, str]:
    text = environment.get("RAPHA_PHI_HMAC_KEY_BASE64", "")
    if not text.strip():
        return {}
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        return {"bad-phi-hmac-key-base64": "RAPHA_PHI_HMAC_KEY_BASE64 is not base64"}
    if len(key) != 32:
        return {"bad-phi-hmac-key-base64": "RAPHA_PHI_HMAC_KEY_BASE64 must hold exactly 32 bytes"}
    if len(set(key)) < 8:
        return {"weak-phi-hmac-key-base64": "RAPHA_PHI_HMAC_KEY_BASE64 is a default or a pattern: make 32 random bytes"}
    return {}


def _query_problems(environment: Mapping[str, str]) -> dict[str, str]:
    text = environment.get("RAPHA_DICOMWEB_STUDY_QUERY_JSON", "")
    if not text.strip():
        return {}
    try:
        query = parse(text.encode(), what="study query")
    except Refusal:
        return {"bad-dicomweb-study-query-json": "RAPHA_DICOMWEB_STUDY_QUERY_JSON is not a JSON object"}
    usable = isinstance(query, dict) and query and all(isinstance(v, str) and v.strip("*? ") for v in query.values())
    broad = {
        "broad-dicomweb-study-query-json": "RAPHA_DICOMWEB_STUDY_QUERY_JSON must bound the query: no empty or wildcard value"
    }
    return {} if usable else broad


def _file_problems(environment: Mapping[str, str]) -> dict[str, str]:
    named = {name: environment[name] for name in FILES if environment.get(name, "").strip()}
    return {
        f"unreadable-{_kebab(name)}": f"{name} does not name a readable file"
        for name, text in named.items()
        if not Path(text).is_file()
    }


def _peer_problems(environment: Mapping[str, str], *, production: bool) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in (*URLS, BESIDE):
        text = environment.get(name, "")
        several = text.split(",") if name == "RAPHA_ATTESTOR_URL" else [text]  # attestors stand with commas between them
        for url in several if text.strip() else ():
            found |= url_problem(name, url, production=production)
    text = environment.get("RAPHA_CHAIN_ID", "")
    if text and not (text.isascii() and text.isdecimal() and len(text) < 16):
        found["bad-chain-id"] = "RAPHA_CHAIN_ID is not a number"
    elif text and (int(text) in DEVELOPMENT_CHAINS) is production:
        found["wrong-chain-id"] = f"RAPHA_CHAIN_ID {text} is not a {'production' if production else 'development'} chain"
    return found


def url_problem(name: str, url: str, *, production: bool) -> dict[str, str]:
    """code -> sentence, where a peer's address is none, or not for this mode: loopback in development, https in production."""
    if not is_plain(url):
        return {f"bad-{_kebab(name)}": f"{name} is not a plain http(s) URL"}
    loopback = is_loopback(url)
    if not production:
        said = f"{name} must name this machine in development"
        return {} if loopback else {f"not-loopback-{_kebab(name)}": said}
    if loopback and name != BESIDE:
        return {f"loopback-{_kebab(name)}": f"{name} names this machine; production needs the real peer"}
    if urlsplit(url).scheme != "https" and not loopback:
        return {f"clear-{_kebab(name)}": f"{name} must be https in production"}
    return {}


def is_plain(url: str) -> bool:
    """Whether it is an http(s) URL of a host, without user, query or fragment."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False
    return (
        named
        and "," not in parts.netloc
        and parts.scheme in ("http", "https")
        and not (parts.username or parts.query or parts.fragment)
    )


def _production_problems(environment: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    if environment.get("RAPHA_TEE_ATTESTATION_REQUIRED") != "true":
        found["attestation-not-required"] = "RAPHA_TEE_ATTESTATION_REQUIRED must be true in production"
    if environment.get("RAPHA_DCAP_ROOT_PATH"):
        found["development-root"] = "RAPHA_DCAP_ROOT_PATH replaces Intel's root: development only"
    return found | weakened(environment) | development_keys(environment)


def weakened(environment: Mapping[str, str]) -> dict[str, str]:
    """Switches that are set and would weaken a production node."""
    named = [name for name in sorted(environment) if any(mark in name.upper() for mark in WEAKENING)]
    return {"weakening-switch": f"{', '.join(named)} is set: no switch may weaken a production node"} if named else {}


def development_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Keys that were made for development carry a marker file beside them; production does not use them."""
    for name in ("RAPHA_KEYS_DIR", "RAPHA_TRUST_DIR"):
        folder = environment.get(name, "")
        if folder and (Path(folder) / DEVELOPMENT_MARK).exists():
            return {"development-keys": f"{name} holds keys that were made for development"}
    return {}
