"""Profiles: every endpoint and bound, every mode, every secret; all that is wrong is said at once; and what leaves a stage."""

import secrets
import string
import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from blocks.profile import BOUNDS, load_profile
from rapha.errors import ConfigurationError, PeerError, RaphaError, Refusal
from tasks.stage import coded
from tests.fixtures.profiles import A_FILE

QUIET = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
PRODUCTION = {"RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION": "true"}
LOCAL = {"host": "127.0.0.1", "port": 11112, "ae_title": "HOSPITAL", "calling_ae_title": "RAPHA"}
SECURE = {"tls_enabled": True, "cert_file": A_FILE, "key_file": A_FILE, "ca_bundle": A_FILE}
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8)
LETTERS = st.characters(max_codepoint=127, exclude_categories=["C"]) | st.characters(codec="utf-8", exclude_categories=["C"])
TITLES = st.text(string.ascii_uppercase + string.digits + "_", min_size=1, max_size=16)


def codes(folder: Path, profile: Any, environment: dict[str, str] | None = None) -> tuple[str, ...]:
    """() where it loads."""
    try:
        loaded(folder, profile, environment)
    except ConfigurationError as wrong:
        return wrong.codes
    return ()


def loaded(folder: Path, profile: Any, environment: dict[str, str] | None = None) -> Any:
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(profile, sort_keys=False))
    return load_profile(path, environment or {})


ENDPOINTS = st.fixed_dictionaries(
    {"host": st.sampled_from(["127.0.0.1", "localhost", "127.9.9.9"]), "port": st.integers(1, 65535), "ae_title": TITLES,
     "calling_ae_title": TITLES},
    optional={"max_results": st.integers(1, 1_000_000), "retrieve": st.sampled_from(["auto", "C-GET", "C-MOVE"]),
              "move_destination": TITLES},
)  # fmt: skip


@QUIET
@given(st.dictionaries(NAMES, ENDPOINTS, max_size=5), ENDPOINTS, st.integers(1, 600))
def test_every_endpoint_is_there_under_its_name_with_its_own_settings(
    tmp_path: Path, others: dict[str, dict[str, Any]], primary: dict[str, Any], seconds: int
) -> None:
    every = {"primary": primary, **{name: one for name, one in others.items() if name != "primary"}}
    profile = {"pacs_endpoints": every, "performance": {"connection_timeout_seconds": seconds}}
    found = loaded(tmp_path, profile).endpoints
    assert list(found) == list(every)
    for name, one in every.items():
        assert {key: getattr(found[name], key) for key in one} == one
        assert (found[name].name, found[name].connect_seconds, found[name].tls) == (name, float(seconds), None)


SECTIONS = {"port": "pacs_endpoints.primary", "max_results": "pacs_endpoints.primary", "smtp_port": "notifications.email",
            "retention_years": "audit", "max_concurrent_studies": "workflow", "polling_interval_seconds": "workflow",
            "batch_size": "workflow", "worker_threads": "workflow", "connection_pool_size": "performance",
            "connection_timeout_seconds": "performance", "max_retries": "performance", "max_size_gb": "cache",
            "ttl_hours": "cache", "quiet_seconds": "workflow"}  # fmt: skip


@QUIET
@given(st.sampled_from(sorted(SECTIONS)), st.data())
def test_a_number_is_taken_within_its_bounds_and_nowhere_else(tmp_path: Path, key: str, data: st.DataObject) -> None:
    low, high = BOUNDS[key]
    value = data.draw(st.sampled_from([low - 1, low, high, high + 1]) | st.integers(low - 5, high + 5))
    web = {"dicomweb_url": "http://127.0.0.1/dicom-web"}  # port 0 is no DIMSE side: then there is another
    profile: dict[str, Any] = {"pacs_endpoints": {"primary": LOCAL | web}}
    place = profile
    for part in SECTIONS[key].split("."):
        place = place.setdefault(part, {"enabled": False} if part == "cache" else {})
    place[key] = value
    assert codes(tmp_path, profile) == (() if low <= value <= high else ("profile-value",))
    place[key] = str(value)
    assert codes(tmp_path, profile) == ("profile-type",)


@QUIET
@example("ae_title", "   ")
@example("calling_ae_title", "A\\B")
@given(st.sampled_from(["ae_title", "calling_ae_title", "move_destination"]), st.text(LETTERS, max_size=20))
def test_an_ae_title_is_1_to_16_printable_characters(tmp_path: Path, key: str, title: str) -> None:
    """PS3.5 section 6.2, AE: no backslash, and not blanks alone."""
    right = 0 < len(title) <= 16 and title.isascii() and title.isprintable() and "\\" not in title
    found = codes(tmp_path, {"pacs_endpoints": {"primary": {**LOCAL, key: title}}})
    assert found == (() if right and title.strip() else ("profile-value",))


