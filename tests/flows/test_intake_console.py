"""`rapha job …` and `rapha ledger verify` as a person calls them: exit status, one JSON object, and a sentence."""

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cyclopts
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import flows.console.job
import rapha.console.job
import rapha.console.ledger
from blocks.ledger import Ledger
from blocks.register import Register
from blocks.settings import ALWAYS, FILES, URLS
from blocks.settings import NODE as NODE_NAMES
from policies.intake import IntakeLimits
from rapha.canonical import canonical, digest
from rapha.console.app import run
from rapha.declaration import read_declaration
from rapha.receipt import Predicate, sign_receipt
from rapha.sealed import recipient_key, seal_files, write_recipient
from rapha.signing import write_private, write_public
from tests.fixtures.intake import NODE, OTHER, OWNER, STRANGER, TEAM, document, job_of, signed
from tests.fixtures.receipts import KEY, predicate_document

URL = "http://127.0.0.1:9"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a node whose peers are all away; its folder."""
    for name in [name for name in os.environ if name.startswith("RAPHA_")]:
        monkeypatch.delenv(name)
    some_file = tmp_path / "file"
    some_file.write_text("x")
    site = tmp_path / "site.json"
    site.write_text(json.dumps({"intake": {"max_seconds": IntakeLimits().max_seconds}}))
    write_public(tmp_path / "trust" / "ai-teams" / OWNER / "team.pem", TEAM.public_key())
    kinds = {**dict.fromkeys(URLS, URL), **dict.fromkeys(FILES, str(some_file))}
    values = {name.removeprefix("RAPHA_"): kinds.get(name, "x") for name in (*ALWAYS, *NODE_NAMES)}
    values |= {
        "ENABLE_HOSPITAL_DATA_INTEGRATION": "false",
        "TEE_ATTESTATION_REQUIRED": "true",
        "DICOMWEB_STUDY_QUERY_JSON": '{"ModalitiesInStudy":"CT"}',
        "PHI_HMAC_KEY_BASE64": base64.b64encode(os.urandom(32)).decode(),
        "NODE_ID": NODE,
        "STATE_DIR": str(tmp_path / "state"),
        "KEYS_DIR": str(tmp_path / "keys"),
        "TRUST_DIR": str(tmp_path / "trust"),
        "SITE_POLICY_PATH": str(site),
        "CHAIN_ID": "1337",
        "VAULT_ADDRESS": "0x" + "1" * 40,
        "TOKEN_ADDRESS": "0x" + "2" * 40,
        "ORCHESTRATOR_TOKEN": "t" * 32,
        "WAN_INTERFACE": "b",
        "LAN_INTERFACES": "a",
    }
    for name, value in values.items():
        monkeypatch.setenv("RAPHA_" + name, value)
    return tmp_path


def console(*modules: Any) -> cyclopts.App:
    app = cyclopts.App(name="rapha", version_flags=[])
    for module in modules or (rapha.console.job, rapha.console.ledger, flows.console.job):
        module.register(app)
    return app


def said(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, dict[str, Any]]:
    """(exit status, the one JSON object on stdout)"""
    status = run(console(), [*map(str, argv), "--json"])
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, value


def submit(folder: Path, raw: bytes | None = None) -> tuple[Register, str]:
    raw = raw or signed()
    register = Register.at(folder / "state" / "register.sqlite")
    declaration, _, job = read_declaration(raw)
    register.submit(raw, declaration, job, declaration.owner, now=int(time.time()))
    return register, job


def test_two_modules_share_the_group_job_in_either_order(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = {"new", "sign", "check", "run", "status", "list", "retry", "cancel", "fetch"}
    for order in ((rapha.console.job, flows.console.job), (flows.console.job, rapha.console.job)):
        assert {name for name in console(*order)["job"] if not name.startswith("-")} == wanted
    assert "status" not in set(console(rapha.console.job)["job"])  # an AI team has no node


def test_new_and_sign_make_a_declaration_that_reads_strictly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, bundle = tmp_path / "job.json", tmp_path / "bundle.tar"
    bundle.write_bytes(b"tar")
    write_private(tmp_path / "team.key", TEAM)
    recipient = tmp_path / "team.x25519"
    argv = ("job", "new", path, "--node", NODE, "--owner", OWNER, "--workload", bundle, "--recipient-key", recipient)
    assert said(capsys, *argv)[0] == 0
    assert recipient.stat().st_mode & 0o077 == 0 and recipient_key(json.loads(path.read_bytes())["recipient"])
    status, data = said(capsys, "job", "sign", path, "--key", tmp_path / "team.key")
    declaration, value, job = read_declaration(path.read_bytes())
    assert (status, data["job"], declaration.owner, len(value["signatures"])) == (0, job, OWNER, 1)
    assert said(capsys, "job", "sign", path, "--key", tmp_path / "team.key")[1]["job"] == job  # again: one signature still
    assert len(read_declaration(path.read_bytes())[1]["signatures"]) == 1
    assert said(capsys, *argv)[0] == 2  # what exists is left alone
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":1,"version":1'))
    status, data = said(capsys, "job", "sign", path, "--key", tmp_path / "team.key")
    assert (status, data["codes"], data["gate"], data["verdict"]) == (3, ["json-duplicate-key"], "intake", "refused")
    assert said(capsys, "job", "sign", tmp_path / "none", "--key", tmp_path / "team.key")[0] == 2


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: signed(key=STRANGER), ["signature-untrusted"]),
        (lambda: signed(document(node="node-b")), ["node-differs"]),
        (lambda: signed(document(owner=OTHER), key=STRANGER), ["signature-untrusted"]),
        (lambda: signed(document(deadline=1)), ["deadline-passed"]),
        (lambda: b'{"a":1,"a":2}', ["json-duplicate-key"]),
    ],
)
def test_check_refuses_with_the_rules_code_and_touches_nothing(
    node: Path, capsys: pytest.CaptureFixture[str], make: Any, wanted: list[str]
) -> None:
    path = node / "job.json"
    path.write_bytes(make())
    before = sorted(node.rglob("*"))
    status, data = said(capsys, "job", "check", path)
    assert (status, data["verdict"], data["codes"]) == (3, "refused", wanted)
    assert data["subject"].startswith("sha256:") and data["side"] == "job" and data["error"]
    assert sorted(node.rglob("*")) == before


def test_check_goes_on_to_the_rehearsal(node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = node / "job.json"
    path.write_bytes(signed())
    monkeypatch.setattr(flows.console.job.Node, "open", lambda: None)
    monkeypatch.setattr(flows.console.job, "rehearse", lambda raw, node, admitted: ([], []))
    status, data = said(capsys, "job", "check", path)
    assert (status, data["verdict"], data["codes"], data["job"]) == (0, "cleared", [], job_of(path.read_bytes()))


def test_a_node_that_is_not_configured_says_what_is_missing(
    node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAPHA_NODE_ID")
    status, data = said(capsys, "job", "list")
    assert (status, data["codes"]) == (2, ["missing-node-id"])


def test_status_list_retry_and_cancel_speak_from_the_register(node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    register, job = submit(node)
    assert said(capsys, "job", "status", job)[1]["state"] == "submitted"
    lease = register.claim("w", int(time.time()), 60)
    assert lease
    register.finish(lease, "refused", ["attestation-quote-stale"], "node", now=int(time.time()))
    status, data = said(capsys, "job", "status", job)
    assert (status, data["state"], data["side"], data["codes"]) == (0, "refused", "node", ["attestation-quote-stale"])
    assert [(j["job"], j["owner"]) for j in said(capsys, "job", "list")[1]["jobs"]] == [(job, OWNER)]
    assert said(capsys, "job", "list", "--owner", OTHER)[1] == {"jobs": []}
    assert said(capsys, "job", "retry", job)[1]["state"] == "submitted"
    status, data = said(capsys, "job", "retry", job)
    assert (status, data["codes"]) == (3, ["retry-not-allowed"])
    assert said(capsys, "job", "cancel", job)[1]["state"] == "cancelled"
    for unknown in ("sha256:" + "0" * 64, "../x", "sha256:*"):
        assert said(capsys, "job", "status", unknown)[1]["codes"] == ["job-unknown"]


def test_fetch_opens_what_the_orchestrator_holds(
    node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipient = write_recipient(node / "team.x25519")
    register, job = submit(node, signed(document(recipient=recipient)))
    argv = ("job", "fetch", job, "--key", node / "team.x25519", "--out", node / "result")
    assert said(capsys, *argv)[1]["codes"] == ["job-not-done"]
    lease = register.claim("w", int(time.time()), 60)
    assert lease
    register.finish(lease, "done", now=int(time.time()))
    assert said(capsys, *argv)[0] == 4  # nobody answers there
    root, token = node / "orchestrator", os.environ["RAPHA_ORCHESTRATOR_TOKEN"]
    command = [sys.executable, "-m", "infra.orchestrator", "--root", str(root), "--token", token]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        base = f"http://127.0.0.1:{process.stdout.readline().split()[1]}"
        process.stdout.readline()
        monkeypatch.setenv("RAPHA_ORCHESTRATOR_API_BASE", base)
        assert said(capsys, *argv)[1]["codes"] == ["orchestrator-blob-missing"]
        content = {"metrics.json": b'{"accuracy":0.5}', "weights.safetensors": b"weights"}
        sealed = node / "sealed"
        with sealed.open("wb") as stream:
            seal_files(content, recipient_key(recipient), stream, job=job, attempt=1)
        peer = flows.console.job.Orchestrator(base, token)
        peer.put(job, 1, "result", sealed)
        assert said(capsys, *argv)[1]["codes"] == ["orchestrator-blob-missing"]  # a result without its receipt
        write_private(node / "keys" / "receipt.key", KEY)
        stored = root / "jobs" / job.removeprefix("sha256:") / "1" / "receipt"
        left = {"sealed-result": digest(sealed.read_bytes()), **{name: digest(raw) for name, raw in content.items()}}
        for changes, names, code in (
            ({"job": job_of(signed(document(deadline=4_000_000_000)))}, left, "receipt-other-job"),
            ({"attempt": 2}, left, "receipt-other-attempt"),
            ({"mode": "production"}, left, "receipt-other-attempt"),
            ({}, {**left, "sealed-result": digest(b"another")}, "receipt-other-output"),
            ({}, {**left, "metrics.json": digest(b"another")}, "receipt-other-output"),
        ):
            predicate = Predicate.model_validate_json(canonical(predicate_document(**{"job": job, **changes})))
            stored.write_bytes(sign_receipt(predicate, names, KEY))
            assert said(capsys, *argv)[1]["codes"] == [code] and not (node / "result").exists()
        predicate = Predicate.model_validate_json(canonical(predicate_document(job=job)))
        stored.write_bytes(sign_receipt(predicate, left, TEAM))
        assert said(capsys, *argv)[1]["codes"] == ["receipt-key"] and not (node / "result").exists()
        stored.write_bytes(sign_receipt(predicate, left, KEY))
        status, data = said(capsys, *argv)
        assert (status, data["job"], data["attempt"]) == (0, job, 1)
        assert {name: (node / "result" / name).read_bytes() for name in content} == content
        write_recipient(node / "other.x25519")
        wrong = ("job", "fetch", job, "--key", node / "other.x25519", "--out", node / "wrong")
        assert said(capsys, *wrong)[1]["codes"] == ["sealed-not-for-this-key"] and not (node / "wrong").exists()
    finally:
        process.kill()
        process.wait()


def test_run_without_an_engine_is_a_matter_of_configuration(
    node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (node / "job.json").write_bytes(signed())
    status, data = said(capsys, "job", "run", node / "job.json")
    assert (status, data["codes"]) == (2, ["missing-prefect-api-url"])
    assert said(capsys, "job", "list")[1] == {"jobs": []}  # and nothing is owed


def test_a_flow_that_a_person_starts_does_not_have_the_pseudonym_key(
    node: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"{URL}/api")
    (node / "job.json").write_bytes(signed())
    had: list[bool] = []
    monkeypatch.setattr("flows.console.job.engine_answers", lambda _: None)
    monkeypatch.setattr(
        "flows.training.train", lambda job: had.append("RAPHA_PHI_HMAC_KEY_BASE64" in os.environ) or {"state": "x"}
    )
    said(capsys, "job", "run", node / "job.json")
    assert had == [False]


def test_ledger_verify_names_the_first_bad_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = Ed25519PrivateKey.generate()
    ledger = Ledger.create(tmp_path / "ledger", key, "test")
    for n in range(4):
        ledger.append("mark", {"n": n})
    write_public(tmp_path / "ledger.pem", key.public_key())
    write_public(tmp_path / "other.pem", TEAM.public_key())
    good = ("ledger", "verify", ledger.folder, "--key", tmp_path / "ledger.pem")
    status, data = said(capsys, *good)
    assert (status, data["ok"], data["entries"], data["verdict"], data["key"]) == (0, True, 4, "cleared", "given")
    assert said(capsys, "ledger", "verify", ledger.folder)[1]["key"] == "own"
    status, data = said(capsys, "ledger", "verify", ledger.folder, "--key", tmp_path / "other.pem")
    assert (status, data["kind"], data["codes"]) == (3, "unsigned", ["ledger-unsigned"])
    entries = ledger.folder / "entries.jsonl"
    entries.write_bytes(entries.read_bytes().replace(b'"n":2', b'"n":7'))
    status, data = said(capsys, *good)
    assert (status, data["kind"], data["first_bad"], data["verdict"]) == (3, "edited", 2, "refused")
    assert said(capsys, "ledger", "verify", tmp_path / "none")[0] == 3
    assert said(capsys, "ledger", "verify", ledger.folder, "--key", tmp_path / "none.pem")[0] == 2
    assert run(console(), ["ledger", "verify", str(ledger.folder)]) == 3
    assert "first bad entry 2" in capsys.readouterr().out


def test_ledger_verify_finds_the_nodes_own_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger.create(tmp_path / "ledger", Ed25519PrivateKey.generate(), "test")
    monkeypatch.setenv("RAPHA_STATE_DIR", str(tmp_path))
    assert said(capsys, "ledger", "verify")[0] == 0
