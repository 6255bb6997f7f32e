"""How the profile's keys reach a poll, what health says of polls, and the watermark as an operator sees and sets it."""

import base64
import json
import secrets
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from blocks.archive import Capabilities
from blocks.audit import Wanted, open_audit_trail
from blocks.profile import Profile, load_profile
from blocks.reading import open_reading_register
from flows.polled import poll_settings
from flows.reading_doctor import _limits
from flows.reading_health import _looks, looked_at
from policies.polling import DAY, PollSettings
from rapha.console.app import build, run
from rapha.errors import ConfigurationError, Refusal
from rapha.signing import write_private
from tasks.reading.poll import poll
from tasks.shared.probe import read_record, write_record
from tests.fixtures.listing import Kept, Listed

KEY = secrets.token_bytes(32)
Typed = Callable[..., tuple[int, Any]]
ENDPOINT = {"host": "127.0.0.1", "port": 104, "ae_title": "PACS", "calling_ae_title": "RAPHA"}


def profile(folder: Path, *, workflow: dict | None = None, **endpoint: object) -> Profile:
    whole = {
        "pacs_endpoints": {"primary": {**ENDPOINT, **endpoint}, "other": ENDPOINT},
        "workflow": workflow or {"batch_size": 1},
    }
    (folder / "profile.yaml").write_text(yaml.safe_dump(whole))
    return load_profile(folder / "profile.yaml", {})


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    write_private(tmp_path / "audit.pem")
    keys = {"RAPHA_REGISTER_KEY_BASE64": KEY, "RAPHA_AUDIT_KEY_BASE64": secrets.token_bytes(32)}
    texts = {name: base64.b64encode(key).decode() for name, key in keys.items()}
    places = {
        "RAPHA_STATE_DIR": str(tmp_path),
        "RAPHA_KEYS_DIR": str(tmp_path),
        "RAPHA_PROFILE_PATH": str(tmp_path / "profile.yaml"),
    }
    return {**texts, **places}


def test_the_keys_are_the_polls_settings(tmp_path: Path) -> None:
    plain = poll_settings(profile(tmp_path), "primary")
    assert plain == PollSettings(pacs="primary", overlap=DAY, first=DAY, sweep=30 * DAY, most=500, zone=None, priority="medium")
    days = {"poll_overlap_days": 3, "first_poll_days": 14, "sweep_days": 0}
    set_ = profile(tmp_path, workflow=days, timezone="Asia/Tokyo", priority="urgent", max_results=200)
    asks = poll_settings(set_, "primary")
    assert (asks.overlap, asks.first, asks.sweep, asks.most, asks.priority) == (3 * DAY, 14 * DAY, 0, 200, "urgent")
    assert str(asks.zone) == "Asia/Tokyo"
    assert (poll_settings(set_, "other").zone, poll_settings(set_, "other").priority) == (None, "medium")


@pytest.mark.parametrize(
    "wrong",
    [
        {"timezone": "Europe/Atlantis"},
        {"timezone": ""},
        {"timezone": "../../etc/passwd"},
        {"timezone": "+09:00"},
        {"priority": "stat"},
        {"workflow": {"poll_overlap_days": 0}},
        {"workflow": {"first_poll_days": 0}},
        {"workflow": {"sweep_days": -1}},
    ],
    ids=str,
)
def test_what_no_archive_has_is_refused(tmp_path: Path, wrong: dict) -> None:
    with pytest.raises(ConfigurationError) as error:
        profile(tmp_path, **wrong)
    assert error.value.codes == ("profile-value",) and "(line " in error.value.message


def test_the_lower_of_the_two_limits_counts_and_the_doctor_says_so(tmp_path: Path) -> None:
    record = {"version": 2, "endpoint": "primary", "at": 7, "services": [], "stores": []}
    seen = {"answers": 100, "sign": "round-number"}
    for limit, expected in (
        (seen, 100),
        ({"answers": 37, "sign": ""}, None),
        ({"answers": 0, "sign": "more-or-refused"}, None),
        (None, None),
    ):
        kept = write_record(tmp_path / "capabilities", {**record, **({"limit": limit} if limit else {})}).parent
        probed = read_record(kept, "primary")
        assert probed.limit == expected
        known = profile(tmp_path)
        assert poll_settings(known, "primary", probed).most == (expected or 500)
        told = list(_limits({"RAPHA_STATE_DIR": str(tmp_path)}, known))
        assert [(one.name, one.ok, "100" in one.said) for one in told] == [("result limit primary", True, True)] * (
            expected is not None
        )
    assert poll_settings(profile(tmp_path, max_results=50), "primary", Capabilities(limit=100)).most == 50


