"""Attacks on what runs (B01 to B14): one thing changed in a workload that passes."""

import shutil
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from policies.workload import WorkloadLimits
from rapha.canonical import canonical, digest
from rapha.signing import WORKLOAD_TYPE, sign
from tests.fixtures.workload import (
    CLEAN,
    FILES,
    SIGNER,
    SITE_PACKAGES,
    STRANGER,
    Case,
    Image,
    layout_digest,
    member,
    pack,
    run,
    safetensors,
    tar_of,
    umoci_image,
)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def of_image(case: Case, image: Image, **changes: Any) -> Case:
    case = case.but()
    folder = case.folder / "layout"
    name = image.write(folder)
    return case.but(kind="oci", blob=pack(folder, case.folder / "image.tar"), named=changes.pop("named", name), **changes)


def with_file(case: Case, name: str, content: bytes) -> tuple[str, ...]:
    return case.but(blob=tar_of({**FILES, name: content})).codes()


def test_a_clean_source_passes_and_is_unpacked_read_only(case: Case) -> None:
    cleared = case.run()
    folder = case.attempt.folder / "workload"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == FILES
    assert all(stat.S_IMODE(p.stat().st_mode) == 0o444 for p in folder.iterdir())
    assert cleared.evidence.scan.own == 4 and cleared.evidence.scan.counts == ()


@pytest.mark.parametrize("packed", [False, True])
def test_a_clean_image_passes(case: Case, packed: bool) -> None:
    cleared = of_image(case, Image(packed=packed)).run()
    assert cleared.evidence.found == cleared.evidence.workload


def test_an_image_by_umoci_and_skopeo_passes_and_is_named_by_its_manifest(case: Case) -> None:
    layout = umoci_image(case.folder, dict(FILES))
    archive = case.folder / "image.tar"
    run("skopeo", "--insecure-policy", "copy", f"oci:{layout}:t", f"oci-archive:{archive}:t")
    shutil.rmtree(case.folder / "bundle")
    assert case.but(kind="oci", blob=archive, named=layout_digest(layout)).codes() == ()


def test_B01_the_bytes_changed_after_they_were_declared(case: Case) -> None:
    assert "workload-digest" in case.but(blob=tar_of({**FILES, "config.json": b"{}"}), named=digest(tar_of(FILES))).codes()


def test_B01_another_image_behind_the_same_layout(case: Case) -> None:
    other = of_image(case, Image(), named=digest(b"the scanned one"))
    assert {"image-other-digest", "workload-digest"} <= set(other.codes())


def test_B01_a_blob_that_is_not_what_its_name_says(case: Case) -> None:
    image = Image()
    folder = case.folder / "layout"
    name = image.write(folder)
    layer = folder / "blobs" / "sha256" / digest(image.layers[0]).removeprefix("sha256:")
    layer.write_bytes(image.layers[0][:-1] + b"\x01")
    archive = pack(folder, case.folder / "image.tar")
    assert "image-blob-differs" in case.but(kind="oci", blob=archive, named=name).codes()


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ([{"platform": {"os": "linux", "architecture": "arm64"}}], "image-other-platform"),
        ([{"platform": {"os": "windows", "architecture": "amd64"}}], "image-other-platform"),
        ([{"platform": {"os": "linux", "architecture": "amd64"}}, {}], "image-ambiguous"),
        ([], "image-other-platform"),
    ],
)
def test_B02_an_index_that_means_another_platform(case: Case, entries: list[dict[str, Any]], code: str) -> None:
    assert code in of_image(case, Image(index=entries)).codes()


def test_B02_the_one_image_for_our_platform_is_taken(case: Case) -> None:
    ours = {"platform": {"os": "linux", "architecture": "amd64"}}
    theirs = {"platform": {"os": "linux", "architecture": "arm64"}, "digest": digest(b"elsewhere")}
    assert of_image(case, Image(index=[ours, theirs])).codes() == ()