# What may be wrong at once, and its code.
WRONG: dict[str, tuple[str, str, Any]] = {
    "profile-unknown-key": ("workflow", "max_concurent_studies", 5),
    "profile-type": ("audit", "retention_years", "seven"),
    "profile-value": ("performance", "max_retries", 99),
    "profile-secret-in-clear": ("endpoint", "dicomweb_token", "hunter2"),
}


@QUIET
@given(st.sets(st.sampled_from(sorted(WRONG)), min_size=1))
def test_everything_that_is_wrong_is_said_at_once_each_with_its_line(tmp_path: Path, chosen: set[str]) -> None:
    profile: dict[str, Any] = {"pacs_endpoints": {"primary": dict(LOCAL)}, "workflow": {}, "audit": {}, "performance": {}}
    for code in chosen:
        section, key, value = WRONG[code]
        (profile["pacs_endpoints"]["primary"] if section == "endpoint" else profile[section])[key] = value
    with pytest.raises(ConfigurationError) as wrong:
        loaded(tmp_path, profile)
    assert wrong.value.codes == tuple(sorted(chosen))
    lines = (tmp_path / "profile.yaml").read_text().splitlines()
    for code in chosen:
        key = WRONG[code][1]
        (number,) = [n for n, line in enumerate(lines, 1) if line.strip().startswith(f"{key}:")]
        assert f"{key} " in wrong.value.message and f"(line {number})" in wrong.value.message
    assert "hunter2" not in wrong.value.message


HOSTS = st.sampled_from(["127.0.0.1", "localhost", "127.1.2.3", "pacs.hospital.example", "10.1.2.3", "192.0.2.7"])


@QUIET
@given(HOSTS, st.booleans(), st.sampled_from([None, True, False]), st.booleans())
def test_production_is_the_real_archive_over_tls_and_development_this_machine(
    tmp_path: Path, host: str, tls: bool, mutual: bool | None, production: bool
) -> None:
    security = {**SECURE, "tls_enabled": tls} | ({} if mutual is None else {"mutual_auth": mutual})
    profile = {"pacs_endpoints": {"primary": {**LOCAL, "host": host}}, "security": security}
    here = host.startswith("127.") or host == "localhost"
    expected = {"profile-host"} if here is production else set()
    if production and (not tls or mutual is False):
        expected |= {"profile-clear-dicom"}
    assert set(codes(tmp_path, profile, PRODUCTION if production else {})) == expected
    if not expected:
        found = loaded(tmp_path, profile, PRODUCTION if production else {})
        assert (found.mode, found.endpoints["primary"].tls is not None) == ("production" if production else "development", tls)


@QUIET
@given(st.text(string.ascii_letters + string.digits + "-._~+/", min_size=12, max_size=40), st.booleans())
def test_a_secret_is_read_from_where_it_is_named_and_shown_nowhere(tmp_path: Path, secret: str, from_file: bool) -> None:
    (tmp_path / "token").write_text(secret + "\n")
    named = f"file:{tmp_path / 'token'}" if from_file else "env:PACS_TOKEN"
    profile = {"pacs_endpoints": {"primary": {**LOCAL, "dicomweb_token": named}}}
    found = loaded(tmp_path, profile, {"PACS_TOKEN": secret})
    assert found.endpoints["primary"].dicomweb_token == secret
    assert secret not in repr(found) + repr(found.endpoints) + str(found.values)
    (tmp_path / "token").write_text(" \n")
    assert codes(tmp_path, profile, {"PACS_TOKEN": ""}) == ("profile-secret-missing",)


def _raised(kind: str, text: str) -> BaseException:
    return {
        "refusal": Refusal(["rule-says-no"], text),
        "peer": PeerError("peer-failed", text, peer="pacs"),
        "configuration": ConfigurationError(["setting-wrong"], text),
    }.get(kind) or {"ValueError": ValueError, "KeyError": KeyError, "OSError": OSError, "RuntimeError": RuntimeError}[kind](text)


@QUIET
@given(st.sampled_from(["refusal", "peer", "configuration", "ValueError", "KeyError", "OSError", "RuntimeError"]), st.data())
def test_what_leaves_a_stage_is_a_code_and_never_a_text(kind: str, data: st.DataObject) -> None:
    """The engine keeps a failed task's message and traceback: neither holds what an exception quoted."""
    patient = secrets.token_hex(8) + data.draw(st.text(max_size=8))

    def stage() -> None:
        try:
            raise LookupError(patient)
        except LookupError as first:
            raise _raised(kind, f"no such patient {patient}") from first

    with pytest.raises(RaphaError) as left:
        coded(stage)()
    error = left.value
    assert error.codes and all(code == code.lower() and " " not in code for code in error.codes)
    assert type(error).__name__ == {"refusal": "Refusal", "peer": "PeerError", "configuration": "ConfigurationError"}.get(
        kind, "StageBug"
    )
    shown = "".join(traceback.format_exception(error)) + repr(error) + str(error)
    assert patient not in shown and error.__cause__ is None and error.__suppress_context__
