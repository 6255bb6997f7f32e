"""E01 to E26: what a hostile trainer may leave in its output folder. Each is one change to a folder that clears."""

import base64
import gzip
import io
import json
import os
import pickle
import socket
import sqlite3
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from safetensors.numpy import load, save

from policies.output import OutputLimits
from policies.records import Record
from rapha.declaration import read_declaration
from rapha.errors import Refusal
from tasks.guarding.identifiers import record_patterns
from tasks.training.guard import Grant, guard
from tests.fixtures.outputs import SHAPES, arrays, declaration_document, declared, judged, metrics, raw_safetensors, write_outputs
from tests.fixtures.sealing import bench


def codes(folder: Path, **given: Any) -> tuple[str, ...]:
    found, _ = judged(folder, **given)
    assert found, "the folder cleared"
    return found


def good(tmp_path: Path) -> Path:
    folder = write_outputs(tmp_path)
    assert judged(folder)[0] == ()
    return folder


def header_of(raw: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("a.csv")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"a,b"))
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.csv", "a,b")
    return stream.getvalue()


def _database(tmp_path: Path) -> bytes:
    path = tmp_path / "made.db"
    connection = sqlite3.connect(path)
    connection.execute("create table t (a)")
    connection.commit()
    connection.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rows.csv", "csv"),
        ("slice.dcm", "dicom"),
        ("b.ndjson", "ndjson"),
        ("b.jsonl", "ndjson"),
        ("t.parquet", "database"),
        ("a.npy", "numpy"),
        ("m.pkl", "pickle"),
        ("m.pt", "pickle"),
        ("a.zip", "zip"),
        ("a.tar", "tar"),
        ("a.db", "database"),
    ],
)
def test_E01_a_denied_extension_refuses(name: str, kind: str, tmp_path: Path) -> None:
    folder = good(tmp_path)
    (folder / name).write_bytes(b"")
    assert {"output-extra-file", f"output-is-{kind}"} <= set(codes(folder))


FHIR = b'{"resourceType": "Bundle", "entry": []}'
FOREIGN: dict[str, bytes] = {
    "fhir": FHIR,
    "ndjson": b'{"resourceType":"Patient","id":"1"}\n{"resourceType":"Patient","id":"2"}\n',
    "apple-health": b'<?xml version="1.0"?><!DOCTYPE HealthData []><HealthData locale="en"></HealthData>',
    "vcf": b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n1\t1\t.\tA\tC\n",
    "csv": b"patient_id,age\n1,40\n2,50\n",
    "pickle": pickle.dumps({"weights": [1.0, 2.0]}),
    "zip": _zip(),
    "tar": _tar(),
    "compressed": gzip.compress(b"a,b\n1,2\n"),
    "png": b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\x0dIHDR" + b"\x00" * 20,
    "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + b"\x00" * 20,
    "onnx": b"\x08\x08\x12\x07pytorch\x1a\x052.2.0" + b"\x00" * 40,
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"\x00" * 40,
    "numpy": b"\x93NUMPY\x01\x00" + b"\x00" * 40,
    "gguf": b"GGUF\x03\x00\x00\x00" + b"\x00" * 40,
    "markup": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="data:;base64,AAAA"/></svg>',
    "pdf": b"%PDF-1.7\n" + b"\x00" * 40,
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["weights.safetensors", "metrics.json"])
def test_E02_a_foreign_file_under_a_declared_name_is_named_and_refused(kind: str, name: str, tmp_path: Path) -> None:
    folder = good(tmp_path)
    (folder / name).write_bytes(FOREIGN[kind])
    assert f"output-is-{kind}" in codes(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "metrics.json"])
@pytest.mark.parametrize("bare", [False, True])
def test_E02_real_dicom_under_a_declared_name_refuses(name: str, bare: bool, tmp_path: Path) -> None:
    raw = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    folder = good(tmp_path)
    (folder / name).write_bytes(raw[132:] if bare else raw)
    assert "output-is-dicom" in codes(folder)


@pytest.mark.parametrize("tail", [b"\x00", _zip(), b"\x00" * 128 + b"DICM", b" "])
def test_E03_bytes_after_the_tensors_refuse(tail: bytes, tmp_path: Path) -> None:
    assert "weights-length" in codes(write_outputs(tmp_path, weights=save(arrays()) + tail))