def test_B02_a_configuration_for_another_platform(case: Case) -> None:
    assert "image-other-platform" in of_image(case, Image(top={"architecture": "arm64"})).codes()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"signature": {"workload": digest(b"other")}}, "workload-signature-other-subject"),
        ({"signature": {"entry_point": "other.py"}}, "workload-signature-other-subject"),
        ({"signature": {"kind": "oci"}}, "workload-signature-other-subject"),
        ({"signer": STRANGER}, "workload-signature-untrusted"),
        ({"trusted": {}}, "workload-signature-untrusted"),
        ({"trusted": {"workload-signer": [SIGNER.public_key(), STRANGER.public_key()]}, "signer": STRANGER}, "workload-identity"),
    ],
)
def test_B03_signed_by_another_or_over_another(case: Case, change: dict[str, Any], code: str) -> None:
    assert code in case.but(**change).codes()


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "workload-signature-malformed"),
        (b"{}", "workload-signature-malformed"),
        (b"[1]", "workload-signature-malformed"),
        (b'{"version":1,"version":1}', "workload-signature-malformed"),
        (b'{"version":1,"workload":"x","kind":"source","entry_point":"train.py","signatures":[]}', "workload-signature-missing"),
        (b'{"version":1,"workload":1,"kind":"source","entry_point":"t.py","signatures":[{}]}', "workload-signature-malformed"),
    ],
)
def test_B04_a_malformed_signature_document(case: Case, raw: bytes, code: str) -> None:
    assert code in case.but(signature_bytes=raw).codes()


def test_B04_a_signature_that_does_not_verify(case: Case) -> None:
    body = {"version": 1, "workload": case.declared(), "kind": "source", "entry_point": "train.py"}
    forged = {**sign({**body, "kind": "oci"}, WORKLOAD_TYPE, SIGNER, "workload-signer"), "kind": "source"}
    assert "workload-signature-invalid" in case.but(signature_bytes=canonical(forged)).codes()


def test_B05_a_signature_made_huge(case: Case) -> None:
    assert "workload-signature-malformed" in case.but(signature_bytes=b"[" * 70_000).codes()


def test_B05_a_layer_that_grows_beyond_measure(case: Case) -> None:
    bomb = tar_of({"workload/train.py": CLEAN, "workload/pad.txt": b"\0" * (80 << 20)})
    assert "archive-ratio" in of_image(case, Image(layers=[bomb], packed=True)).codes()


def test_B05_more_files_or_bytes_than_allowed(case: Case) -> None:
    few = WorkloadLimits(identities=case.limits.identities, launcher=case.limits.launcher, max_files=3)
    small = WorkloadLimits(identities=case.limits.identities, launcher=case.limits.launcher, max_bytes=100)
    assert "archive-too-large" in case.but(limits=few).codes()
    assert "archive-too-large" in case.but(limits=small).codes()


def test_B06_a_workload_in_which_nothing_is_found(case: Case) -> None:
    codes = case.but(blob=tar_of({"README.txt": b"hello"})).codes()
    assert {"nothing-to-judge", "entry-point-missing"} <= set(codes)


def test_B06_a_wheel_without_its_record_is_judged_as_own_code(case: Case) -> None:
    hub = (SITE_PACKAGES / "torch" / "hub.py").read_bytes()
    assert "python-network" in with_file(case, "site-packages/torch/hub.py", hub)


def test_B06_a_whiteout_hides_nothing_from_the_scan(case: Case) -> None:
    lower = tar_of({**{f"workload/{n}": c for n, c in FILES.items()}, "workload/net.py": b"import socket\n"})
    upper = tar_of({"workload/.wh.net.py": b""})
    assert of_image(case, Image(layers=[lower, upper])).codes() == ()
    back = tar_of({"workload/net.py": b"import socket\n"})
    assert "python-network" in of_image(case, Image(layers=[lower, upper, back])).codes()


def test_B07_a_renamed_elf_with_network_symbols(case: Case) -> None:
    program = Path("/usr/bin/bash").resolve().read_bytes()
    codes = with_file(case, "tool", program)
    assert {"elf-unknown", "elf-network"} <= set(codes)


def test_B07_a_network_library_under_another_name(case: Case) -> None:
    library = next(Path("/usr/lib").rglob("libcurl*.so*"), None) or next(Path("/lib").rglob("libresolv.so.2"))
    assert "elf-unknown" in with_file(case, "weights.json", library.resolve().read_bytes())


