"""Attacks on the decision (A01 to A05, A09, A10, A15): a server that fails, lies or drips, an engine that misreads."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from blocks.opa import OpaServer, PolicyEngine, RegoEngine, read_documents
from policies.policy import PolicyLimits
from rapha.errors import ConfigurationError, PeerError, Refusal
from tasks.gate import Cleared
from tasks.training.policy import policy
from tests.fixtures.intake import attempt
from tests.fixtures.policy import (
    FACTS,
    HOSPITAL,
    LIMITS,
    MANIFEST,
    WORKLOAD,
    Shaped,
    asked,
    documents,
    dripping,
    intent,
    on_post,
    opa_shaped,
    send,
)

TEXTS = documents()


def decide(
    folder: Path, engine: PolicyEngine, manifest: Any = MANIFEST, limits: PolicyLimits = LIMITS, **changes: Any
) -> Cleared[Any]:
    """The stage, at the fixtures' time."""
    made = attempt(folder, FACTS["job"], nonce=FACTS["nonce"])
    made = replace(made, clock=lambda: FACTS["at"], **changes)
    before: Any = SimpleNamespace(subject=WORKLOAD.subject)
    return policy(before, made, manifest, WORKLOAD, engine, limits, outside_line="portB")


def codes(folder: Path, engine: PolicyEngine, **changes: Any) -> tuple[str, ...]:
    try:
        decide(folder, engine, **changes)
    except Refusal as refusal:
        assert refusal.gate == "policy"
        return refusal.codes
    return ()


def server(shaped: Shaped, texts: dict[str, str] | None = None) -> OpaServer:
    return OpaServer(shaped.url, TEXTS if texts is None else texts, timeout=0.5)


