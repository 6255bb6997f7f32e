"""Seal: one sealed result and one receipt an attempt, opened by the recipient, and nothing before the door."""

import json
from pathlib import Path

import pytest

from rapha.canonical import digest
from rapha.errors import Refusal
from rapha.receipt import verify_receipt
from rapha.sealed import open_result
from tests.fixtures.sealing import bench, seal_facts


def test_a_sealed_attempt_opens_for_its_recipient_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    result = b.seal()
    opened = open_result(result.sealed, b.recipient, tmp_path / "out", job=b.attempt.job)
    for name in ("weights.safetensors", "metrics.json"):
        assert (tmp_path / "out" / name).read_bytes() == (b.attempt.folder / "release" / name).read_bytes()
        assert opened.files[name] == result.statement.subjects[name]
    statement = verify_receipt(result.receipt.read_bytes(), b.receipt_key.public_key(), job=b.attempt.job)
    assert statement.predicate.records.unique == 40
    assert statement.predicate.leak_bits > 0
    kinds = [entry.kind for entry in b.attempt.ledger.entries()]
    assert kinds[-3:] == ["door", "staging-destroyed", "sealed"]


def test_sealing_again_gives_the_same_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    first, again = b.seal(), b.seal()
    assert first == again
    assert [entry.kind for entry in b.attempt.ledger.entries()].count("sealed") == 1


@pytest.mark.parametrize("gate", ["intake", "cut", "train", "reattestation"])
def test_a_missing_gate_keeps_the_door_shut(gate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if gate == "train":
        with pytest.raises(Refusal) as caught:
            bench(tmp_path, monkeypatch, skip=gate)
        assert "output-before-training" in caught.value.codes
        assert not any((tmp_path / "attempt" / "release").iterdir())
        return
    b = bench(tmp_path, monkeypatch, skip=gate)
    with pytest.raises(Refusal) as caught:
        b.seal()
    assert f"gate-missing-{gate}" in caught.value.codes
    assert not (b.attempt.folder / "receipt.json").exists()
    assert not (b.attempt.folder / "sealed.bin").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "metrics.json"])
def test_a_release_changed_after_the_gate_is_not_sealed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    path = b.attempt.folder / "release" / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(Refusal, match="output gate cleared"):
        b.seal()
    assert not (b.attempt.folder / "receipt.json").exists()


def test_evidence_changed_with_its_release_keeps_the_door_shut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    path = b.attempt.folder / "release" / "metrics.json"
    path.write_bytes(b"{}\n")
    kept = b.attempt.folder / "evidence" / "output.json"
    evidence = json.loads(kept.read_bytes())
    evidence["release"]["metrics"] = digest(b"{}\n")
    kept.write_text(json.dumps(evidence))
    with pytest.raises(Refusal) as caught:
        b.seal()
    assert "gate-evidence-output" in caught.value.codes


def test_an_extra_file_in_the_release_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    (b.attempt.folder / "release" / "notes.txt").write_text("x")
    with pytest.raises(Refusal, match="output gate cleared"):
        b.seal()


def test_a_key_that_is_not_said_to_be_destroyed_ends_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    for facts in ({}, {"destroyed": False}, {"destroyed": "yes"}, {"destroyed": 1}):
        b.destroy = lambda facts=facts: facts
        with pytest.raises(Refusal) as caught:
            b.seal()
        assert caught.value.codes == ("seal-key-not-destroyed",)
        assert not (b.attempt.folder / "receipt.json").exists()
    b.destroy = lambda: {"destroyed": True}
    assert b.seal().receipt.exists()


def test_too_few_records_to_be_told_are_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    b.facts = seal_facts(records_unique=7)
    with pytest.raises(Refusal) as caught:
        b.seal()
    assert caught.value.codes == ("seal-few-records",)


@pytest.mark.parametrize(
    "change", [{"tcb_status": "fine"}, {"commitment": "sha256:12"}, {"manifest": ""}, {"records_unique": 40.0}]
)
def test_a_fact_of_another_kind_is_not_signed(change: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    b.facts = seal_facts(**change)
    with pytest.raises(Refusal) as caught:
        b.seal()
    assert caught.value.codes == ("seal-predicate",)


def test_a_result_changed_after_sealing_is_not_sealed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    result = b.seal()
    result.sealed.write_bytes(result.sealed.read_bytes()[:-1])
    with pytest.raises(Refusal) as caught:
        b.seal()
    assert caught.value.codes == ("seal-kept-changed",)