def test_B07_a_static_or_go_program(case: Case, tmp_path: Path) -> None:
    go = b"\x7fELF\x02\x01\x01" + bytes(57) + b'\xff Go buildinf:\0 Go build ID: "x"'
    codes = set(with_file(case, "helper", go))
    assert {"elf-unknown", "elf-static", "elf-go"} <= codes


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("import pip", "python-loads-code"),
        ("import torch\ntorch.hub.load('a', 'b')", "python-loads-code"),
        ("import torch\nh = [torch][0].hub", "python-loads-code"),
        ("from torch import hub", "python-loads-code"),
        ("import torch.utils.cpp_extension", "python-loads-code"),
        ("import torch\ntorch.ops.load_library('x')", "python-loads-code"),
        ("import transformers", "python-loads-code"),
        ("def f(m):\n    return m(trust_remote_code=True)", "python-loads-code"),
        ("import numpy as np\nnp.genfromtxt('http://x')", "python-network"),
        ("import numpy as np\nnp.lib.npyio.DataSource()", "python-network"),
    ],
)
def test_B08_code_or_bytes_fetched_at_run_time(case: Case, line: str, code: str) -> None:
    assert code in with_file(case, "extra.py", line.encode())


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("import socket", "python-network"),
        ("import http.client as h", "python-network"),
        ("from urllib import request", "python-network"),
        ("import asyncio", "python-network"),
        ("from multiprocessing.connection import Client", "python-network"),
        ("import ctypes", "python-process"),
        ("import subprocess as s", "python-process"),
        ("import sys", "python-process"),
        ("from os import system", "python-process"),
        ("import os\nos.system('x')", "python-process"),
        ("import os\nos.fork()", "python-process"),
        ("import os as o\no.execv('/bin/sh', [])", "python-process"),
        ("import importlib", "python-loads-code"),
        ("__import__('socket')", "python-loads-code"),
        ("exec('import socket')", "python-dynamic-code"),
        ("e = eval\ne('1')", "python-dynamic-code"),
        ("compile('1', 'a', 'eval')", "python-dynamic-code"),
        ("getattr(__builtins__, 'ex' + 'ec')('1')", "python-loads-code"),
        ("n = 'sys' + 'tem'\nimport os\ngetattr(os, n)('x')", "python-reaches-internals"),
        ("g = getattr", "python-reaches-internals"),
        ("import random\nrandom._os.system('x')", "python-process"),
        ("import torch\ntorch.serialization.os.system('x')", "python-process"),
        ("import pathlib\npathlib.os.system('x')", "python-process"),
        ("().__class__.__base__.__subclasses__()", "python-reaches-internals"),
        ("def f():\n    pass\nf.__globals__['x']", "python-reaches-internals"),
        ("globals()['x']", "python-reaches-internals"),
        ("match 1:\n    case object(__class__=c):\n        pass", "python-reaches-internals"),
        ("import torch\nimport json\njson = torch\njson.load('x')", "python-rebinds-library"),
        ("import json, torch as json\njson.load('x')", "python-rebinds-library"),
        ("from math import *", "python-star-import"),
        ("import secret_library", "python-import-not-allowed"),
        ("async def f(): pass", "python-async"),
        ("import pickle", "python-pickle"),
        ("import torch\ntorch.load('x')", "python-pickle"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "python-pickle"),
        ("class A:\n    def __reduce__(self): return 1", "python-pickle"),
        ("def f(:", "python-unparsable"),
        ("# coding: utf-7\n#+AAo-import socket", "python-unparsable"),
        ("# -*- coding: unicode_escape -*-\n#\\x0aimport socket", "python-unparsable"),
        ("g = (x for x in [1])\ng.gi_frame.f_globals", "python-reaches-internals"),
        ("import typing\ntyping.get_type_hints(object)", "python-reaches-internals"),
        ("import torch\ntorch.utils.data.datapipes", "python-reaches-internals"),
        ("import numpy as np\nnp.lib.format.read_array(f, True)", "python-reaches-internals"),
        ("print 1", "python-unparsable"),
        ("x = '\udcff'".encode("utf-8", "surrogateescape").decode("latin-1"), ""),
    ],
)
def test_B09_ways_round_a_block_list(case: Case, line: str, code: str) -> None:
    codes = with_file(case, "extra.py", line.encode())
    assert codes == () if not code else code in codes


