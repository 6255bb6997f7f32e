"""The profile: one wrong thing, one code with its line; what is not known never loads."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blocks.profile import SCHEMA, load_profile
from rapha.errors import ConfigurationError

HOME = Path(__file__).parents[2] / "infra" / "profiles"
DEVELOPMENT, PRODUCTION = {"RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "false"}, {"RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "true"}
TEXT = (HOME / "production.yaml").read_text()


def codes(tmp_path: Path, text: str, environment: dict[str, str] = PRODUCTION) -> tuple[str, ...]:
    (tmp_path / "profile.yaml").write_text(text)
    with pytest.raises(ConfigurationError) as wrong:
        load_profile(tmp_path / "profile.yaml", environment)
    return wrong.value.codes


def test_the_two_examples_load_and_have_their_effect() -> None:
    production = load_profile(HOME / "production.yaml", PRODUCTION)
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
        "/etc/rapha/hospital-ca.pem",
    )
    development = load_profile(HOME / "development.yaml", DEVELOPMENT)
    assert development.endpoints["primary"].tls is None
    assert development.values["workflow.max_concurrent_studies"] == 5


CHANGES = {
    "profile-unknown-key": ("    vendor: GE\n    retrieve", "    vender: GE\n    retrieve"),
    "profile-type": ("retention_years: 7", "retention_years: seven"),
    "profile-value": ("retention_years: 7", "retention_years: 11"),
    "profile-repeated-key": ("mutual_auth: true", "mutual_auth: true\n  mutual_auth: true"),
    "profile-missing-key": ("  ca_bundle: /etc/rapha/hospital-ca.pem\n", ""),
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
    assert load_profile(HOME / "production.yaml", PRODUCTION).endpoints["primary"].pool_size is None
    assert codes(tmp_path, TEXT.replace("max_retries: 3", "max_retries: 4")) == ("profile-value",)


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
