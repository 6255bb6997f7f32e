"""`rapha audit`: what it finds, what it shows and does not, and that each look at the trail is in the trail."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from blocks.audit import AuditTrail, Wanted, audited
from flows.console.audit import person
from policies.audit_message import parse
from policies.audit_syslog import unframed
from rapha.console.app import build, run
from rapha.trail import verify_trail
from tests.fixtures.audit import MRN, NAME, SIGNER, UID, place, transfer


@pytest.fixture
def trail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditTrail:
    here = place(tmp_path)
    for name, value in here.environment.items():
        monkeypatch.setenv(name, value)
    trail = here.open()
    with audited(trail, "transfer", transfer(1)):
        pass
    trail.record("query", transfer(2, studies=(), query=b"q"), outcome=4)
    trail.record("operator", transfer(3, subject="queue row 3"))
    return trail


def audit(*arguments: str, capsys: Any, status: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert run(build("audit"), ["audit", *arguments, "--json"]) == status
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def looks(trail: AuditTrail) -> list[Any]:
    return list(trail.messages(Wanted(kinds=("audit-log",))))


@pytest.mark.parametrize(
    ("options", "kinds"),
    [
        ([], ["transfer", "transfer", "query", "operator"]),
        (["--kind", "query"], ["query"]),
        (["--kind", "query", "--kind", "operator"], ["query", "operator"]),
        (["--outcome", "4"], ["query"]),
        (["--person", " Reading@NODE"], ["transfer", "transfer", "query", "operator"]),
        (["--person", "nobody"], []),
        (["--patient", f"{MRN}-1"], ["transfer", "transfer"]),
        (["--study", f"{UID}.3"], ["operator"]),
        (["--since", "2020-01-01", "--until", "2020-12-31"], []),
        (["--since", "2020-01-01T00:00Z"], ["transfer", "transfer", "query", "operator"]),
        (["--limit", "1"], ["operator"]),
    ],
)
def test_search_finds_what_matches_and_not_itself(trail: AuditTrail, options: list[str], kinds: list[str], capsys: Any) -> None:
    found = audit("search", *options, capsys=capsys)
    assert [entry["kind"] for entry in found["entries"]] == kinds


def test_every_look_at_the_trail_is_in_the_trail_with_who_looked(trail: AuditTrail, tmp_path: Path, capsys: Any) -> None:
    for arguments in (["search"], ["report"], ["export", str(tmp_path / "out")], ["expire"]):
        audit(*arguments, capsys=capsys)
    found = looks(trail)
    assert [one.stage for one, _ in found] == ["begin", "end"] * 4
    for _, xml in found:
        message = parse(xml)
        assert message.event.id.code == "110101" and message.participants[0].user == person() != ""
        assert message.subjects[0].id == trail.uri and message.subjects[0].name == "Security Audit Log"


def test_a_look_that_cannot_be_audited_shows_nothing(trail: AuditTrail, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("blocks.ledger.Ledger._append_line", full)
    said = audit("search", capsys=capsys, status=4)
    assert said["codes"] == ["audit-unwritable"] and "entries" not in said


def test_a_look_that_fails_is_in_the_trail_with_its_outcome(trail: AuditTrail, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").touch()
    assert audit("export", str(tmp_path / "file" / "out"), capsys=capsys, status=2)["codes"] == ["audit-export-unwritable"]
    assert [one.outcome for one, _ in looks(trail)] == [0, 8]


def test_search_and_report_show_no_identifier_in_either_form(trail: AuditTrail, capsys: Any) -> None:
    for arguments in (["search"], ["report"], ["search", "--patient", f"{MRN}-1"]):
        for form in ([], ["--json"]):
            assert run(build("audit"), ["audit", *arguments, *form]) == 0
            said = capsys.readouterr()
            for clear in (MRN, NAME, UID, "reading@node", person()):
                assert clear not in said.out + said.err


def test_a_pseudonym_from_a_search_can_be_searched_for(trail: AuditTrail, capsys: Any) -> None:
    (entry,) = audit("search", "--kind", "query", capsys=capsys)["entries"]
    assert audit("search", "--pseudonym", entry["patient"], capsys=capsys)["entries"] == [entry]


def test_report_counts_acts(trail: AuditTrail, capsys: Any) -> None:
    counts = audit("report", capsys=capsys)
    assert (counts["acts"], counts["entries"], counts["phi_access_count"]) == (3, 4, 2)
    assert counts["by_kind"] == {"operator": 1, "query": 1, "transfer": 1} and counts["by_outcome"] == {"0": 2, "4": 1}
    assert audit("report", "--kind", "audit-log", capsys=capsys)["acts"] == 1  # the report before this one


@pytest.mark.parametrize("form", ["files", "lines", "syslog"])
def test_export_writes_the_messages_in_clear_for_their_owner_alone(
    trail: AuditTrail, form: str, tmp_path: Path, capsys: Any
) -> None:
    to = tmp_path / "out"
    expected = [xml for _, xml in trail.messages(Wanted(kinds=("transfer", "query")))]
    said = audit("export", str(to), "--form", form, "--kind", "transfer", "--kind", "query", capsys=capsys)
    assert said["exported"] == 3
    if form == "files":
        files = sorted(to.iterdir())
        found = [path.read_bytes().removesuffix(b"\n") for path in files]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600} and stat.S_IMODE(to.stat().st_mode) == 0o700
    else:
        raw = to.read_bytes()
        found = raw.splitlines() if form == "lines" else unframed(raw)[0]
        assert stat.S_IMODE(to.stat().st_mode) == 0o600
    assert found == expected and f"{MRN}-1".encode() in found[0]
    assert [parse(xml).event.id.code for xml in found] == ["110102", "110104", "110112"]
    assert audit("export", str(to), capsys=capsys, status=2)["codes"] == ["audit-export-exists"]


@pytest.mark.parametrize(
    "options",
    [
        ["--kind", "no-such"],
        ["--outcome", "3"],
        ["--pseudonym", "xyz"],
        ["--patient", ""],
        ["--since", "yesterday"],
        ["--since", "2026-13-01"],
        ["--until", "2026-01-01T25:00Z"],
    ],
)
def test_a_filter_that_means_nothing_is_a_usage_error_and_no_look(trail: AuditTrail, options: list[str], capsys: Any) -> None:
    assert audit("search", *options, capsys=capsys, status=2)["codes"] == ["audit-filter"]
    assert looks(trail) == []


def test_a_day_is_meant_whole_and_a_time_may_have_a_zone(trail: AuditTrail, capsys: Any) -> None:
    from flows.console.audit import _moment

    assert _moment("2026-11-25", end=False) == 1_795_564_800 and _moment("2026-11-25", end=True) == 1_795_651_199
    assert _moment("2026-11-25T01:00+01:00", end=True) == _moment("2026-11-25T00:00Z", end=True) == 1_795_564_800
    today = audit("search", capsys=capsys)["entries"][0]["at"]
    from datetime import UTC, datetime

    day = datetime.fromtimestamp(today, UTC).date().isoformat()
    assert audit("search", "--since", day, "--until", day, "--kind", "query", capsys=capsys)["found"] >= 1


def test_expired_segments_are_listed_and_removed_only_when_told(
    trail: AuditTrail, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    old = 1_700_000_000  # 2023
    monkeypatch.setenv("RAPHA_AUDIT_RETENTION_YEARS", "1")
    monkeypatch.setenv("RAPHA_AUDIT_DIR", str(trail.folder.parent / "old"))
    from blocks.audit import open_audit_trail

    aged = open_audit_trail(os.environ)
    aged.record("transfer", transfer(), at=old)
    aged.record("transfer", transfer(), at=old + 40 * 86_400)
    assert audit("expire", capsys=capsys) == {"expired": [1, 2], "removed": [], "retention_years": 1}
    assert verify_trail(aged.folder).retired == 0
    assert audit("expire", "--remove", capsys=capsys)["removed"] == [1, 2]
    report = verify_trail(aged.folder, SIGNER.public_key())
    assert (report.ok, report.retired) == (True, 2)
    assert [one.kind for one in aged.search()].count("operator") == 4


def test_init_makes_a_trail_once(trail: AuditTrail, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setenv("RAPHA_AUDIT_DIR", str(tmp_path / "anew"))
    monkeypatch.setenv("RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION", "true")
    assert audit("search", capsys=capsys, status=2)["codes"] == ["audit-missing"]
    said = audit("init", capsys=capsys)
    assert Path(said["folder"]) == tmp_path / "anew" and verify_trail(tmp_path / "anew").entries == 1
    assert audit("init", capsys=capsys, status=2)["codes"] == ["audit-exists"]


def test_with_sudo_it_is_said_who_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "dr.jekyll")
    assert person().startswith("dr.jekyll as ")