def test_both_engines_allow_what_may_be(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert decide(tmp_path / "a", RegoEngine(TEXTS)).evidence.engine == "regopy"
    with opa_shaped(TEXTS) as shaped:
        assert decide(tmp_path / "b", server(shaped)).evidence.engine == "opa"


def test_both_engines_refuse_with_the_same_code(tmp_path: Path) -> None:
    facts = asked(intent(max_records=901))
    with opa_shaped(TEXTS) as shaped:
        ours, theirs = RegoEngine(TEXTS).decide(facts), server(shaped).decide(facts)
    assert ours.reasons == theirs.reasons == ("rego-dataset-too-many-records",)
    assert ours.documents == theirs.documents
    assert codes(tmp_path, RegoEngine(TEXTS), manifest=intent(max_records=901)) == ("rego-dataset-too-many-records",)


def test_A01_nobody_listens(tmp_path: Path) -> None:
    with opa_shaped(TEXTS) as shaped:
        gone = server(shaped)
    with pytest.raises(PeerError) as error:
        decide(tmp_path, gone)
    assert error.value.codes == ("opa-unreachable",)


@pytest.mark.parametrize("status", [201, 204, 302, 400, 404, 500, 503])
def test_A01_an_error_status(tmp_path: Path, status: int) -> None:
    with opa_shaped(TEXTS) as shaped:
        shaped.odd = on_post(b'{"result": true}', status)
        with pytest.raises(PeerError):
            decide(tmp_path, server(shaped))


def test_A01_a_server_that_does_not_answer_in_time(tmp_path: Path) -> None:
    with opa_shaped(TEXTS) as shaped:
        shaped.odd = lambda h: time.sleep(1.5) or True if h.command == "POST" else False  # type: ignore[func-returns-value]
        began = time.monotonic()
        with pytest.raises(PeerError):
            decide(tmp_path, server(shaped))
        assert time.monotonic() - began < 1.4


def test_A01_a_server_that_drips(tmp_path: Path) -> None:
    with opa_shaped(TEXTS) as shaped:
        shaped.odd = dripping
        began = time.monotonic()
        with pytest.raises(PeerError):
            decide(tmp_path, server(shaped))
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("body", [b"", b"allow", b"{", b"[]", b"null", b'"true"', b"true"])
def test_A02_an_answer_that_is_no_json_object(tmp_path: Path, body: bytes) -> None:
    with opa_shaped(TEXTS) as shaped:
        shaped.odd = on_post(body)
        assert codes(tmp_path, server(shaped)) == ("policy-odd-answer",)


def test_A03_an_undefined_decision(tmp_path: Path) -> None:
    with opa_shaped(TEXTS) as shaped:
        shaped.odd = on_post(b"{}")
        assert "policy-undefined" in codes(tmp_path, server(shaped))


@pytest.mark.parametrize("value", ["yes", "true", 1, 1.0, [], [True], {"allow": "false"}, {"allow": True}, ""])
def test_A05_an_answer_that_is_only_truthy(tmp_path: Path, value: Any) -> None:
    with opa_shaped(TEXTS) as shaped:
        shaped.odd = on_post(json.dumps({"result": value}).encode())
        assert "policy-odd-answer" in codes(tmp_path, server(shaped))


@pytest.mark.parametrize("reasons", [b"{}", b'{"result": "none"}', b'{"result": [1]}', b'{"result": {"a": 1}}'])
def test_A05_reasons_that_are_no_list_of_codes(tmp_path: Path, reasons: bytes) -> None:
    with opa_shaped(TEXTS) as shaped:
        shaped.odd = on_post(reasons, only="reasons")
        assert "policy-odd-answer" in codes(tmp_path, server(shaped))


def test_A05_true_with_reasons_is_no_pass(tmp_path: Path) -> None:
    with opa_shaped(TEXTS) as shaped:
        shaped.odd = on_post(b'{"result": ["rego-network-sandbox"]}', only="reasons")
        assert codes(tmp_path, server(shaped)) == ("rego-network-sandbox",)


@pytest.mark.parametrize("change", ["edit", "remove", "add"])
def test_A09_a_server_that_holds_other_documents(tmp_path: Path, change: str) -> None:
    with opa_shaped(TEXTS) as shaped:
        if change == "edit":
            shaped.policies["rapha/network"] = shaped.policies["rapha/network"].replace('== "none"', '!= "x"')
        elif change == "remove":
            del shaped.policies["rapha/network"]
        else:
            shaped.policies["extra"] = "package rapha\nimport rego.v1\nallow if { true }\n"
        assert "policy-documents-changed" in codes(tmp_path, server(shaped))


def test_A09_documents_swapped_between_decision_and_check(tmp_path: Path) -> None:
    with opa_shaped(TEXTS) as shaped:

        def swap(handler: Any) -> bool:
            if handler.command == "POST":
                shaped.policies["extra"] = "package extra\nimport rego.v1\n"
                return send(handler, b'{"result": true}' if handler.path.endswith("allow") else b'{"result": []}')
            return False

        shaped.odd = swap
        assert "policy-documents-changed" in codes(tmp_path, server(shaped))


def test_A10_facts_of_another_attempt_are_not_put_to_the_engine(tmp_path: Path) -> None:
    assert codes(tmp_path, RegoEngine(TEXTS), nonce="cd" * 32) == ("policy-unbound",)


def test_A10_a_decision_replayed_for_another_attempt(tmp_path: Path) -> None:
    old = RegoEngine(TEXTS).decide(asked())
    replayed: Any = SimpleNamespace(documents=old.documents, decide=lambda facts: replace(old, reasons=("rego-binding",)))
    assert codes(tmp_path, replayed) == ("rego-binding",)


@pytest.mark.parametrize("rule", ['http.send({"url": "http://127.0.0.1"})', "opa.runtime().env", 'net.lookup_ip_addr("x")'])
def test_A15_a_hospital_policy_that_reaches_out_is_not_loaded(tmp_path: Path, rule: str) -> None:
    path = tmp_path / "h.rego"
    path.write_text(f"package hospital\nimport rego.v1\ndefault allow := false\nallow if {{ {rule} }}\n")
    with pytest.raises(ConfigurationError) as error:
        read_documents(path)
    assert error.value.codes == ("policy-forbidden-builtin",)


def test_a_hospital_policy_may_only_narrow(tmp_path: Path) -> None:
    path = tmp_path / "h.rego"
    path.write_text("package hospital\nimport rego.v1\nallow := true\n")
    generous = RegoEngine(read_documents(path))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert codes(tmp_path / "a", generous, manifest=intent(metrics=9)) == ("rego-output-too-many-metrics",)
    path.write_text("package hospital\nimport rego.v1\ndefault allow := false\nallow if input.manifest.intent.max_records < 10\n")
    assert codes(tmp_path / "b", RegoEngine(read_documents(path))) == ("hospital-policy-refused",)


@pytest.mark.parametrize("value", ['"yes"', "1", "[]", '{"allow": true}', "null"])
def test_A05_a_hospital_policy_that_is_only_truthy(tmp_path: Path, value: str) -> None:
    path = tmp_path / "h.rego"
    path.write_text(f"package hospital\nimport rego.v1\nallow := {value}\n")
    assert "hospital-policy-refused" in codes(tmp_path, RegoEngine(read_documents(path)))


@pytest.mark.parametrize(
    "text", ["package hospital\nimport rego.v1\nallow if {", "package hospital\nimport rego.v1\nallow := nosuch(1)\n"]
)
def test_a_hospital_policy_that_does_not_compile(tmp_path: Path, text: str) -> None:
    path = tmp_path / "h.rego"
    path.write_text(text)
    try:
        engine = RegoEngine(read_documents(path))
    except ConfigurationError as error:
        assert error.codes == ("policy-does-not-compile",)
        return
    assert codes(tmp_path, engine) != ()


@pytest.mark.parametrize(
    "value",
    [2**64, 2**53 + 1, -(2**63), "good\0evil", 'x"], "allow": true, "z": ["', "a\\b", "\x7f", "\ud800", 0.5, float("nan"), b"x"],
)
def test_A03_what_engines_read_in_different_ways_is_not_put_to_them(value: Any) -> None:
    facts = asked()
    facts["manifest"]["cohort"] = value
    with pytest.raises(Refusal) as error:
        RegoEngine(TEXTS).decide(facts)
    assert error.value.codes == ("policy-undecidable",)


def test_one_engine_between_threads_never_mixes_answers() -> None:
    engine, wrong = RegoEngine(TEXTS), []

    def ask(facts: dict[str, Any], expected: tuple[str, ...]) -> None:
        wrong.extend(1 for _ in range(60) if engine.decide(facts).reasons != expected)

    good, bad = asked(), asked(intent(metrics=9))
    pair = [(good, ()), (bad, ("rego-output-too-many-metrics",))]
    threads = [threading.Thread(target=ask, args=p) for p in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_publishing_does_not_let_a_document_be_rewritten() -> None:
    with opa_shaped() as shaped:
        server(shaped).publish()
        assert shaped.policies == TEXTS
        assert server(shaped).loaded() == server(shaped).documents
        old = {"rapha/old": 'package rapha\ndeny["x"] { true }\n'}
        with pytest.raises(PeerError) as error:
            server(shaped, old).publish()
        assert error.value.codes == ("opa-rejects-policy",)
        assert [call for call in shaped.calls if call[1].endswith("rapha/old")] == [("PUT", "/v1/policies/rapha/old")]


@pytest.mark.parametrize("url", ["", "opa:8181", "ftp://x", "http://", "http://x/v1/data"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigurationError):
        OpaServer(url, TEXTS)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"  \n"])
def test_A06_an_empty_or_unreadable_hospital_policy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "h.rego"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError):
        read_documents(path)
    with pytest.raises(ConfigurationError):
        read_documents(tmp_path / "absent.rego")


@pytest.mark.opa_server
def test_a_real_opa_server_decides_as_the_engine_in_this_process(tmp_path: Path) -> None:
    """Needs RAPHA_TEST_OPA_URL: an OPA of version 1 with nothing else loaded. Never run where this was written."""
    real = OpaServer(os.environ["RAPHA_TEST_OPA_URL"], read_documents(HOSPITAL))
    real.publish()
    for facts in (asked(), asked(intent(metrics=9)), {}):
        ours, theirs = RegoEngine(TEXTS).decide(facts), real.decide(facts)
        assert (ours.allow, ours.reasons, ours.hospital, ours.documents) == (
            theirs.allow,
            theirs.reasons,
            theirs.hospital,
            theirs.documents,
        )
