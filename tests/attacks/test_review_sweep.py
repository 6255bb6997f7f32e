"""A sweep beside living workers: what it ends is what was lost."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.ledger import Ledger
from blocks.register import Register
from flows import sweeping
from rapha.declaration import read_declaration
from rapha.ledger import read
from tests.fixtures.intake import signed

NOW = 2_000_000_000


def test_J08_a_sweep_does_not_end_the_attempt_that_came_after_the_lost_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register = Register.at(tmp_path / "register.sqlite")
    ledger = Ledger.create(tmp_path / "ledger", Ed25519PrivateKey.generate(), "test")
    raw = signed()
    declaration, _, job = read_declaration(raw)
    register.submit(raw, declaration, job, declaration.owner, now=NOW)
    assert register.claim("dead", NOW, 60)

    class Raced(Register):
        """Between the reaping and what follows it, another worker claims the job."""

        def reap(self, now: int) -> Any:
            lost = super().reap(now)
            second = self.claim("quick", now, 60)
            assert second and second.number == 2
            return lost

    raced = Raced.at(tmp_path / "register.sqlite")
    node = SimpleNamespace(register=raced, ledger=ledger, state=tmp_path, settings=SimpleNamespace(mode="development"))
    monkeypatch.setattr(sweeping.Node, "open", lambda: node)
    monkeypatch.setattr(sweeping.time, "time", lambda: NOW + 60)
    monkeypatch.setattr(sweeping, "_record_forgotten", lambda node: None)  # asks a keeper; tests/flows has it
    monkeypatch.setattr(sweeping, "free_line", lambda node, seconds: True)
    monkeypatch.setattr(sweeping, "send_due", lambda node: 0)
    assert sweeping.swept(lambda job, key: None)["reaped"] == 1
    ended = [entry.body["attempt"] for entry in read(tmp_path / "ledger") if entry.kind == "ended"]
    assert ended == [1]
