"""A gate that is added by CONTRIBUTING.md's page alone is enforced at every door, and no other stage is touched."""

import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import flows.node
import flows.training
import rapha.receipt
from blocks.chain import load_account
from flows.limits import SiteLimits, gates
from flows.stages import stage
from flows.training import train
from infra.attestor.__main__ import front
from infra.attestor.journal import Journal
from infra.attestor.sign import Attestor
from infra.demo.world import World
from policies.gate import Evidence, Gate
from policies.required import REQUIRED_CHECKS, REQUIRED_GATES
from rapha.receipt import verify_receipt
from tasks.gate import Cleared
from tests.fixtures.added_gate import NAME, RoomLimits, room, room_gate
from tests.fixtures.matrix import failed_run
from tests.fixtures.world import attempt_folder, ended, entries, register_job

BEHIND = "attestation"  # the new gate's place in the order: right after this one


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 2: its name in the order of each door behind it, and its checks' names."""
    for door, names in REQUIRED_GATES.items():
        at = names.index(BEHIND) + 1
        monkeypatch.setitem(REQUIRED_GATES, door, (*names[:at], NAME, *names[at:]))
    monkeypatch.setitem(REQUIRED_CHECKS, NAME, frozenset({"room-too-small"}))


@pytest.fixture
def in_the_receipt(here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Step 3: the receipt's own list, here and where an attestor with the same version of `rapha` verifies it."""
    at = rapha.receipt.GATES.index(BEHIND) + 1
    names = (*rapha.receipt.GATES[:at], NAME, *rapha.receipt.GATES[at:])
    monkeypatch.setattr(rapha.receipt, "GATES", names)
    newer = f"import rapha.receipt; rapha.receipt.GATES = {names!r}; from infra.attestor.verify import main; main()"
    command = [sys.executable, "-c", newer, "receipt", "verify", "--key", str(here.layout.keys / "receipt.pem")]
    account = load_account(here.layout.root / "chain" / "keys" / "attestor.key")
    served = front(Attestor(account, here.chain_client("attestor"), Journal(tmp_path / "signed.jsonl"), command), 0)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("RAPHA_ATTESTOR_URL", f"http://127.0.0.1:{served.server_address[1]}")
    try:
        yield
    finally:
        served.shutdown()
        served.server_close()
        thread.join(10)


def in_the_flow(monkeypatch: pytest.MonkeyPatch, limits: RoomLimits) -> None:
    """Step 5: the stage's task, its lines in the flow, and the gate among those that the doors compare with."""
    task = stage(room, "room")
    before_the_cut = flows.training._Run.before_the_cut

    def with_room(run: flows.training._Run) -> Cleared[Evidence]:
        attested = before_the_cut(run)
        run.enter(NAME)
        cleared = task(attested, run.attempt, limits)
        run.passed(cleared)
        return cleared

    def with_gate(site: SiteLimits) -> Mapping[str, Gate[Any]]:
        return {**gates(site), NAME: room_gate(limits)}

    monkeypatch.setattr(flows.training._Run, "before_the_cut", with_room)
    monkeypatch.setattr(flows.node, "gates", with_gate)


@pytest.mark.usefixtures("listed")
def test_a_listed_gate_that_is_not_in_the_flow_refuses_every_job(here: World) -> None:
    run = failed_run(here)
    assert (run.state, run.codes) == ("refused", (f"gate-missing-{NAME}",))


@pytest.mark.usefixtures("listed", "in_the_receipt")
def test_a_listed_gate_that_clears_lets_the_job_through_and_is_in_the_receipt(
    here: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_the_flow(monkeypatch, RoomLimits())
    job = register_job(here)
    assert train(job)["state"] == "done" and ended(here, job).state == "done"
    assert [e.body["verdict"] for e in entries(here, job) if e.body.get("gate") == NAME] == ["cleared"]
    raw = (attempt_folder(here, job) / "receipt.json").read_bytes()
    statement = verify_receipt(raw, here.layout.signer("receipt").public_key(), job=job)
    assert NAME in [passed.gate for passed in statement.predicate.gates]


@pytest.mark.usefixtures("listed")
def test_a_receipt_that_does_not_know_the_gate_is_none(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 3 is left out: what outsiders hold a receipt to is their own list."""
    in_the_flow(monkeypatch, RoomLimits())
    run = failed_run(here)
    assert (run.state, run.codes) == ("refused", ("receipt-gates",))


@pytest.mark.usefixtures("listed")
def test_a_listed_gate_that_says_no_refuses_with_its_code(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_flow(monkeypatch, RoomLimits(least_free=1 << 52))
    run = failed_run(here)
    assert (run.state, run.codes) == ("refused", ("room-too-small",))


def test_a_gate_in_the_flow_that_is_not_listed_refuses_too(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    in_the_flow(monkeypatch, RoomLimits())
    run = failed_run(here)
    assert (run.state, run.codes) == ("refused", ("gate-incomplete",))


@pytest.mark.usefixtures("listed")
def test_a_gate_that_the_doors_do_not_know_keeps_them_shut(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second half of step 5, `gates(...)`, is left out."""
    in_the_flow(monkeypatch, RoomLimits())
    monkeypatch.setattr(flows.node, "gates", gates)
    run = failed_run(here)
    assert (run.state, run.codes) == ("refused", (f"gate-policy-{NAME}",))
