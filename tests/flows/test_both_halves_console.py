"""A node that trains and reads: one health, one list of dead letters, and no letter of one half taken for the other's."""

import base64
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blocks.audit import Wanted, open_audit_trail
from blocks.reading import FoundStudy, ReadingRegister
from infra.demo.world import World
from infra.peers.orthanc import free_port
from rapha.console.app import build, run
from tests.fixtures.audit import place
from tests.fixtures.world import quick, register_job, register_of

PROFILE = "pacs_endpoints:\n  primary: {{host: localhost, port: {port}, ae_title: NOBODY, calling_ae_title: RAPHA}}\n"


@pytest.fixture
def reading(here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ReadingRegister:
    """The world's node with the settings of a reading service; none of its processes runs."""
    key, audit = secrets.token_bytes(32), place(tmp_path / "a").environment
    (tmp_path / "profile.yaml").write_text(PROFILE.format(port=free_port()))
    more = {
        "RAPHA_PROFILE_PATH": str(tmp_path / "profile.yaml"),
        "RAPHA_REGISTER_KEY_BASE64": base64.b64encode(key).decode(),
        "RAPHA_REGISTER_URL": f"sqlite:///{tmp_path}/reading.sqlite",
        "RAPHA_AUDIT_DIR": str(tmp_path / "trail"),
        "RAPHA_AUDIT_KEY_BASE64": audit["RAPHA_AUDIT_KEY_BASE64"],
    }
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    return ReadingRegister.at(tmp_path / "reading.sqlite", key)


@pytest.fixture
def typed(reading: ReadingRegister, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    def command(*words: str) -> tuple[int, Any]:
        status = run(build(words[0]), [*words, "--json"])
        return status, json.loads(capsys.readouterr().out)

    return command


def test_the_letters_of_both_halves_stand_in_one_list_under_names_of_their_own(
    here: World, reading: ReadingRegister, typed: Callable[..., tuple[int, Any]]
) -> None:
    job, jobs, now = register_job(here, quick()), register_of(here), int(time.time())
    lease = jobs.claim("test", now, 60, job=job)
    assert lease is not None
    jobs.finish(lease, "failed", ("chain-unreachable",), "node", now=now)
    row = reading.found("primary", FoundStudy(study_uid="2.25.7"), now).row
    held = reading.claim("test", now, 60, row=row)
    assert held is not None
    reading.fail(held, ["dimse-find-refused"], now + 1)
    listed = typed("dead-letters", "list")[1]["dead_letters"]
    (training,) = [one for one in listed if one.get("job") == job]
    (study,) = [one for one in listed if one.get("row") == row]
    assert study["id"] == f"reading:{reading.dead_letters()[0].id}" and isinstance(training["id"], int)
    number = str(training["id"])
    assert typed("dead-letters", "show", number)[1] == typed("dead-letters", "show", f"training:{number}")[1] == training
    assert typed("dead-letters", "show", study["id"])[1] == study
    status, said = typed("dead-letters", "discard", number, "--why", "the team withdrew")
    assert (status, said["job"], said["state"]) == (0, job, "cancelled")
    left = typed("dead-letters", "list")[1]["dead_letters"]  # of other tests' jobs too: the world is shared
    assert study in left and training not in left  # the other half's letter of that number is still there
    trail = open_audit_trail()
    assert [one.stage for one in trail.search(Wanted(kinds=("operator",)))] == ["begin", "end"]
    stats = typed("stats")[1]
    assert (stats["dead_letters"], stats["reading"]["dead_letters"], stats["reading"]["failed"]) == (0, 1, 1)


def test_health_has_the_parts_of_both(
    here: World, typed: Callable[..., tuple[int, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAPHA_PHI_HMAC_KEY_BASE64", here.environment["RAPHA_PHI_HMAC_KEY_BASE64"])  # as a shell with node.env
    status, said = typed("health")
    parts = said["components"]
    assert status == 4 and said["overall_status"] == "unhealthy"
    assert {"receipt key", "chain", "keeper", "reading register", "audit trail", "pacs primary"} <= set(parts)
    assert parts["pacs primary"] == "dimse-unreachable" and parts["reading register"] == "healthy" == parts["chain"]
