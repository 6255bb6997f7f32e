"""E10 to E15 and E20 to E26: what a hostile trainer may put into its metrics and tensors, and into what is told of them."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from policies.output import OutputLimits
from policies.records import Record
from rapha.declaration import read_declaration
from rapha.errors import Refusal
from tasks.guarding.identifiers import record_patterns
from tasks.training.guard import Grant, guard
from tests.fixtures.outputs import (
    SHAPES,
    arrays,
    codes,
    declaration_document,
    declared,
    good,
    header_of,
    judged,
    metrics,
    raw_safetensors,
    write_outputs,
)
from tests.fixtures.sealing import bench


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"loss": "0.4"}, "metrics-not-a-number"),
        ({"loss": "UGF0aWVudCBEb2U="}, "metrics-not-a-number"),
        ({"loss": [0.1, 0.2]}, "metrics-not-a-number"),
        ({"loss": {"mean": 0.1}}, "metrics-not-a-number"),
        ({"loss": True}, "metrics-not-a-number"),
        ({"loss": None}, "metrics-not-a-number"),
        ({"loss": 101}, "metrics-out-of-range"),
        ({"loss": -0.1}, "metrics-out-of-range"),
        ({"note": 1.0}, "metrics-names"),
        ({f"m{n}": 1.0 for n in range(1000)}, "metrics-names"),
    ],
)
def test_E10_metrics_of_another_form_refuse(change: dict[str, Any], code: str, tmp_path: Path) -> None:
    assert code in codes(write_outputs(tmp_path, numbers=json.dumps({**metrics(), **change}).encode()))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b'{"loss":NaN,"validation-accuracy":0.5}',
        b'{"loss":1e999,"validation-accuracy":0.5}',
        b'{"loss":1,"loss":2,"validation-accuracy":0.5}',
        b'{"loss":1,"validation-accuracy":0.5}{}',
        b"\xff\xfe{}",
        b'\xef\xbb\xbf{"loss":1,"validation-accuracy":0.5}',
    ],
)
def test_E10_metrics_that_are_not_one_strict_object_refuse(raw: bytes, tmp_path: Path) -> None:
    assert "metrics-malformed" in codes(write_outputs(tmp_path, numbers=raw))


def test_E11_the_digits_beyond_the_declared_do_not_leave(tmp_path: Path) -> None:
    one = judged(write_outputs(tmp_path / "a", numbers=b'{"validation-accuracy":0.87654321,"loss":0.4}'))[1].files
    two = judged(write_outputs(tmp_path / "b", numbers=b'{"loss":0.40000000001,"validation-accuracy":0.8769}'))[1].files
    assert one["metrics.json"] == two["metrics.json"] == b'{"loss":0.4,"validation-accuracy":0.877}\n'


def test_E11_more_digits_than_the_site_lets_out_refuse(tmp_path: Path) -> None:
    outputs = {"tensors": [_tensor(n) for n in SHAPES], "metrics": [_metric("loss", digits=6)]}
    folder = write_outputs(tmp_path, numbers=b'{"loss":0.5}')
    assert codes(folder, declaration=declared(outputs=outputs)) == ("metrics-digits",)


def _tensor(name: str) -> dict[str, Any]:
    return {"name": name, "shape": list(SHAPES[name]), "dtype": "F32"}


def _metric(name: str, digits: int = 3) -> dict[str, Any]:
    return {"name": name, "minimum": 0.0, "maximum": 1000.0, "digits": digits}


@pytest.mark.parametrize(
    "name", ["true-positives", "tp", "confusion-0-1", "count", "n-female", "subgroup-7-accuracy", "roc-threshold-03"]
)
def test_E12_counts_and_tables_are_not_in_the_list_of_metrics(name: str, tmp_path: Path) -> None:
    outputs = {"tensors": [_tensor(n) for n in SHAPES], "metrics": [_metric(name)]}
    folder = write_outputs(tmp_path, numbers=json.dumps({name: 3}).encode())
    assert codes(folder, declaration=declared(outputs=outputs)) == ("metrics-name-not-allowed",)


@pytest.mark.parametrize(
    "name", ["loss-min", "max-loss", "age-q95", "intensity.median", "minimum", "loss-p99", "mean-intensity", "test"]
)
def test_E13_minima_maxima_and_quantiles_are_not_in_the_list_of_metrics(name: str, tmp_path: Path) -> None:
    outputs = {"tensors": [_tensor(n) for n in SHAPES], "metrics": [_metric(name)]}
    folder = write_outputs(tmp_path, numbers=json.dumps({name: 3}).encode())
    assert codes(folder, declaration=declared(outputs=outputs)) == ("metrics-name-not-allowed",)


def test_E14_what_cannot_be_read_refuses_and_never_throws(tmp_path: Path) -> None:
    for n, raw in enumerate([b"\x80", b"\xff" * 4096, os.urandom(4096), b"{" * 5000, b'{"a":' + b"9" * 100_000 + b"}"]):
        assert "metrics-malformed" in codes(write_outputs(tmp_path / f"m{n}", numbers=raw))
        assert "output-not-written" in codes(write_outputs(tmp_path / f"w{n}", weights=raw))


ROWS = "patient_id,age\r\nA1,40\r\nA2,50\r\n"


@pytest.mark.parametrize(
    "raw",
    [
        ROWS.encode("utf-16"),
        ROWS.encode("utf-16-le"),
        ROWS.encode("utf-8-sig"),
        ROWS.replace("patient_id", "Patient_ID ").encode(),
        ROWS.replace("a", "а").encode(),
        ROWS.replace(",", "\t").encode(),
        ROWS.encode().replace(b"\r\n", b"\x00\r\n"),
    ],
)
@pytest.mark.parametrize("name", ["metrics.json", "weights.safetensors", "notes.txt"])
def test_E15_rows_in_any_spelling_refuse(raw: bytes, name: str, tmp_path: Path) -> None:
    folder = good(tmp_path)
    (folder / name).write_bytes(raw)
    codes(folder)


def test_E20_bytes_that_the_guard_cannot_parse_refuse(tmp_path: Path) -> None:
    noise = os.urandom(5000)
    assert "output-not-written" in codes(write_outputs(tmp_path, weights=noise))
    cipher = np.frombuffer(np.random.default_rng(5).bytes(64), dtype=np.uint32) & np.uint32(0xBFFFFFFF)  # finite, else noise
    shaped = raw_safetensors(header_of(save(arrays()))[0], cipher.tobytes())
    found, seen = judged(write_outputs(tmp_path / "x", weights=shaped))
    assert found == ()  # in the shape of weights only the site's mantissa bits of it leave, and the leak budget counts them
    kept = np.concatenate([a.view(np.uint32).ravel() for a in load(seen.files["weights.safetensors"]).values()])
    assert not np.any(kept & np.uint32((1 << 13) - 1))


@pytest.mark.parametrize("place", ["outputs", "run", "top"])
def test_E21_a_job_cannot_name_where_its_outputs_go(place: str) -> None:
    document = declaration_document()
    target = document if place == "top" else document[place]
    target["upload"] = "https://collector.example/put"
    with pytest.raises(Refusal) as caught:
        read_declaration(json.dumps(document).encode())
    assert caught.value.codes == ("declaration-unknown-field",)


def test_E22_a_hash_given_by_the_job_is_not_a_metric(tmp_path: Path) -> None:
    raw = json.dumps({**metrics(), "sha256": "ab" * 32}).encode()
    assert "metrics-names" in codes(write_outputs(tmp_path, numbers=raw))


def test_E23_no_text_that_a_job_chose_is_in_the_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path, monkeypatch)
    raw = json.dumps(b.seal().statement.document)
    d = b.declaration
    for text in (
        d.owner,
        d.dataset.cohort,
        d.dataset.project,
        d.dataset.purpose,
        d.workload.entry_point,
        d.client_nonce,
        "layer",
        "loss",
    ):
        assert text not in raw.replace('"reattestation"', "")


IDENTIFIER = b"MRN-00417-JANE"


@pytest.mark.parametrize(
    "form",
    [
        IDENTIFIER,
        IDENTIFIER.decode().encode("utf-16-le"),
        IDENTIFIER.decode().encode("utf-16-be"),
        base64.b64encode(IDENTIFIER),
        base64.b64encode(b"x" + IDENTIFIER),
        base64.b64encode(b"xy" + IDENTIFIER + b"z"),
        IDENTIFIER.hex().encode(),
        IDENTIFIER.hex().upper().encode(),
        IDENTIFIER[::-1],
        base64.b64encode(IDENTIFIER)[::-1],
        IDENTIFIER.lower(),
    ],
)
def test_E24_an_identifier_in_any_usual_form_refuses(form: bytes, tmp_path: Path) -> None:
    big = 4096
    outputs = {"tensors": [{"name": "t", "shape": [big], "dtype": "F32"}], "metrics": []}
    values = np.full(big, 0.5, dtype=np.float32)
    raw = bytearray(save({"t": values}))
    raw[-9000 : -9000 + len(form)] = form
    folder = write_outputs(tmp_path, weights=bytes(raw), numbers=b"{}")
    found, _ = judged(folder, declared(outputs=outputs), forbidden=[IDENTIFIER, b"unrelated-identifier"])
    assert "output-identifier" in found


@pytest.mark.parametrize("name", [b"ab" * 32, bytes.fromhex("cd" * 32), b"CD" * 32, base64.b64encode(b"cd" * 32)])
def test_E24_a_records_pseudonym_refuses(name: bytes, tmp_path: Path) -> None:
    outputs = {"tensors": [{"name": "t", "shape": [256], "dtype": "F32"}], "metrics": []}
    raw = bytearray(save({"t": np.full(256, 0.5, dtype=np.float32)}))
    raw[-500 : -500 + len(name)] = name
    record = Record("ab" * 32, "cd" * 32, "sha256:" + "0" * 64, None)
    folder = write_outputs(tmp_path, weights=bytes(raw), numbers=b"{}")
    assert "output-identifier" in judged(folder, declared(outputs=outputs), forbidden=record_patterns([record]))[0]


def test_E24_without_an_identifier_in_it_a_release_clears(tmp_path: Path) -> None:
    found, seen = judged(good(tmp_path), forbidden=[IDENTIFIER, b"short"])
    assert found == ()
    assert seen.facts["identifiers_searched"] == 1


def test_E25_the_set_of_released_files_is_fixed(tmp_path: Path) -> None:
    assert list(judged(good(tmp_path))[1].files) == ["weights.safetensors", "metrics.json"]


def test_E26_nothing_is_released_of_a_run_that_did_not_end_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refusal) as caught:
        bench(tmp_path, monkeypatch, skip="train")
    assert caught.value.codes == ("output-before-training",)
    assert list((tmp_path / "attempt" / "release").iterdir()) == []


def test_E26_after_a_refusal_the_release_folder_is_empty_and_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = bench(tmp_path / "good", monkeypatch)
    (tmp_path / "good" / "outputs" / "extra").write_bytes(b"x")
    for path in (b.attempt.folder / "release").iterdir():
        path.unlink()
    with pytest.raises(Refusal) as caught:
        guard(
            b.last,
            b.attempt,
            tmp_path / "good" / "outputs",
            b.declaration,
            OutputLimits(),
            grant=Grant(max_bytes=9999, max_metrics=9),
        )
    assert "output-extra-file" in caught.value.codes
    assert list((b.attempt.folder / "release").iterdir()) == []
