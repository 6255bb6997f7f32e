"""The workload gate and stage: one fact, one code; base layers that a hospital knows."""

import tarfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policies.gate import explain
from policies.required import REQUIRED_CHECKS
from policies.scan import REASONS, ScanLimits
from policies.wheels import KnownTable, table
from policies.workload import CHECKS, WorkloadLimits, workload_gate
from rapha.canonical import digest
from rapha.errors import Refusal
from tasks.scanning.scan import scan
from tasks.scanning.unpack import digest_tree
from tasks.training.workload import workload
from tests.fixtures.intake import attempt
from tests.fixtures.policy import WORKLOAD, D
from tests.fixtures.workload import FILES, TRUSTED, Case, Image, member, pack, tar_of

LIMITS = WorkloadLimits(identities=(D["signer"],), launcher=D["launcher"])
GOOD = replace(WORKLOAD, limits=LIMITS)
BEFORE: Any = SimpleNamespace(subject="sha256:" + "00" * 32)
OTHER = "sha256:" + "ff" * 32
BASE = tar_of(
    {"usr/bin/python3.11": b"\x7fELF", "etc/os-release": b"x"},
    [member("usr/bin/python3", tarfile.SYMTYPE, "python3.11")],
    mode=0o755,
)
APP = tar_of({f"workload/{name}": content for name, content in FILES.items()})


def test_the_good_facts_pass_and_the_required_checks_are_the_gates_own() -> None:
    assert workload_gate(LIMITS).judge(GOOD).codes == ()
    assert {check.name for check in CHECKS} == REQUIRED_CHECKS["workload"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"found": OTHER}, "workload-digest"),
        ({"found": ""}, "workload-digest"),
        ({"folder": ""}, "workload-unpacked-differs"),
        ({"launcher": OTHER}, "launcher-not-pinned"),
        ({"signature": replace(GOOD.signature, found=OTHER)}, "workload-signature-digest"),
        ({"signature": replace(GOOD.signature, signer=OTHER)}, "workload-identity"),
        ({"signature": replace(GOOD.signature, signer="")}, "workload-identity"),
        ({"signature": replace(GOOD.signature, fault="workload-signature-invalid")}, "workload-signature-invalid"),
        ({"signature": replace(GOOD.signature, workload=OTHER)}, "workload-signature-other-subject"),
        ({"scan": replace(GOOD.scan, unpacked=OTHER)}, "workload-unpacked-differs"),
        ({"scan": replace(GOOD.scan, own=0, files=0)}, "workload-scan-empty"),
        ({"scan": replace(GOOD.scan, counts=(("python-network", 2),))}, "python-network"),
        ({"scan": replace(GOOD.scan, counts=(("odd", 1),))}, "workload-scan-odd"),
        ({"weights": replace(GOOD.weights, declared=OTHER, found=OTHER, size=9, tensors=-1)}, "base-weights-format"),
        ({"weights": replace(GOOD.weights, declared=OTHER, found="", size=9, tensors=1)}, "base-weights-digest"),
        ({"weights": replace(GOOD.weights, found=OTHER)}, "base-weights-digest"),
    ],
)
def test_one_fact_changed_earns_its_own_code(change: dict[str, Any], code: str) -> None:
    assert workload_gate(LIMITS).judge(replace(GOOD, **change)).codes == (code,)


def test_every_code_of_the_scan_says_what_to_do() -> None:
    assert all(item["wrong"] and item["todo"] for item in explain(workload_gate(LIMITS), sorted(REASONS)))


def test_facts_judged_by_other_numbers_are_refused() -> None:
    assert "limits-differ" in workload_gate(replace(LIMITS, max_files=1)).judge(GOOD).codes


def scanned(folder: Path, image: Image, known: KnownTable) -> tuple[str, ...]:
    folder.mkdir()
    image.write(folder / "layout")
    found = scan(pack(folder / "layout", folder / "i.tar"), folder / "tree", known, ScanLimits())
    assert digest_tree(folder / "tree") == found.report.tree
    return found.report.codes


def test_a_base_layer_that_the_hospital_knows_passes_whole(tmp_path: Path) -> None:
    known = table([{"name": "base", "version": "1", "layer": digest(BASE)}])
    for packed in (False, True):
        assert scanned(tmp_path / str(packed), Image(layers=[BASE, APP], packed=packed), known) == ()
    tree = tmp_path / "True" / "tree"
    assert (tree / "usr/bin/python3").readlink() == Path("python3.11") and (tree / "usr/bin/python3.11").stat().st_mode & 0o111


def test_a_base_layer_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    assert "path-outside" in scanned(tmp_path / "a", Image(layers=[BASE, APP]), table())


def test_another_layer_cannot_add_to_the_base_or_write_through_its_links(tmp_path: Path) -> None:
    trap = tar_of({}, [member("workload", tarfile.SYMTYPE, str(tmp_path))])
    known = table([{"name": "b", "version": "1", "layer": digest(BASE)}, {"name": "t", "version": "1", "layer": digest(trap)}])
    more = tar_of({"usr/lib/extra.so": b"\x7fELF"})
    assert "path-outside" in scanned(tmp_path / "a", Image(layers=[BASE, APP, more]), known)
    assert "path-twice" in scanned(tmp_path / "b", Image(layers=[trap, APP]), known)
    assert not (tmp_path / "train.py").exists()


def test_a_known_layer_may_not_hold_devices(tmp_path: Path) -> None:
    odd = tar_of({}, [member("dev/x", tarfile.CHRTYPE, "")])
    known = table([{"name": "b", "version": "1", "layer": digest(odd)}])
    assert "file-device" in scanned(tmp_path / "a", Image(layers=[odd, APP]), known)


def test_a_blob_that_intake_did_not_store_is_refused(tmp_path: Path) -> None:
    case = Case(tmp_path)
    declaration, job = case.declaration()
    for blob in (tmp_path / "blobs" / "sha256").iterdir():
        blob.unlink()
    with pytest.raises(Refusal) as error:
        workload(BEFORE, attempt(tmp_path, job), declaration, tmp_path / "blobs", TRUSTED, tmp_path, LIMITS)
    assert error.value.codes == ("workload-not-fetched",)