def health(environment: dict[str, str], known: Profile) -> str:
    looks = {name: look for name, look in _looks(environment, known).items() if name.startswith("poll ")}
    assert list(looks) == ["poll primary"], "of the endpoints that are polled"
    return looked_at(looks)["poll primary"]


def test_health_of_a_fresh_node_of_one_that_polls_and_of_one_that_stopped(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, now = profile(tmp_path, workflow={"polling_interval_seconds": 100}), int(time.time())
    register = open_reading_register(environment)
    monkeypatch.setattr(time, "time", lambda: float(now))
    assert health(environment, known) == "", "nobody has had time to poll yet"
    monkeypatch.setattr(time, "time", lambda: now + 301.0)
    assert health(environment, known) == "poll-stale"
    poll(register, Listed([]), poll_settings(known, "primary"), now + 250)
    assert health(environment, known) == ""
    monkeypatch.setattr(time, "time", lambda: now + 551.0)
    assert health(environment, known) == "poll-stale"
    monkeypatch.setattr(time, "time", lambda: now + 9 * DAY * 1.0)
    assert health(environment, profile(tmp_path, workflow={"automated_polling": False})) == "", "no schedule is to poll it"
    monkeypatch.setattr(time, "time", lambda: now + 551.0)
    poll(
        register,
        Listed([Kept("1.1", date="20000101", odd="study")]),
        PollSettings(pacs="primary", first=20000 * DAY, overlap=20000 * DAY),
        now + 551,
    )
    assert health(environment, profile(tmp_path)) == "poll-answer-odd"
    register.close()


@pytest.fixture
def typed(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Typed:
    profile(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def command(*words: str) -> tuple[int, Any]:
        status = run(build(words[0]), [*words, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return command


def test_a_watermark_in_the_future_is_set_back_and_polls_go_on(typed: Typed, environment: dict[str, str], tmp_path: Path) -> None:
    """The clock was a year ahead during one poll."""
    register, asks, now = open_reading_register(environment), poll_settings(profile(tmp_path), "primary"), int(time.time())
    assert typed("pacs", "watermark", "primary")[1] == {"pacs": "primary", "watermark": None, "polled_at": None}
    poll(register, Listed([]), asks, now + 366 * DAY)
    with pytest.raises(Refusal) as error:
        poll(register, Listed([]), asks, now)
    assert error.value.codes == ("clock-behind-watermark",)
    assert health(environment, profile(tmp_path)) == "poll-stale", "its time lies ahead"
    back = f"{datetime.fromtimestamp(now - 2 * DAY, UTC):%Y-%m-%dT%H:%M:%SZ}"
    assert typed("pacs", "watermark", "primary", "--set", back) == (
        0,
        {"pacs": "primary", "watermark": back, "polled_at": back},
    )
    day = f"{datetime.fromtimestamp(now - 2 * DAY, UTC):%Y%m%d}"
    outcome = poll(register, Listed([Kept("1.1", date=day)]), asks, now)
    assert (outcome.new, outcome.swept is None, health(environment, profile(tmp_path))) == (1, False, "")
    entries = list(open_audit_trail(environment).search(Wanted(kinds=("operator",))))
    assert [(one.stage, one.outcome) for one in entries] == [("begin", 0), ("end", 0)]
    register.close()


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["primary", "--set", "2999-01-01T00:00:00Z"], 3, "watermark-forward"),
        (["primary", "--set", "2026-01-01T00:00:00"], 2, "time-malformed"),
        (["primary", "--set", "yesterday"], 2, "time-malformed"),
        (["primary", "--set", "0001-01-01T00:00:00+14:00"], 2, "time-malformed"),
        (["nobody"], 2, "pacs-unknown"),
    ],
    ids=str,
)
def test_a_watermark_is_not_set_to_anything(
    typed: Typed, environment: dict[str, str], words: list[str], status: int, code: str
) -> None:
    ended, said = typed("pacs", "watermark", *words)
    assert ended == status and code in str(said)
    assert open_reading_register(environment).watermark("primary") is None


def test_without_the_trail_it_is_not_set(typed: Typed, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    monkeypatch.delenv("RAPHA_AUDIT_KEY_BASE64")
    assert typed("pacs", "watermark", "primary", "--set", "2020-01-01T00:00:00Z")[0] == 2
    assert open_reading_register(environment).watermark("primary") is None
