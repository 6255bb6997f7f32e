"""The profile: one wrong thing, one code with its line; what is not known never loads."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.profile import SCHEMA, Profile, load_profile
from rapha.errors import ConfigurationError
from tests.fixtures.profiles import A_FILE, production_text

HOME = Path(__file__).parents[2] / "infra" / "profiles"
DEVELOPMENT, PRODUCTION = {"RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "false"}, {"RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "true"}
TEXT = production_text()


def codes(tmp_path: Path, text: str, environment: dict[str, str] = PRODUCTION) -> tuple[str, ...]:
    (tmp_path / "profile.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as wrong:
        load_profile(tmp_path / "profile.yaml", environment)
    return wrong.value.codes


def loaded(tmp_path: Path, text: str) -> Profile:
    (tmp_path / "profile.yaml").write_text(text)
    return load_profile(tmp_path / "profile.yaml", PRODUCTION)


def test_the_two_examples_load_and_have_their_effect(tmp_path: Path) -> None:
    production = loaded(tmp_path, TEXT)
    assert (production.mode, list(production.endpoints)) == ("production", ["primary", "backup"])
    primary = production.endpoints["primary"]
    assert (primary.host, primary.port, primary.ae_title, primary.connect_seconds) == (
        "pacs.hospital.example",
        2762,
        "HOSPITAL_PACS",
        30.0,
    )
    assert primary.tls is not None
    assert (primary.tls.version, primary.tls.mutual_auth, str(primary.tls.ca_bundle)) == (
        "TLS_1_3",
        True,
        A_FILE,
    )
    development = load_profile(HOME / "development.yaml", DEVELOPMENT)
    assert development.endpoints["primary"].tls is None
    assert development.values["workflow.max_concurrent_studies"] == 5


CHANGES = {
    "profile-unknown-key": ("    vendor: GE\n    retrieve", "    vender: GE\n    retrieve"),
    "profile-type": ("retention_years: 7", "retention_years: seven"),
    "profile-value": ("retention_years: 7", "retention_years: 11"),
    "profile-repeated-key": ("mutual_auth: true", "mutual_auth: true\n  mutual_auth: true"),
    "profile-missing-key": (f"  ca_bundle: {A_FILE}\n", ""),
    "profile-clear-dicom": ("tls_enabled: true", "tls_enabled: false"),
    "profile-host": ("host: pacs.hospital.example", "host: 127.0.0.1"),
    "profile-no-primary": ("  primary:", "  main:"),
    "profile-secret-in-clear": ("    vendor: GE\n    retrieve", "    dicomweb_token: hunter2\n    retrieve"),
    "profile-yaml": ("mutual_auth: true", "mutual_auth: !!python/name:os.system true"),
    "not-built": ("performance:", "  sms:\n    enabled: true\nperformance:"),
}


@pytest.mark.parametrize("code", sorted(CHANGES))
def test_one_wrong_thing_is_one_code(tmp_path: Path, code: str) -> None:
    old, new = CHANGES[code]
    assert TEXT.count(old) >= 1
    assert codes(tmp_path, TEXT.replace(old, new, 1)) == (code,)


@pytest.mark.parametrize("section", ["{enabled: true}", "{directory: /var/cache}", "{max_size_gb: 100, ttl_hours: 24}"])
def test_a_cache_that_is_asked_for_is_not_built(tmp_path: Path, section: str) -> None:
    assert codes(tmp_path, f"{TEXT}cache: {section}\n") == ("not-built",)
    (tmp_path / "profile.yaml").write_text(f"{TEXT}cache: {{enabled: false, directory: /var/cache, max_size_gb: 100}}\n")
    assert "cache.directory" in load_profile(tmp_path / "profile.yaml", PRODUCTION).values


def test_performance_reaches_the_endpoints(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text(TEXT.replace("performance:", "performance:\n  connection_pool_size: 4"))
    found = load_profile(tmp_path / "profile.yaml", PRODUCTION).endpoints
    assert {one.pool_size for one in found.values()} == {4}
    assert loaded(tmp_path, TEXT).endpoints["primary"].pool_size is None
    assert codes(tmp_path, TEXT.replace("max_retries: 3", "max_retries: 4")) == ("profile-value",)


@pytest.mark.parametrize("key", ["cert_file", "key_file", "ca_bundle"])
def test_a_file_that_is_missing_is_named_with_its_line(tmp_path: Path, key: str) -> None:
    text = TEXT.replace(f"  {key}: {A_FILE}", f"  {key}: /nope", 1)
    line = 1 + text.splitlines().index(f"  {key}: /nope")
    with pytest.raises(ConfigurationError) as wrong:
        loaded(tmp_path, text)
    assert wrong.value.codes == ("profile-file-missing",)
    assert f"security.{key} names no file" in wrong.value.message and f"(line {line})" in wrong.value.message


ODD = {
    "host: pacs.hospital.example": ("2026-13-45", "=", "<<", "[a]"),
    "port: 2762": ("0x_", "0b_", "9" * 5000, "1.5"),
    "priority_levels: [urgent, high, medium, low]": ("[{[a]: b}]", "{[x]: 1}"),
    "retrieve: auto": ("{[x]: 1}", "[C-GET]", "2026-13-45"),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ODD.items() for value in values])
def test_a_value_that_yaml_itself_cannot_make_is_a_wrong_type(tmp_path: Path, key: str, value: str) -> None:
    text = TEXT.replace(key, f"{key.partition(':')[0]}: {value}", 1)
    assert set(codes(tmp_path, text)) <= {"profile-type", "profile-value"}


@pytest.mark.parametrize("key", ["? [a]\n: 1", "? {a: 1}\n: 1"])
def test_a_key_that_is_no_text_is_refused(tmp_path: Path, key: str) -> None:
    assert codes(tmp_path, f"{TEXT}{key}\n") == ("profile-yaml",)


@pytest.mark.parametrize("name", ["a/b", '""', "/tmp/esc", '"a b"', "a" * 65, '".."'])
def test_an_endpoints_name_is_plain(tmp_path: Path, name: str) -> None:
    assert codes(tmp_path, TEXT.replace("  backup:", f"  {name}:", 1)) != ()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("host: pacs.hospital.example", "host: ''"),
        ("port: 2762", "port: 0"),
        ("    vendor: GE\n    retrieve", "    dicomweb_url: ftp://pacs.hospital.example/x\n    retrieve"),
        ("    vendor: GE\n    retrieve", "    dicomweb_url: https://\n    retrieve"),
    ],
)
def test_an_endpoint_that_nothing_reaches_is_refused(tmp_path: Path, old: str, new: str) -> None:
    assert set(codes(tmp_path, TEXT.replace(old, new, 1))) <= {"profile-value", "profile-host"}


def test_an_endpoint_without_keys_does_not_vanish(tmp_path: Path) -> None:
    assert codes(tmp_path, TEXT.replace("security:", "  third: {}\nsecurity:", 1)) == ("profile-missing-key",)


def test_every_fault_of_a_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(TEXT.replace("mutual_auth", "mutual_out").replace("tls_version", "tls"))
    with pytest.raises(ConfigurationError) as wrong:
        load_profile(tmp_path / "p.yaml", PRODUCTION)
    assert "security.mutual_out" in wrong.value.message and "security.tls is no key" in wrong.value.message


@pytest.mark.parametrize("value", ["TRUE", "True", "1", "yes", " true"])
def test_a_mode_that_is_misspelt_is_neither(tmp_path: Path, value: str) -> None:
    (tmp_path / "p.yaml").write_text(TEXT)
    with pytest.raises(ConfigurationError) as wrong:
        load_profile(tmp_path / "p.yaml", {"RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": value})
    assert wrong.value.codes == ("bad-enable-hospital-data-integration",)


def test_what_is_wrong_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(TEXT.replace("polling_interval_seconds", "poling_interval_seconds"))
    with pytest.raises(ConfigurationError) as wrong:
        load_profile(path, PRODUCTION)
    line = 1 + TEXT.splitlines().index("  polling_interval_seconds: 300")
    assert f"workflow.poling_interval_seconds is no key of a profile (line {line})" in wrong.value.message


def test_aliases_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    assert codes(
        tmp_path,
        TEXT.replace("host: pacs.hospital.example", "host: &h pacs.hospital.example", 1).replace(
            "host: pacs-backup.hospital.example", "host: *h"
        ),
    ) == ("profile-yaml",)
    with pytest.raises(ConfigurationError) as wrong:
        load_profile(tmp_path / "none.yaml", PRODUCTION)
    assert wrong.value.codes == ("profile-unreadable",)


def test_a_production_archive_is_no_place_for_development(tmp_path: Path) -> None:
    assert codes(tmp_path, TEXT, DEVELOPMENT) == ("profile-host",)


def test_a_secret_comes_from_where_it_is_named(tmp_path: Path) -> None:
    text = (HOME / "development.yaml").read_text().replace("    vendor: Generic", "    dicomweb_token: env:PACS_TOKEN")
    assert codes(tmp_path, text, DEVELOPMENT) == ("profile-secret-missing",)
    found = load_profile(tmp_path / "profile.yaml", {**DEVELOPMENT, "PACS_TOKEN": "s3cret"})
    assert found.endpoints["primary"].dicomweb_token == "s3cret"
    assert "s3cret" not in repr(found) + repr(found.endpoints["primary"])


LINES = TEXT.splitlines()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(line=st.integers(0, len(LINES) - 1), at=st.floats(0, 1), char=st.sampled_from("x0:-{[&*!%'\" #\t"))
def test_no_changed_key_loads_unnoticed(tmp_path: Path, line: int, at: float, char: str) -> None:
    """A profile with one character more either is refused, or has only keys of the schema."""
    place = int(at * len(LINES[line]))
    changed = [*LINES[:line], LINES[line][:place] + char + LINES[line][place:], *LINES[line + 1 :]]
    (tmp_path / "p.yaml").write_text("\n".join(changed))
    try:
        found = load_profile(tmp_path / "p.yaml", PRODUCTION)
    except ConfigurationError as wrong:
        assert all(code.startswith(("profile-", "not-built")) for code in wrong.codes)
        return
    assert all(key in SCHEMA[section] for section, _, key in (name.rpartition(".") for name in found.values))
    assert "primary" in found.endpoints
