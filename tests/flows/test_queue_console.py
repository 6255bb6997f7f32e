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

KEY = secrets.token_bytes(32)


@pytest.fixture
def rapha(tmp_path):
    register = ReadingRegister.at(tmp_path / "reading.sqlite", KEY)
    for number, level in enumerate(("low", "urgent")):
        register.found("main", FoundStudy(study_uid=f"1.2.826.{number}"), 100, level)
    register.close()
    key = base64.b64encode(KEY).decode()
    environment = {**os.environ, "RAPHA_STATE_DIR": str(tmp_path), "RAPHA_REGISTER_KEY_BASE64": key}
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
    assert refused.returncode == 3 and "priority-unknown" in refused.stderr + refused.stdout


def test_without_its_key_the_register_stays_shut(rapha):
    done = rapha("queue", "list", RAPHA_REGISTER_KEY_BASE64="")
    assert done.returncode == 2 and "missing-register-key-base64" in done.stderr + done.stdout
