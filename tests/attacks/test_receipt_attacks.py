"""H01 to H08: receipts and the record behind them."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.ledger import Ledger
from rapha import anchor
from rapha.console.app import Result
from rapha.console.receipt import verify
from rapha.errors import ConfigurationError, Refusal
from rapha.ledger import verify as verify_ledger
from rapha.receipt import verify_receipt
from rapha.signing import write_public
from tests.fixtures.receipts import KEY, VAULT, d, predicate_document, receipt, signed, statement_document
from tests.fixtures.sealing import bench, seal_facts

PUBLIC = KEY.public_key()


def refused(raw: bytes, **expected: Any) -> str:
    with pytest.raises(Refusal) as caught:
        verify_receipt(raw, PUBLIC, **expected)
    assert caught.value.gate == "receipt"
    return caught.value.codes[0]


def test_H01_every_single_byte_counts() -> None:
    raw = receipt()
    assert verify_receipt(raw, PUBLIC).job == d("job")
    for at in range(len(raw)):
        refused(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        if at % 8 == 0:
            refused(raw[:at] + raw[at + 1 :])


@pytest.mark.parametrize("blank", [b" ", b"\n", b"\t", b"\r", b"\x00", b"\xef\xbb\xbf"])
def test_H01_a_blank_anywhere_between_tokens_is_a_change(blank: bytes) -> None:
    raw = receipt()
    for at in [0, len(raw), *(m.start() for m in re.finditer(rb'[{}\[\]:,"]', raw))]:
        refused(raw[:at] + blank + raw[at:])


def test_H01_other_order_other_number_and_other_escape_refuse() -> None:
    envelope = json.loads(receipt())
    turned = {name: envelope[name] for name in reversed(envelope)}
    assert refused(json.dumps(turned, separators=(",", ":")).encode() + b"\n") == "receipt-malformed"
    payload = base64.b64decode(envelope["payload"])
    assert refused(signed(None, raw=payload.replace(b'"attempt":1,', b'"attempt":1.0,'))) == "receipt-statement"
    assert refused(signed(None, raw=payload.replace(b"12345", b"1.2345e4"))) == "receipt-statement"
    assert refused(signed(None, raw=payload.replace(b"hospital-a", b"\\u0068ospital-a"))) == "receipt-statement"
    assert refused(signed(None, raw=json.dumps(json.loads(payload)).encode())) == "receipt-statement"
    assert refused(receipt().rstrip(b"\n")) == "receipt-malformed"


def test_H01_base64_with_spare_bits_is_another_text() -> None:
    envelope = json.loads(receipt())
    sig = envelope["signatures"][0]["sig"]
    assert sig.endswith("==")
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    twin = sig[:-3] + letters[letters.index(sig[-3]) ^ 1] + "=="
    assert base64.b64decode(twin) == base64.b64decode(sig)
    assert refused(receipt().replace(sig.encode(), twin.encode())) == "receipt-malformed"


def test_H02_a_foreign_a_retired_and_a_second_key_refuse() -> None:
    other = Ed25519PrivateKey.generate()
    assert refused(signed(statement_document(), other)) == "receipt-key"
    with pytest.raises(Refusal) as caught:
        verify_receipt(receipt(), other.public_key())  # the node's key now: the one that signed was retired
    assert caught.value.codes == ("receipt-key",)
    envelope = json.loads(signed(statement_document(), other))
    envelope["signatures"][0]["keyid"] = json.loads(receipt())["signatures"][0]["keyid"]
    lied = json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode() + b"\n"
    assert refused(lied) == "receipt-signature"
    envelope["signatures"] = [*json.loads(receipt())["signatures"], *envelope["signatures"]]
    assert refused(json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode() + b"\n") == "receipt-malformed"


@pytest.mark.parametrize("signatures", [[], None, "x", [[]], [{"keyid": "x"}], [{"keyid": "x", "sig": "", "cert": ""}]])
def test_H02_no_signature_or_an_odd_one_refuses(signatures: object) -> None:
    envelope = {**json.loads(receipt()), "signatures": signatures}
    assert refused(json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode() + b"\n") == "receipt-malformed"


def test_H03_a_receipt_is_for_its_job_its_chain_its_vault_and_its_kind() -> None:
    raw = receipt()
    assert verify_receipt(raw, PUBLIC, job=d("job"), chain_id=31337, vault=VAULT).digest
    assert refused(raw, job=d("other")) == "receipt-other-job"
    assert refused(raw, chain_id=137) == "receipt-other-chain"
    assert refused(raw, vault="0x" + "2e" * 20) == "receipt-other-vault"
    assert refused(signed(statement_document(), payload_type="application/vnd.rapha.job.v1+json")) == "receipt-type"
    assert refused(signed(statement_document(predicateType="https://slsa.dev/provenance/v1"))) == "receipt-statement"
    assert refused(signed(statement_document(_type="https://in-toto.io/Statement/v0.1"))) == "receipt-statement"


def test_H04_a_missing_or_cut_ledger_is_not_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    head = b.seal().statement.predicate.ledger_head
    assert head in {entry.hash for entry in b.attempt.ledger.entries()}
    assert verify_ledger(b.attempt.ledger.folder).ok
    assert not verify_ledger(tmp_path / "nowhere").ok
    lines = (b.attempt.ledger.folder / "entries.jsonl").read_bytes().splitlines(keepends=True)
    (b.attempt.ledger.folder / "entries.jsonl").write_bytes(b"".join(lines[:-1]))
    assert not verify_ledger(b.attempt.ledger.folder).ok


def test_H05_without_a_record_nothing_is_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)

    def full(self: Ledger, name: str, line: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Ledger, "_append_line", full)
    with pytest.raises(Refusal) as caught:
        b.seal()
    assert caught.value.codes == ("ledger-unwritable",)
    assert not (b.attempt.folder / "receipt.json").exists()
    assert not (b.attempt.folder / "sealed.bin").exists()


def test_H06_times_are_whole_hours_lengths_are_named_and_small_counts_are_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    b = bench(tmp_path, monkeypatch)
    predicate = b.seal().statement.predicate
    assert predicate.sealed_hour % 3600 == 0
    assert predicate.duration == "under-1m"
    assert refused(signed(statement_document(predicate=predicate_document(sealed_hour=1_800_000_001)))) == "receipt-predicate"
    other = bench(tmp_path / "few", monkeypatch)
    other.facts = seal_facts(records_unique=3)
    with pytest.raises(Refusal) as caught:
        other.seal()
    assert caught.value.codes == ("seal-few-records",)


@pytest.mark.parametrize(
    "change",
    [
        {"note": "patient Doe"},
        {"patients": 3},
        {"node": "Hospital of Jane Doe"},
        {"duration": "421 s"},
        {"mode": "Development"},
        {"leak_bits": "few"},
        {"attempt": 0},
        {"attempt": True},
        {"records": {"unique": 0, "commitment": d("r")}},
        {"records": {"unique": 40, "commitment": d("r"), "ids": ["1.2.3"]}},
        {"platform": {"quote": d("q"), "requote": d("r"), "tcb_status": "Revoked"}},
        {"manifest": None},
    ],
)
def test_H06_a_signed_field_that_is_not_of_the_form_refuses_all_the_same(change: dict[str, Any]) -> None:
    assert refused(signed(statement_document(predicate=predicate_document(**change)))) == "receipt-predicate"


def test_H07_a_commitment_is_a_digest_that_the_reader_salted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    b.facts = seal_facts(commitment="40 records")
    with pytest.raises(Refusal) as caught:
        b.seal()
    assert caught.value.codes == ("seal-predicate",)


@pytest.mark.parametrize("gates", ["missing", "twice", "order", "none"])
def test_a_receipt_without_each_required_gate_once_refuses(gates: str) -> None:
    whole = predicate_document()["gates"]
    changed = {"missing": whole[:-1], "twice": [*whole, whole[-1]], "order": whole[::-1], "none": []}[gates]
    code = refused(signed(statement_document(predicate=predicate_document(gates=changed))))
    assert code == ("receipt-predicate" if gates == "none" else "receipt-gates")


def test_H08_another_output_is_not_the_receipts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    result = b.seal()
    write_public(b.attempt.folder / "keys" / "receipt.pem", b.receipt_key.public_key())
    release = b.attempt.folder / "release"
    found = verify(result.receipt, release=release, sealed=result.sealed)
    assert isinstance(found, Result)
    assert found.data["verdict"] == "cleared"
    with pytest.raises(ConfigurationError):
        verify(result.receipt, release=tmp_path / "none")
    (release / "metrics.json").write_bytes(b'{"loss":0.1}\n')
    for given in ({"release": release}, {"sealed": release / "metrics.json"}):
        with pytest.raises(Refusal) as caught:
            verify(result.receipt, **given)  # type: ignore[arg-type]
        assert caught.value.codes == ("receipt-other-output",)


@pytest.mark.parametrize("kind", ["one-less", "one-more", "renamed", "short", "empty"])
def test_H08_subjects_are_exactly_what_left(kind: str) -> None:
    whole = statement_document()["subject"]
    changed = {
        "one-less": whole[:-1],
        "one-more": [*whole, {"name": "notes.txt", "digest": {"sha256": "0" * 64}}],
        "renamed": [{**whole[0], "name": "other.json"}, *whole[1:]],
        "short": [{**whole[0], "digest": {"sha256": "00"}}, *whole[1:]],
        "empty": [],
    }[kind]
    assert refused(signed(statement_document(subject=changed))) == "receipt-subjects"


def test_H09_in_production_a_settlement_counts_only_at_a_final_block(monkeypatch: pytest.MonkeyPatch) -> None:
    statement = verify_receipt(receipt(mode="production"), PUBLIC)
    words = ["20", "0", "2", "28", statement.job[7:], statement.digest[7:]]
    answer = "0x" + "".join(word.rjust(64, "0") for word in words)
    asked: list[Any] = []

    def chain(url: str, method: str, params: list[Any]) -> str:
        asked.append(params[-1] if params else None)
        return {"eth_chainId": hex(31337), "eth_getCode": "0x6001", "eth_call": answer}[method]

    monkeypatch.setattr(anchor, "_call", chain)
    assert anchor.check_anchor(statement, "http://chain").block == "finalized"
    assert asked == [None, "finalized", "finalized"]