@pytest.mark.parametrize("name", ["json.py", "torch/nn.py", "sitecustomize.py", "rapha.py"])
def test_B09_a_local_module_that_stands_in_for_a_library(case: Case, name: str) -> None:
    assert "python-shadows-library" in with_file(case, name, b"x = 1\n")


@pytest.mark.parametrize("name", ["lib.so", "run.sh", "a.pyc", "a.pyx", "Makefile", "data.bin2", "notes.html"])
def test_B09_a_type_that_the_scan_does_not_know(case: Case, name: str) -> None:
    assert "type-unknown" in with_file(case, name, b"import socket\n")


@pytest.mark.parametrize(
    "variable",
    ["LD_PRELOAD=/workload/x.so", "NVIDIA_VISIBLE_DEVICES=all", "PYTHONPATH=/out", "PATH=/x;rm", "NAME_ONLY", "PYTHONSTARTUP=a"],
)
def test_B10_an_environment_variable_outside_the_allow_list(case: Case, variable: str) -> None:
    assert "image-environment" in of_image(case, Image(config={"Env": [variable]})).codes()


@pytest.mark.parametrize(
    "config",
    [
        {"Entrypoint": ["python", "model.py"]},
        {"Entrypoint": ["python", "-c", "import os"]},
        {"Entrypoint": None},
        {"Entrypoint": ["/bin/sh", "train.py"]},
        {"Cmd": ["--debug"]},
        {"WorkingDir": "/"},
    ],
)
def test_B11_the_image_starts_something_else(case: Case, config: dict[str, Any]) -> None:
    assert "image-entry-point" in of_image(case, Image(config=config)).codes()


def test_B11_the_declared_entry_point_is_not_the_signed_one(case: Case) -> None:
    assert case.but(entry_point="model.py", signature={"entry_point": "train.py"}).codes() == (
        "workload-signature-other-subject",
    )


def test_B11_an_entry_point_that_is_not_the_workloads_own(case: Case) -> None:
    assert "entry-point-missing" in case.but(entry_point="other.py").codes()


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"Volumes": {"/data": {}}}, "image-volume"),
        ({"ExposedPorts": {"80/tcp": {}}}, "image-exposed-port"),
        ({"User": "root"}, "image-root-user"),
        ({"User": "0:0"}, "image-root-user"),
        ({"Healthcheck": {"Test": ["CMD", "x"]}}, "image-unknown-setting"),
        ({"OnBuild": ["RUN x"]}, "image-unknown-setting"),
    ],
)
def test_B12_what_an_image_may_not_declare(case: Case, config: dict[str, Any], code: str) -> None:
    assert code in of_image(case, Image(config=config)).codes()


def test_B12_settings_written_by_umoci(case: Case) -> None:
    layout = umoci_image(
        case.folder, dict(FILES), "--config.volume", "/v", "--config.exposedports", "80", "--config.env", "LD_PRELOAD=x"
    )
    codes = case.but(kind="oci", blob=pack(layout, case.folder / "i.tar"), named=layout_digest(layout)).codes()
    assert {"image-volume", "image-exposed-port", "image-environment"} <= set(codes)


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (member("a", tarfile.SYMTYPE, "/etc/passwd"), "file-link"),
        (member("a", tarfile.LNKTYPE, "train.py"), "file-link"),
        (member("a", tarfile.CHRTYPE, ""), "file-device"),
        (member("a", tarfile.BLKTYPE, ""), "file-device"),
        (member("a", tarfile.FIFOTYPE, ""), "file-device"),
        (member("a.py", tarfile.REGTYPE, "", mode=0o4755), "file-set-id"),
        (member("a.py", tarfile.REGTYPE, "", mode=0o2755), "file-set-id"),
        (member("a.py", tarfile.REGTYPE, "", pax_headers={"SCHILY.xattr.security.capability": "x"}), "file-set-id"),
        (member("../a.py", tarfile.REGTYPE, ""), "path-unsafe"),
        (member("/a.py", tarfile.REGTYPE, ""), "path-unsafe"),
        (member("x/../../a.py", tarfile.REGTYPE, ""), "path-unsafe"),
        (member("a\n.py", tarfile.REGTYPE, ""), "path-unsafe"),
        (member("train.py", tarfile.REGTYPE, ""), "path-twice"),
        (member("train.py/a.py", tarfile.REGTYPE, ""), "path-twice"),
    ],
)
@pytest.mark.parametrize("kind", ["source", "oci"])
def test_B12_members_that_may_not_be(case: Case, extra: tarfile.TarInfo, code: str, kind: str) -> None:
    if kind == "source":
        assert code in case.but(blob=tar_of(FILES, [extra])).codes()
        return
    inside = member(extra.name if extra.name[0] in "./" else f"workload/{extra.name}", extra.type, extra.linkname)
    inside.mode, inside.pax_headers = extra.mode, extra.pax_headers
    layer = tar_of({f"workload/{n}": c for n, c in FILES.items()}, [inside])
    found = of_image(case, Image(layers=[layer])).codes()
    assert code in found
    assert not (case.folder / "a.py").exists()


