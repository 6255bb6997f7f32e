"""`rapha guard` and `rapha receipt verify` as a person runs them."""

import json
from pathlib import Path
from typing import Any

import cyclopts
import pytest

import flows.console.guard
import rapha.console.receipt
from rapha.console.app import run
from rapha.signing import write_public
from tests.fixtures.outputs import declaration_document, write_outputs
from tests.fixtures.receipts import KEY, receipt


def console(*argv: str) -> int:
    app = cyclopts.App(name="rapha")
    flows.console.guard.register(app)
    rapha.console.receipt.register(app)
    return run(app, argv)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAPHA_SITE_POLICY_PATH", "RAPHA_ENABLE_HOSPITAL_DATA_INTEGRATION", "RAPHA_DATASET_MANIFEST_PATH"):
        monkeypatch.delenv(name, raising=False)
    write_outputs(tmp_path)
    (tmp_path / "job.json").write_text(json.dumps(declaration_document()))
    return tmp_path


def guard(work: Path, *more: str, release: str = "release") -> int:
    return console("guard", str(work / "outputs"), "--job", str(work / "job.json"), "--release", str(work / release), *more)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_good_folder_is_released(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(work, "--json") == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (said["verdict"], said["gate"], said["codes"], said["scope"]) == ("cleared", "output", [], "structure")
    assert said["leak_bits"] == said["leak"]["total"] > 0
    assert names(work / "release") == ["metrics.json", "weights.safetensors"]
    assert set(said["released"]) == {"metrics.json", "weights.safetensors"}


def test_a_refusal_says_its_code_and_leaves_the_folder_empty(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "outputs" / "rows.csv").write_text("a,b\n1,2\n")
    assert guard(work, "--json") == 3
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "refused"
    assert said["codes"] == ["output-extra-file", "output-is-csv"]
    assert {reason["code"] for reason in said["reasons"]} == set(said["codes"])
    assert names(work / "release") == []
    assert guard(work) == 3
    assert "output-is-csv" in capsys.readouterr().out


def test_the_same_folder_gives_the_same_release(work: Path) -> None:
    assert guard(work) == guard(work, release="again") == 0
    assert all((work / "release" / n).read_bytes() == (work / "again" / n).read_bytes() for n in names(work / "release"))


@pytest.mark.parametrize("case", ["not-empty", "inside", "no-outputs", "no-job", "file"])
def test_wrong_usage_is_status_2_and_writes_nothing(case: str, work: Path) -> None:
    (work / "release").mkdir()
    given = {"outputs": "outputs", "job": "job.json", "release": "release"}
    if case == "not-empty":
        (work / "release" / "old").write_text("x")
    given |= {"inside": {"release": "outputs/r"}, "no-outputs": {"outputs": "no"}, "no-job": {"job": "no"}}.get(case, {})
    if case == "file":
        given["release"] = "job.json"
    argv = [str(work / given["outputs"]), "--job", str(work / given["job"]), "--release", str(work / given["release"])]
    assert console("guard", *argv) == 2
    assert names(work / "release") == (["old"] if case == "not-empty" else [])
    assert names(work / "outputs") == ["metrics.json", "weights.safetensors"]


def test_the_sites_numbers_are_those_of_the_site_policy(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = work / "site.json"
    monkeypatch.setenv("RAPHA_SITE_POLICY_PATH", str(policy))
    policy.write_text('{"output": {"max_leak_bits": 10}}')
    assert guard(work, "--json") == 3
    assert json.loads(capsys.readouterr().out)["codes"] == ["output-leak-budget"]
    for odd in (
        '{"output": {"max_leek_bits": 10}}',
        "{}",
        "[]",
        "",
        '{"output": {"max_leak_bits": "10"}}',
        '{"output": {"mantissa_bits": 24}}',
        '{"output": []}',
    ):
        policy.write_text(odd)
        assert guard(work) == 2


def test_the_manifests_bounds_are_those_of_the_node(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    d = "sha256:" + "0" * 64
    manifest: dict[str, Any] = {
        "version": 1,
        "manifest_id": "m",
        "agreement_id": "a",
        "cohort": "chest",
        "projects": ["demo"],
        "purposes": ["research"],
        "consent": {"basis": "consent", "opt_outs_applied_at": 1},
        "scope": {"modalities": ["CR"], "body_parts": ["CHEST"], "date_from": "20240101", "date_to": "20241231"},
        "limits": {"max_records": 9, "min_patients": 1, "max_output_bytes": 100, "max_metrics": 1},
        "record_set": {"root": d, "count": 9, "patients": 9},
        "burned_in_checked": True,
        "issued_at": 1,
        "expires_at": 2,
        "version_number": 1,
    }
    (work / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setenv("RAPHA_DATASET_MANIFEST_PATH", str(work / "manifest.json"))
    assert guard(work, "--json") == 3
    assert json.loads(capsys.readouterr().out)["codes"] == ["metrics-too-many", "output-over-manifest"]
    monkeypatch.setenv("RAPHA_DATASET_MANIFEST_PATH", str(work / "none.json"))
    assert guard(work) == 2


def test_a_job_that_is_no_declaration_is_refused(work: Path) -> None:
    (work / "job.json").write_text("{}")
    assert guard(work) == 3


def test_a_receipt_verifies_with_the_pinned_key_and_not_with_one_byte_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(receipt())
    assert console("receipt", "verify", str(path)) == 2  # no key is pinned
    write_public(tmp_path / "keys" / "receipt.pem", KEY.public_key())
    capsys.readouterr()
    assert console("receipt", "verify", str(path), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert {name: said[name] for name in ("verdict", "gate", "codes", "mode")} == {
        "verdict": "cleared",
        "gate": "receipt",
        "codes": [],
        "mode": "development",
    }
    assert said["subject"].startswith("sha256:")
    assert said["statement"]["predicateType"] == "urn:rapha:training-receipt:v1"
    path.write_bytes(receipt().replace(b"\n", b" "))
    assert console("receipt", "verify", str(path), "--json") == 3
    refused = json.loads(capsys.readouterr().out)
    assert (refused["verdict"], refused["gate"], refused["codes"]) == ("refused", "receipt", ["receipt-malformed"])


def test_a_chain_that_does_not_answer_is_status_4(tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_bytes(receipt())
    write_public(tmp_path / "k.pem", KEY.public_key())
    argv = ["receipt", "verify", str(tmp_path / "receipt.json"), "--key", str(tmp_path / "k.pem")]
    assert console(*argv, "--rpc", "http://127.0.0.1:9") == 4
    assert console(*argv, "--rpc", "file:///etc/passwd") == 2
