"""The node's configuration: what is missing is named, what weakens is refused, development and production do not mix."""

import base64
import json
from pathlib import Path

import pytest

from blocks.settings import ALWAYS, NODE, READER_ALONE, load, problems
from rapha.errors import ConfigurationError

KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def production(tmp_path: Path) -> dict[str, str]:
    """A complete production environment: real-looking peers, files that are there."""
    files = {name: tmp_path / name.lower() for name in (*ALWAYS, *NODE) if name.endswith(("_PATH", "_COMMAND"))}
    for path in files.values():
        path.write_text("{}")
    (tmp_path / "keys").mkdir()
    (tmp_path / "trust").mkdir()
    plain = dict.fromkeys((*ALWAYS, *NODE), "set")
    return {
        **plain,
        **{name: str(path) for name, path in files.items()},
        "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "true",
        "RAPHA_TEE_ATTESTATION_REQUIRED": "true",
        "RAPHA_DICOMWEB_BASE_URL": "https://pacs.hospital.example/dicom-web",
        "RAPHA_DICOMWEB_STUDY_QUERY_JSON": json.dumps({"Modality": "MR", "BodyPartExamined": "BRAIN"}),
        "RAPHA_ORCHESTRATOR_API_BASE": "https://orchestrator.example/api",
        "RAPHA_ORCHESTRATOR_CALLBACK_URL": "https://node.hospital.example/orchestrator/callback",
        "RAPHA_CHAIN_RPC_URL": "https://rpc.example",
        "RAPHA_ATTESTOR_URL": "https://attestor.example",
        "RAPHA_CHAIN_ID": "137",
        "RAPHA_PHI_HMAC_KEY_BASE64": KEY,
        "RAPHA_KEYS_DIR": str(tmp_path / "keys"),
        "RAPHA_TRUST_DIR": str(tmp_path / "trust"),
    }


def test_a_complete_production_environment_has_no_problem(production: dict[str, str]) -> None:
    assert problems(production) == {}
    assert load(production).mode == "production"


@pytest.mark.parametrize("name", [*ALWAYS, *NODE])
def test_each_missing_setting_is_named_by_a_code_of_its_own(production: dict[str, str], name: str) -> None:
    del production[name]
    wanted = f"missing-{name.removeprefix('RAPHA_').lower().replace('_', '-')}"
    assert wanted in problems(production)
    with pytest.raises(ConfigurationError) as refused:
        load(production)
    assert wanted in refused.value.codes


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("RAPHA_TEE_ATTESTATION_REQUIRED", "false", "attestation-not-required"),
        ("RAPHA_TEE_ATTESTATION_REQUIRED", "1", "bad-tee-attestation-required"),
        ("RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION", "yes", "bad-enable-hospital-data-integration"),
        ("RAPHA_DICOMWEB_BASE_URL", "http://127.0.0.1:8042/dicom-web", "loopback-dicomweb-base-url"),
        ("RAPHA_DICOMWEB_BASE_URL", "http://pacs.hospital.example/dicom-web", "clear-dicomweb-base-url"),
        ("RAPHA_ORCHESTRATOR_API_BASE", "https://user:word@orchestrator.example", "bad-orchestrator-api-base"),
        ("RAPHA_TRAINING_ENDPOINT", "primary", "missing-profile-path"),
        ("RAPHA_CHAIN_ID", "31337", "wrong-chain-id"),
        ("RAPHA_CHAIN_ID", "polygon", "bad-chain-id"),
        ("RAPHA_DCAP_ROOT_PATH", "root.der", "development-root"),
        ("RAPHA_DICOMWEB_STUDY_QUERY_JSON", "{}", "broad-dicomweb-study-query-json"),
        ("RAPHA_DICOMWEB_STUDY_QUERY_JSON", '{"Modality":"*"}', "broad-dicomweb-study-query-json"),
        ("RAPHA_DICOMWEB_STUDY_QUERY_JSON", "not json", "bad-dicomweb-study-query-json"),
        ("RAPHA_PHI_HMAC_KEY_BASE64", base64.b64encode(bytes(32)).decode(), "weak-phi-hmac-key-base64"),
        ("RAPHA_PHI_HMAC_KEY_BASE64", base64.b64encode(bytes(range(16))).decode(), "bad-phi-hmac-key-base64"),
        ("RAPHA_PHI_HMAC_KEY_BASE64", "%%%", "bad-phi-hmac-key-base64"),
        ("RAPHA_DATASET_MANIFEST_PATH", "/nowhere/manifest.json", "unreadable-dataset-manifest-path"),
    ],
)
def test_one_wrong_setting_is_one_code(production: dict[str, str], name: str, value: str, code: str) -> None:
    assert code in problems({**production, name: value})