def _entry(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


E04: dict[str, tuple[bytes, str]] = {
    "metadata": (save(arrays(), metadata={"patients": "Doe"}), "weights-metadata"),
    "gap": (raw_safetensors({"layer.bias": _entry("F32", [4], 4, 20)}, b"\x00" * 20), "weights-offsets"),
    "overlap": (
        raw_safetensors({"layer.bias": _entry("F32", [4], 0, 16), "layer.weight": _entry("F32", [4, 3], 8, 56)}, b"\x00" * 56),
        "weights-offsets",
    ),
    "reversed": (
        raw_safetensors({"layer.bias": _entry("F32", [4], 48, 64), "layer.weight": _entry("F32", [4, 3], 0, 48)}, b"\x00" * 64),
        "weights-offsets",
    ),
    "wrong-size": (raw_safetensors({"layer.bias": _entry("F32", [4], 0, 20)}, b"\x00" * 20), "weights-offsets"),
    "cut": (save(arrays())[:-1], "weights-length"),
    "duplicate": (
        raw_safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"\x00" * 4,
        ),
        "weights-header-json",
    ),
    "giant": (struct.pack("<Q", 1 << 62) + b"{}", "weights-header-size"),
    "header-beyond-file": (struct.pack("<Q", 100) + b"{}", "weights-header-size"),
    "over-the-cap": (raw_safetensors(b"{" + b" " * (1 << 20) + b"}", b""), "weights-header-size"),
    "padding": (raw_safetensors(b"{}" + b" " * 64, b""), "weights-header-json"),
    "leading-blank": (raw_safetensors(b" {}", b""), "weights-header-json"),
    "empty": (raw_safetensors({}, b""), "weights-names"),
    "extra-field": (
        raw_safetensors({"layer.bias": {**_entry("F32", [4], 0, 16), "note": "x"}}, b"\x00" * 16),
        "weights-header-fields",
    ),
    "negative": (raw_safetensors({"layer.bias": _entry("F32", [-4], 0, 16)}, b"\x00" * 16), "weights-header-fields"),
    "boolean": (raw_safetensors({"layer.bias": _entry("F32", [True], 0, 4)}, b"\x00" * 4), "weights-header-fields"),
    "float": (raw_safetensors({"layer.bias": _entry("F32", [4.0], 0, 16)}, b"\x00" * 16), "weights-header-fields"),  # type: ignore[list-item]
    "nan": (raw_safetensors(b'{"a": NaN}', b""), "weights-header-json"),
    "list": (raw_safetensors(b"[]", b""), "weights-header-json"),
    "deep": (raw_safetensors(b'{"a":' * 100 + b"1" + b"}" * 100, b""), "weights-header-json"),
    "zero-elements": (raw_safetensors({"layer.bias": _entry("F32", [0], 0, 0)}, b""), "weights-offsets"),
    "nothing": (b"", "weights-header-size"),
}


@pytest.mark.parametrize("what", E04)
def test_E04_an_odd_container_refuses(what: str, tmp_path: Path) -> None:
    raw, code = E04[what]
    assert code in codes(write_outputs(tmp_path, weights=raw))


@pytest.mark.parametrize("name", ["buffer.patients", "layer.weight.001", "layer weight", "läyer"])
def test_E05_an_undeclared_tensor_refuses(name: str, tmp_path: Path) -> None:
    extra = {**arrays(), name: np.zeros(3, dtype=np.float32)}
    assert codes(write_outputs(tmp_path, weights=save(extra))) == ("output-not-written", "weights-names")


def test_E05_a_missing_or_reshaped_tensor_refuses(tmp_path: Path) -> None:
    less = {"layer.weight": arrays()["layer.weight"]}
    assert "weights-names" in codes(write_outputs(tmp_path / "a", weights=save(less)))
    turned = {**arrays(), "layer.weight": arrays()["layer.weight"].T.copy()}
    assert "weights-shapes" in codes(write_outputs(tmp_path / "b", weights=save(turned)))


def test_E06_the_order_of_tensors_carries_nothing(tmp_path: Path) -> None:
    made = arrays()
    there = judged(write_outputs(tmp_path / "a", weights=save(made)))[1].files
    order = ["layer.bias", "layer.weight"]
    header, at, payload = {}, 0, b""
    for name in order if list(header_of(save(made))[0]) != order else order[::-1]:
        data = made[name].tobytes()
        header[name] = _entry("F32", list(SHAPES[name]), at, at + len(data))
        at, payload = at + len(data), payload + data
    found, seen = judged(write_outputs(tmp_path / "b", weights=raw_safetensors(header, payload)))
    assert found == ()
    assert seen.files == there


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "float64", "int32"])
def test_E07_integers_bytes_and_wide_floats_refuse(dtype: str, tmp_path: Path) -> None:
    odd = {**arrays(), "layer.bias": np.ones(4).astype(dtype)}
    assert "weights-dtypes" in codes(write_outputs(tmp_path, weights=save(odd)))


