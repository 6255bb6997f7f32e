"""A training run whose cohort comes by C-MOVE: the archive sends to the receiver, and the run is the same one."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.demo.world import World
from policies.required import REQUIRED_GATES
from rapha.receipt import verify_receipt
from rapha.signing import load_public
from tests.fixtures.world import attempt_folder, delivered, ended, entries, quick
from tests.fixtures.world_by_move import moving_world

PATIENTS = 24
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with moving_world(tmp_path_factory.mktemp("moving-world"), PATIENTS) as running:
        yield running


def reader_of(up: World) -> str:
    """The reader's command line."""
    (reader,) = [member for member in up.group.members if member.name == "reader"]
    assert reader.process is not None
    return Path(f"/proc/{reader.process.pid}/cmdline").read_text().replace("\0", " ")


def test_the_run_is_whole_and_nothing_stays_with_the_receiver(up: World) -> None:
    assert "--endpoint primary" in reader_of(up) and "--archive" not in reader_of(up)
    job = up.send(up.job(quick()))
    status = ended(up, job, 150)
    assert status.state == "done", status
    assert delivered(up, job) == {"1/result", "1/receipt", "1/report"}
    raw = (attempt_folder(up, job) / "receipt.json").read_bytes()
    verify_receipt(raw, load_public(up.layout.keys / "receipt.pem"), job=job)
    gates = {entry.body["gate"] for entry in entries(up, job) if entry.kind == "verdict"}
    assert gates == {*REQUIRED_GATES["train"], *REQUIRED_GATES["seal"], "reconnect"}
    evidence = json.loads((attempt_folder(up, job) / "evidence" / "retrieve.json").read_bytes())
    assert (evidence["received"], evidence["missing"], evidence["extra"]) == (4 * PATIENTS, 0, 0)
    assert [path.name for path in (up.layout.root / "received").iterdir()] == ["journal"]


def test_a_receiver_that_is_down_at_its_moment_delays_the_run_and_no_more(up: World) -> None:
    (receiver,) = [member for member in up.group.members if member.name == "receiver"]
    assert receiver.process is not None
    receiver.process.kill()
    receiver.process.wait()
    job = up.send(up.job(quick()))
    until = time.monotonic() + 90
    while not [one for one in entries(up, job) if one.body.get("gate") == "query"]:
        assert time.monotonic() < until
        time.sleep(0.1)
    up.group._revive(receiver)
    assert ended(up, job, 150).state == "done"
