"""The policy engine: Rego in this process (regopy behind a guard), or an OPA server over its REST API.

One interface, one set of documents.

Whatever is odd is an answer that allows nothing; a server that cannot be asked is a `PeerError`.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import requests
from opa_client.errors import RegoParseError, TypeException
from opa_client.opa import OpaClient
from regopy import Input, Interpreter, NodeKind, RegoError

from policies.policy import HOSPITAL, OURS, Answer, Decision, answer_of, document_codes, documents_digest
from rapha.canonical import digest, digest_of
from rapha.errors import ConfigurationError, PeerError, Refusal

OUR_DOCUMENTS = Path(__file__).resolve().parent.parent / "policies" / "rego"
MAX_DOCUMENT = 256 * 1024
MAX_REASONS = 64
_LARGEST = 2**53


class PolicyEngine(Protocol):
    """What the policy stage asks. `documents`: digest of the documents that this engine is meant to decide by."""

    name: str
    documents: str

    def decide(self, facts: Mapping[str, Any]) -> Decision:
        """The decision on `facts`. Raises `PeerError` when the engine cannot be asked, `Refusal` for facts that cannot be put."""


def read_documents(hospital: Path | None) -> dict[str, str]:
    """name -> text of the node's own documents and, as `hospital`, the hospital's. Raises `ConfigurationError` policy-…."""
    documents = {f"{OURS}/{path.stem}": _text(path) for path in sorted(OUR_DOCUMENTS.glob("*.rego"))}
    if not documents:
        raise ConfigurationError(["policy-missing"], "the node's own Rego documents are not there")
    for text in documents.values():
        _admit(text, OURS)
    if hospital is not None:
        documents[HOSPITAL] = _text(hospital)
        _admit(documents[HOSPITAL], HOSPITAL)
    return documents


def _admit(text: str, package: str) -> None:
    codes = document_codes(text, package)
    if codes:
        raise ConfigurationError(list(codes), f"a Rego document of package {package} may not be loaded")


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        if not raw.strip() or len(raw) > MAX_DOCUMENT:
            raise ConfigurationError(["policy-unreadable"], f"{path}: empty or too large for a Rego document")
        return raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            ["policy-unreadable"], f"{path}: not a readable Rego document ({type(error).__name__})"
        ) from None


def check_facts(value: object, depth: int = 0) -> None:
    """Refuses what an engine could read otherwise than we wrote it: NUL, quotes, backslashes, control characters, integers beyond
    2^53, floats, deep nesting. regopy 1.5.2 wraps large integers, stops strings at NUL and does not escape its output."""
    if depth > 16:
        raise _undecidable()
    if isinstance(value, str):
        if any(c in '"\\' or ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000 for c in value):
            raise _undecidable()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _undecidable()
            check_facts(key, depth + 1)
            check_facts(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_facts(item, depth + 1)
    elif value is not None and not isinstance(value, bool) and not (isinstance(value, int) and abs(value) <= _LARGEST):
        raise _undecidable()


def _undecidable() -> Refusal:
    return Refusal(["policy-undecidable"], "a fact has a form that engines read in different ways", gate="policy")


class RegoEngine:
    """Rego in this process. Safe between threads: one decision at a time."""

    name = "regopy"

    def __init__(self, documents: Mapping[str, str]) -> None:
        self._texts = dict(documents)
        self.documents = documents_digest(self._texts)
        self._lock = threading.Lock()
        self._wanted = [f"{OURS}/allow", f"{OURS}/reasons", *([f"{HOSPITAL}/allow"] if HOSPITAL in self._texts else [])]
        try:
            self._engine = Interpreter()
            self._engine.strict_built_in_errors = True
            for name in sorted(self._texts):
                self._engine.add_module(name, self._texts[name])
            self._bundle = self._engine.build(None, self._wanted)
            compiled = self._bundle.ok()
        except (RegoError, ValueError):
            compiled = False
        if not compiled:
            raise ConfigurationError(["policy-does-not-compile"], "the Rego documents do not compile")

    def decide(self, facts: Mapping[str, Any]) -> Decision:
        check_facts(facts)
        with self._lock:
            self._engine.set_input(Input(dict(facts)))
            allow = self._boolean(f"{OURS}/allow")
            reasons = self._reasons()
            hospital: Answer = self._boolean(f"{HOSPITAL}/allow") if HOSPITAL in self._texts else "undefined"
        return Decision(
            engine=self.name,
            allow=allow if reasons is not None else "odd",
            reasons=reasons or (),
            hospital=hospital,
            documents=self.documents,
            hospital_document=digest(self._texts[HOSPITAL].encode()) if HOSPITAL in self._texts else "",
            id=decision_id(facts, self.documents),
        )

    def _value(self, entry: str) -> object:
        """An entry point's answer: a boolean, a list of strings, None for undefined, `_ODD` for all else.

        It is taken apart while `output` lives: a node of a collected output is freed memory (regopy 1.5.2).
        """
        try:
            output = self._engine.query_bundle_entrypoint(self._bundle, entry)
            if not output.ok():
                return None
            expressions = output.expressions()
            return _plain(expressions.index(0)) if len(expressions) == 1 else _ODD
        except (RegoError, ValueError, IndexError, KeyError, TypeError, AttributeError):
            return None

    def _boolean(self, entry: str) -> Answer:
        return answer_of(self._value(entry))

    def _reasons(self) -> tuple[str, ...] | None:
        found = self._value(f"{OURS}/reasons")
        return _strings(found) if isinstance(found, list) else None


_ODD = object()


def _plain(node: Any) -> object:
    """A node's value, read by node and never from the output's text, which regopy does not escape."""
    while node.kind in {NodeKind.Term, NodeKind.Scalar}:
        node = node.at(0)
    if node.kind == NodeKind.Array:
        return [_plain(node.index(i)) for i in range(min(len(node), MAX_REASONS + 1))]
    if node.kind == NodeKind.Undefined:
        return None
    return node.value if node.kind in {NodeKind.Boolean, NodeKind.String} else _ODD


class OpaServer:
    """An OPA server that holds the same documents: compared before and after each decision, so that none was decided by others.

    url: http(s)://host:port; token: bearer token or None; timeout: seconds for each call. No retries here.
    """

    name = "opa"

    def __init__(self, url: str, documents: Mapping[str, str], *, token: str | None = None, timeout: float = 2.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path not in {"", "/"}:
            raise ConfigurationError(["opa-url"], "RAPHA_OPA_URL is not http(s)://host:port")
        self._texts = dict(documents)
        self.documents = documents_digest(self._texts)
        port = parts.port or (443 if parts.scheme == "https" else 8181)
        self._client = OpaClient(parts.hostname, port, "v1", parts.scheme == "https", token=token, retries=0, timeout=timeout)
        self._client._session.trust_env = False  # no proxy, no .netrc
        self._client._session.max_redirects = 0  # another address is another party
        self._client._session.hooks["response"].append(_only_200)
        self._patience = 2 * timeout

    def publish(self) -> None:
        """Uploads the documents as they are; a server that would have them rewritten refuses them."""
        for name, text in self._texts.items():
            try:
                self._client.update_policy_from_string(text, name, rego_compat=False)
            except (requests.exceptions.RequestException, RegoParseError, TypeException) as error:
                raise PeerError(
                    "opa-rejects-policy", f"OPA did not take a document ({type(error).__name__})", peer="opa"
                ) from None

    def loaded(self) -> str:
        """Digest of every document that the server holds now; a foreign one makes it another."""
        answer = self._get("policies")
        rows = answer.get("result")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            return ""
        texts = {row.get("id"): row.get("raw") for row in rows}
        if len(texts) != len(rows) or not all(isinstance(k, str) and isinstance(v, str) for k, v in texts.items()):
            return ""
        return documents_digest({str(name).strip("/"): str(text) for name, text in texts.items()})

    def decide(self, facts: Mapping[str, Any]) -> Decision:
        check_facts(facts)
        before = self.loaded()
        allow = self._query(facts, OURS, "allow")
        reasons = self._query(facts, OURS, "reasons")
        hospital = self._query(facts, HOSPITAL, "allow") if HOSPITAL in self._texts else {}
        after = self.loaded()
        codes = _strings(reasons["result"]) if isinstance(reasons.get("result"), list) else None
        given = allow.get("decision_id")
        return Decision(
            engine=self.name,
            allow=answer_of(allow.get("result")) if codes is not None or answer_of(allow.get("result")) != "true" else "odd",
            reasons=codes or (),
            hospital=answer_of(hospital.get("result")),
            documents=before if before == after else "",
            hospital_document=digest(self._texts[HOSPITAL].encode()) if HOSPITAL in self._texts else "",
            id=given if isinstance(given, str) and 0 < len(given) <= 64 else decision_id(facts, self.documents),
        )

    def _query(self, facts: Mapping[str, Any], package: str, rule: str) -> dict[str, Any]:
        return self._object(lambda: self._client.query_rule(dict(facts), package, rule))

    def _get(self, what: str) -> dict[str, Any]:
        def ask() -> Any:
            response = self._client._session.get(f"{self._client.root_url}/{what}", timeout=self._client.timeout)
            response.raise_for_status()
            return response.json()

        return self._object(ask)

    def _object(self, ask: Any) -> dict[str, Any]:
        """An answer as a JSON object; anything that is not one allows nothing."""
        try:
            answer = _within(self._patience, ask)
        except requests.exceptions.JSONDecodeError:
            raise Refusal(["policy-odd-answer"], "OPA's answer is not JSON", gate="policy") from None
        except requests.exceptions.RequestException as error:
            raise PeerError("opa-unreachable", f"OPA could not be asked ({type(error).__name__})", peer="opa") from None
        if not isinstance(answer, dict):
            raise Refusal(["policy-odd-answer"], "OPA's answer is not a JSON object", gate="policy")
        return answer


def _only_200(response: requests.Response, **_: Any) -> None:
    """The client library takes every status under 400 for an answer; publishing reads the 400s itself."""
    if response.status_code != 200 and not (response.request.method == "PUT" and response.status_code == 400):
        raise requests.exceptions.HTTPError()


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """What `ask` returns or raises, or `requests` Timeout: its own time-out is for each read, and a server can drip for hours."""
    box: queue.Queue[tuple[Any, Exception | None]] = queue.Queue()

    def run() -> None:
        try:
            box.put((ask(), None))
        except requests.exceptions.RequestException as error:
            box.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = box.get(timeout=seconds)
    except queue.Empty:
        raise requests.exceptions.Timeout() from None
    if error is not None:
        raise error
    return answer


def decision_id(facts: Mapping[str, Any], documents: str) -> str:
    """The name of a decision where the engine gives none: of its input (which holds job, attempt and nonce) and its documents."""
    return digest_of({"input": digest_of(dict(facts)), "documents": documents})


def _strings(found: list[Any]) -> tuple[str, ...] | None:
    if len(found) > MAX_REASONS or not all(isinstance(item, str) and 0 < len(item) <= 64 for item in found):
        return None
    return tuple(sorted({item.strip('"') for item in found}))
