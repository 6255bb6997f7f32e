"""`rapha queue` as a person types it."""

import base64
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from blocks.reading import FoundStudy, ReadingRegister
from rapha.signing import write_private

KEY = secrets.token_bytes(32)
DETAILS = {"patient": "MRN-00471100", "accession": "ACC-9"}


@pytest.fixture
def rapha(tmp_path):
    register = ReadingRegister.at(tmp_path / "reading.sqlite", KEY)
    for number, level in enumerate(("low", "urgent")):
        register.found("main", FoundStudy(study_uid=f"1.2.826.{number}", details=DETAILS), 100, level)
    register.close()
    key = base64.b64encode(KEY).decode()
    write_private(tmp_path / "audit.pem")
    environment = {**os.environ, "RAPHA_STATE_DIR": str(tmp_path), "RAPHA_REGISTER_KEY_BASE64": key}
    environment |= {"RAPHA_KEYS_DIR": str(tmp_path), "RAPHA_AUDIT_KEY_BASE64": base64.b64encode(secrets.token_bytes(32)).decode()}
    program = Path(sys.executable).parent / "rapha"

    def run(*words, **more):
        command = [program, *words]
        return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True, check=False, timeout=100)

    return run


def test_the_queue_is_listed_and_a_study_moved(rapha):
    listed = json.loads(rapha("queue", "list", "--json").stdout)
    assert [row["priority"] for row in listed["queue"]] == ["urgent", "low"]
    assert "1.2.826" not in str(listed)
    moved = rapha("queue", "priority", "1", "high")
    assert (moved.returncode, moved.stdout.strip()) == (0, "row 1 is high")
    refused = rapha("queue", "priority", "1", "soon")
    assert refused.returncode == 2 and "priority-unknown" in refused.stderr + refused.stdout


def test_without_its_key_the_register_stays_shut(rapha):
    done = rapha("queue", "list", RAPHA_REGISTER_KEY_BASE64="")
    assert done.returncode == 2 and "missing-register-key-base64" in done.stderr + done.stdout


def test_a_row_is_named_to_a_person_and_the_trail_says_so(rapha):
    shown = json.loads(rapha("queue", "show", "2", "--json").stdout)
    assert (shown["study_uid"], shown["patient"], shown["accession"]) == ("1.2.826.1", *DETAILS.values())
    assert rapha("queue", "show", "3").returncode == 3
    rapha("queue", "priority", "1", "high")
    found = json.loads(rapha("audit", "search", "--kind", "operator", "--patient", DETAILS["patient"], "--json").stdout)
    assert [(one["stage"], one["outcome"]) for one in found["entries"]] == [("begin", 0), ("end", 0)]
    every = json.loads(rapha("audit", "search", "--kind", "operator", "--json").stdout)
    assert every["found"] == 4


def test_what_cannot_be_written_down_is_not_shown_or_done(rapha):
    for words in (["show", "1"], ["priority", "1", "urgent"]):
        done = rapha("queue", *words, RAPHA_AUDIT_KEY_BASE64="")
        assert done.returncode == 2 and "1.2.826" not in done.stdout
    assert json.loads(rapha("queue", "list", "--json").stdout)["queue"][1]["priority"] == "low"
