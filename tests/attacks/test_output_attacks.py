"""E01 to E09 and E16 to E19: files and containers of a hostile trainer. Each is one change to a folder that clears."""

import gzip
import io
import os
import pickle
import socket
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.data import get_testdata_file
from safetensors.numpy import save

from policies.output import OutputLimits
from tests.fixtures.outputs import SHAPES, arrays, codes, good, header_of, judged, raw_safetensors, write_outputs


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