def test_B12_a_file_outside_the_workload_folder(case: Case) -> None:
    layer = tar_of({**{f"workload/{n}": c for n, c in FILES.items()}, "usr/bin/python": b"x"})
    assert "path-outside" in of_image(case, Image(layers=[layer])).codes()


def test_B12_a_descriptor_that_points_elsewhere(case: Case) -> None:
    assert "image-fetches-elsewhere" in of_image(case, Image(layer={"urls": ["https://example.invalid/x"]})).codes()


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("w.pkl", b"\x80\x04K\x01.", "type-pickle"),
        ("w.json", b"\x80\x04K\x01.", "type-pickle"),
        ("hook.pth", b"import socket\n", "type-pickle"),
        ("w.pt", b"PK\x03\x04rest", "type-pickle"),
        ("w.joblib", b"anything", "type-pickle"),
        ("w.npy", b"\x93NUMPY", "type-pickle"),
        ("w.safetensors", b"PK\x03\x04rest", "type-archive"),
        ("w.txt", b"\x1f\x8b\x08rest", "type-archive"),
        ("w.safetensors", safetensors(tail=b"PK"), "safetensors-odd"),
        ("w.safetensors", safetensors(__metadata__={"note": "MRN 1234"}), "safetensors-odd"),
        ("w.json", b'{"a": NaN}', "json-odd"),
        ("w.txt", b"\x00\x01", "text-odd"),
    ],
)
def test_B13_weights_and_data_in_a_form_that_runs_or_hides(case: Case, name: str, content: bytes, code: str) -> None:
    assert code in with_file(case, name, content)


@pytest.mark.parametrize("content", [b"\x80\x02.", b"PK\x03\x04", safetensors(tail=b"x"), b"", safetensors(w2={"dtype": "F32"})])
def test_B13_base_weights_that_are_not_inert(case: Case, content: bytes) -> None:
    assert "base-weights-format" in case.but(weights=content).codes()


def test_B14_base_weights_are_declared_and_hashed(case: Case) -> None:
    assert case.but(weights=safetensors()).codes() == ()
    assert "base-weights-digest" in case.but(weights=safetensors(), weights_named=digest(b"the declared ones")).codes()


def test_the_hospitals_launcher_is_pinned(case: Case) -> None:
    assert case.but(launcher=b"# changed").codes() == ("launcher-not-pinned",)


@pytest.mark.parametrize("identities", [(), ("*",), ("sha256:*",)])
def test_A06_no_identity_or_a_wildcard_names_nobody(case: Case, identities: tuple[str, ...]) -> None:
    limits = WorkloadLimits(identities=identities, launcher=case.limits.launcher)
    assert {"workload-identity", "workload-identities-unset"} == set(case.but(limits=limits).codes())


def test_A07_an_identity_that_is_a_prefix_of_another(case: Case) -> None:
    longer = WorkloadLimits(identities=(case.limits.identities[0] + "00",), launcher=case.limits.launcher)
    shorter = WorkloadLimits(identities=(case.limits.identities[0][:-1],), launcher=case.limits.launcher)
    assert "workload-identity" in case.but(limits=longer).codes()
    assert "workload-identity" in case.but(limits=shorter).codes()


def test_bytes_after_the_end_of_the_archive(case: Case) -> None:
    assert "archive-trailing-bytes" in case.but(blob=tar_of(FILES) + b"PK\x03\x04").codes()


def test_a_cut_archive(case: Case) -> None:
    assert "archive-malformed" in case.but(blob=tar_of(FILES)[:3000]).codes()
    assert "archive-malformed" in case.but(blob=b"").codes()
