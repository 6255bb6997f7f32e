"""What a doctor of the reading half must not clear: each thing alone, on a node's folder as `rapha node init` makes it."""

import json
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from blocks.database import open_engine
from blocks.reading import ReadingRegister
from blocks.reading_settings import reading_problems
from blocks.settings import MODE
from flows.reading_doctor import examine_reading
from flows.reading_health import reading_components
from flows.reading_looks import looks
from rapha.errors import ConfigurationError, RaphaError
from tasks.shared.beginning import begin


@pytest.fixture
def node(tmp_path: Path) -> dict[str, str]:
    made = begin(tmp_path / "node", "st-elsewhere", "development")
    lines = made["environment"].read_text().splitlines()[1:]
    return {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}


def code(node: dict[str, str], name: str) -> str:
    try:
        looks(node, served=False)[name]()
    except RaphaError as error:
        return error.codes[0]
    return ""


def test_a_new_node_has_nothing_of_it(node: dict[str, str]) -> None:
    assert {name: code(node, name) for name in looks(node, served=False)} == dict.fromkeys(looks(node, served=False), "")


def _edited(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    entry = json.loads(lines[0])
    entry["at"] += 1
    path.write_bytes(json.dumps(entry).encode() + b"\n" + b"".join(lines[1:]))


WRONG: dict[str, tuple[str, Callable[[Path], object]]] = {
    "state-open-to-others": ("state folder", lambda state: state.chmod(0o755)),
    "key-open-to-others": ("keys", lambda state: (state / "keys" / "study.pem").chmod(0o644)),
    "study-key-unreadable": ("keys", lambda state: (state / "keys" / "study.pem").write_bytes(b"")),
    "study-key-mismatch": (
        "keys",
        lambda state: (state / "keys" / "study.pub").write_bytes((state / "public/audit.pem").read_bytes()),
    ),
    "audit-edited": ("audit entries", lambda state: _edited(next((state / "audit/segments").glob("*/entries.jsonl")))),
}


@pytest.mark.parametrize("wanted", WRONG)
def test_one_wrong_thing_is_its_code(node: dict[str, str], wanted: str) -> None:
    name, spoil = WRONG[wanted]
    spoil(Path(node["RAPHA_STATE_DIR"]))
    assert code(node, name) == wanted


def test_an_engine_is_named(node: dict[str, str]) -> None:
    assert code(node | {"PREFECT_API_URL": ""}, "engine") == "missing-prefect-api-url"
    assert code(node | {"PREFECT_API_URL": "notaurl"}, "engine") == "bad-prefect-api-url"
    with pytest.raises(RaphaError) as wrong:
        looks(node | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}, served=True)["engine"]()
    assert wrong.value.codes == ("engine-unreachable",)


@pytest.mark.parametrize("value", ["x", "4", "3601", "1e2", "²"])
def test_a_lease_that_is_none_is_found_before_the_first_study(node: dict[str, str], value: str) -> None:
    assert set(reading_problems(node | {"RAPHA_READING_LEASE_SECONDS": value})) == {"bad-reading-lease-seconds"}


@pytest.mark.parametrize(("value", "wanted"), [("", "missing"), ("TRUE", "bad"), ("True", "bad"), ("yes", "bad"), ("1", "bad")])
def test_a_mode_that_is_unset_or_misspelt_starts_nothing(node: dict[str, str], value: str, wanted: str) -> None:
    assert set(reading_problems(node | {MODE: value})) == {f"{wanted}-enable-hospital-data-integration"}


def test_production_takes_no_key_that_was_made_for_development_and_no_switch(node: dict[str, str]) -> None:
    assert reading_problems(node) == {}
    assert set(reading_problems(node | {MODE: "true"})) == {"development-keys"}
    (Path(node["RAPHA_KEYS_DIR"]) / "DEVELOPMENT").unlink()
    assert reading_problems(node | {MODE: "true"}) == {}
    assert set(reading_problems(node | {MODE: "true", "RAPHA_DEMO": "1"})) == {"weakening-switch"}


def test_a_folder_of_other_things_does_not_become_an_audit_trail(node: dict[str, str]) -> None:
    ledger = Path(node["RAPHA_STATE_DIR"]) / "ledger"
    before = sorted(path.name for path in ledger.iterdir())
    for make in ({"RAPHA_AUDIT_DIR": str(ledger)}, {"RAPHA_AUDIT_DIR": str(ledger.parent / "mistyped")}):
        assert code(node | make, "audit entries") == "audit-missing"
    from blocks.audit import open_audit_trail

    with pytest.raises(ConfigurationError) as wrong:
        open_audit_trail(node | {"RAPHA_AUDIT_DIR": str(ledger)})
    assert wrong.value.codes == ("audit-folder-other",)
    assert sorted(path.name for path in ledger.iterdir()) == before and not (ledger.parent / "mistyped").exists()


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql://u@localhost/x", "register-url"),
        ("sqlite:////nope/below/x.db", "register-unwritable"),
        ("sqlite://", "register-url"),
        ("mysql://x/y", "register-url"),
    ],
)
def test_a_register_that_cannot_be_is_wrong_configuration(url: str, wanted: str) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        open_engine(url)
    assert wrong.value.codes == (wanted,)


def test_a_number_that_no_row_has_is_wrong_usage(tmp_path: Path) -> None:
    register = ReadingRegister.at(tmp_path / "r.sqlite", secrets.token_bytes(32))
    with pytest.raises(ConfigurationError) as wrong:
        register.study(1 << 70)
    assert wrong.value.codes == ("number-too-large",)
    with pytest.raises(ConfigurationError) as wrong:
        ReadingRegister.at(tmp_path / "r.sqlite" / "below", secrets.token_bytes(32))
    assert wrong.value.codes == ("state-dir-unusable",)


def test_health_and_doctor_see_an_edited_trail_and_a_cut_ledger(node: dict[str, str], tmp_path: Path) -> None:
    from blocks.profile import load_profile

    state = Path(node["RAPHA_STATE_DIR"])
    profile = load_profile(Path(node["RAPHA_PROFILE_PATH"]), node)
    _edited(next((state / "audit/segments").glob("*/entries.jsonl")))
    (state / "ledger" / "head.json").write_bytes(b"{}")
    found = reading_components(node, profile)
    assert found["audit trail"].startswith(("audit-", "ledger-")) and found["reading ledger"] == "ledger-broken"
    assert {"audit-edited"} <= {one.code for one in examine_reading(node)}