@pytest.mark.parametrize("switch", ["MOCK", "GRAMINE_RA_TLS_ALLOW_DEBUG_ENCLAVE_INSECURE", "RAPHA_ALLOW_DEBUG", "RAPHA_DEMO"])
def test_A14_a_weakening_switch_stops_a_production_node(production: dict[str, str], switch: str) -> None:
    assert set(problems({**production, switch: "0"})) == {"weakening-switch"}


@pytest.mark.parametrize("name", ["RAPHA_KEYS_DIR", "RAPHA_TRUST_DIR"])
def test_G24_keys_made_by_the_demo_stop_a_production_node(production: dict[str, str], name: str) -> None:
    (Path(production[name]) / "DEVELOPMENT").touch()
    assert set(problems(production)) == {"development-keys"}


def test_development_speaks_to_this_machine_only(production: dict[str, str]) -> None:
    found = problems({**production, "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "false"})
    assert {"not-loopback-dicomweb-base-url", "not-loopback-chain-rpc-url", "wrong-chain-id"} <= set(found)


def test_C19_the_pseudonym_key_is_not_among_the_settings(production: dict[str, str]) -> None:
    settings = load(production)
    assert READER_ALONE not in settings.values
    assert KEY not in repr(settings)
    without = {name: value for name, value in production.items() if name != READER_ALONE}
    assert load(without, without=(READER_ALONE,)).mode == "production"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("RAPHA_ATTESTOR_URL", "https://a.example,http://b.example", "clear-attestor-url"),
        ("RAPHA_ATTESTOR_URL", "https://a.example,https://127.0.0.1", "loopback-attestor-url"),
        ("RAPHA_ATTESTOR_URL", "https://a.example,", "bad-attestor-url"),
        ("RAPHA_CHAIN_RPC_URL", "https://a.example,https://b.example", "bad-chain-rpc-url"),
        ("RAPHA_CHAIN_RPC_URL", "https://rpc.example:port", "bad-chain-rpc-url"),
        ("RAPHA_CHAIN_RPC_URL", "https://[::1", "bad-chain-rpc-url"),
        ("RAPHA_CHAIN_ID", "1" * 5000, "bad-chain-id"),
        ("RAPHA_OPA_URL", "http://opa.example:8181", "clear-opa-url"),
        ("RAPHA_DATASET_MANIFEST_PATH", "/", "unreadable-dataset-manifest-path"),
    ],
)
def test_A14_every_address_of_a_list_and_the_policy_servers_is_judged(
    production: dict[str, str], name: str, value: str, code: str
) -> None:
    assert list(problems({**production, name: value})) == [code]


@pytest.mark.parametrize("name", ["RAPHA_ATTESTOR_URL", "RAPHA_OPA_URL"])
def test_development_speaks_to_no_second_attestor_and_no_policy_server_outside(production: dict[str, str], name: str) -> None:
    away = "http://127.0.0.1:1,http://away.example" if name == "RAPHA_ATTESTOR_URL" else "http://away.example"
    local = {url: "http://127.0.0.1:9" for url in production if url.endswith(("_URL", "_BASE"))}
    development = {**production, **local, "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "false", "RAPHA_CHAIN_ID": "1337"}
    assert problems(development) == {}
    assert list(problems({**development, name: away})) == [
        f"not-loopback-{name.removeprefix('RAPHA_').lower().replace('_', '-')}"
    ]


def test_production_may_have_its_policy_server_beside_it(production: dict[str, str]) -> None:
    assert problems({**production, "RAPHA_OPA_URL": "http://127.0.0.1:8181"}) == {}