def test_E07_a_declared_format_cannot_be_swapped_for_another(tmp_path: Path) -> None:
    half = {**arrays(), "layer.bias": np.ones(4, dtype=np.float16)}
    assert "weights-dtypes" in codes(write_outputs(tmp_path, weights=save(half)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_E08_values_that_are_not_finite_refuse(value: float, tmp_path: Path) -> None:
    odd = arrays()
    odd["layer.bias"][2] = value
    assert "weights-not-finite" in codes(write_outputs(tmp_path, weights=save(odd)))


def test_E08_negative_zeros_and_subnormals_carry_nothing(tmp_path: Path) -> None:
    plain, odd = arrays(), arrays()
    plain["layer.bias"][:] = 0
    odd["layer.bias"][:] = [-0.0, 1e-42, -1e-40, 0.0]
    there = judged(write_outputs(tmp_path / "a", weights=save(plain)))[1].files
    found, seen = judged(write_outputs(tmp_path / "b", weights=save(odd)))
    assert (found, seen.files) == ((), there)
    assert seen.facts["weights"].canonicalised == 3


def test_E09_many_checkpoints_and_oversized_files_refuse(tmp_path: Path) -> None:
    folder = good(tmp_path / "a")
    for epoch in range(20):
        (folder / f"epoch_{epoch:03}.safetensors").write_bytes(save(arrays()))
    assert codes(folder) == ("output-extra-file",)
    assert "output-too-large" in codes(write_outputs(tmp_path / "b"), limits=OutputLimits(max_bytes=100))
    assert "output-too-many-parameters" in codes(write_outputs(tmp_path / "c"), limits=OutputLimits(max_parameters=15))


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


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _socket(folder: Path) -> None:
    here = Path.cwd()
    os.chdir(folder)  # a UNIX socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind("s")
    finally:
        os.chdir(here)


def _replaced(folder: Path, make: Any) -> None:
    (folder / "metrics.json").unlink()
    make(folder / "metrics.json")


def _sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(b"{")
        stream.truncate(1 << 20)


E16: dict[str, tuple[Any, str]] = {
    "symlink": (lambda f: (f / "more").symlink_to("/etc/passwd"), "output-symlink"),
    "declared-name-is-a-symlink": (lambda f: _replaced(f, lambda p: p.symlink_to("/etc/hostname")), "output-symlink"),
    "dangling": (lambda f: (f / "more").symlink_to("nowhere"), "output-symlink"),
    "hard-link": (lambda f: os.link(f / "metrics.json", f.parent / "second-name"), "output-hard-link"),
    "fifo": (_fifo, "output-special-file"),
    "declared-name-is-a-fifo": (lambda f: _replaced(f, os.mkfifo), "output-special-file"),
    "socket": (_socket, "output-special-file"),
    "folder": (lambda f: (f / "sub").mkdir(), "output-directory"),
    "declared-name-is-a-folder": (lambda f: _replaced(f, Path.mkdir), "output-directory"),
    "sparse": (lambda f: _replaced(f, _sparse), "output-sparse"),
    "dot-file": (lambda f: (f / ".hidden").write_bytes(b""), "output-dot-file"),
    "case-clash": (lambda f: (f / "Metrics.json").write_bytes(b"{}"), "output-extra-file"),
    "odd-name": (lambda f: (f / "metrics.json ").write_bytes(b"{}"), "output-extra-file"),
    "line-feed": (lambda f: (f / "metrics.json\n").write_bytes(b"{}"), "output-extra-file"),
    "not-unicode": (lambda f: Path(os.fsdecode(os.fsencode(f) + b"/\xff\xfe")).write_bytes(b""), "output-extra-file"),
    "look-alike": (lambda f: (f / "mеtrics.json").write_bytes(b"{}"), "output-extra-file"),
    "missing": (lambda f: (f / "metrics.json").unlink(), "output-missing"),
}


@pytest.mark.parametrize("what", E16)
def test_E16_anything_but_two_plain_files_refuses(what: str, tmp_path: Path) -> None:
    change, code = E16[what]
    folder = good(tmp_path)
    change(folder)
    assert code in codes(folder)


def test_E16_a_folder_behind_a_link_refuses(tmp_path: Path) -> None:
    folder = good(tmp_path)
    (tmp_path / "link").symlink_to(folder)
    assert "output-folder" in codes(tmp_path / "link")
    assert "output-folder" in codes(tmp_path / "nothing")


def test_E17_attributes_refuse_and_times_names_and_owners_do_not_travel(tmp_path: Path) -> None:
    folder = good(tmp_path / "a")
    os.utime(folder / "metrics.json", (1, 1))
    (folder / "weights.safetensors").chmod(0o741)
    found, seen = judged(folder)
    assert found == ()
    assert seen.files == judged(good(tmp_path / "b"))[1].files
    os.setxattr(folder / "metrics.json", "user.note", b"Doe^Jane")
    assert codes(folder) == ("output-xattr",)


@pytest.mark.parametrize("kind", ["zip", "tar", "compressed"])
@pytest.mark.parametrize("name", ["all.bin", "weights.safetensors"])
def test_E18_an_archive_refuses(kind: str, name: str, tmp_path: Path) -> None:
    folder = good(tmp_path)
    (folder / name).write_bytes(FOREIGN[kind])
    assert f"output-is-{kind}" in codes(folder)


@pytest.mark.parametrize("kind", ["png", "markup", "onnx", "gguf", "pdf", "jpeg"])
def test_E19_figures_pages_and_other_model_formats_refuse(kind: str, tmp_path: Path) -> None:
    folder = good(tmp_path)
    (folder / "figure").write_bytes(FOREIGN[kind])
    assert {"output-extra-file", f"output-is-{kind}"} <= set(codes(folder))


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
