"""The webhook as the process that a node runs: what it takes in, what it refuses, and what it tells to whom."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from blocks.register import Register
from infra.webhook.app import Desk, build
from infra.webhook.signature import Key, load_keys
from rapha.declaration import MAX_DECLARATION
from rapha.errors import ConfigurationError, PeerError
from rapha.signing import write_public
from tests.fixtures.intake import (
    LIMITS,
    NODE,
    OTHER,
    OWNER,
    OWNER_KEYS,
    STRANGER,
    TEAM,
    document,
    headers,
    job_of,
    keys_file,
    signed,
)

SECRET, OTHER_SECRET = b"a" * 32, b"b" * 32
PATH = "/rapha/hook"


@dataclass
class Hook:
    url: str
    register: Register
    process: subprocess.Popen[str]

    def post(self, body: bytes, secret: bytes = SECRET, *, send: dict[str, str] | None = None, **how: Any) -> httpx.Response:
        return httpx.post(self.url + PATH, content=body, headers=headers(secret, body, **how) if send is None else send)

    def get(self, job: str, secret: bytes = SECRET, **how: Any) -> httpx.Response:
        return httpx.get(f"{self.url}{PATH}/jobs/{job}", headers=headers(secret, b"", **how))


@contextmanager
def serving(folder: Path) -> Iterator[Hook]:
    keys = keys_file(folder / "keys.json", {"key-a": (OWNER, SECRET), "key-b": (OTHER, OTHER_SECRET)})
    write_public(folder / "teams" / OWNER / "team.pem", TEAM.public_key())
    write_public(folder / "teams" / OTHER / "team.pem", STRANGER.public_key())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    register = f"sqlite:///{folder / 'register.sqlite'}"
    command = [sys.executable, "-m", "infra.webhook", "--port", str(port), "--path", PATH, "--register", register]
    command += ["--keys", str(keys), "--teams", str(folder / "teams"), "--node-id", NODE, "--mode", "development"]
    # Where no engine answers: the event cannot be sent, and the answers must not depend on it.
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout and process.stdout.readline() == "ready\n"
        yield Hook(f"http://127.0.0.1:{port}", Register(register), process)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hook]:
    with serving(tmp_path_factory.mktemp("webhook")) as served:
        yield served


def codes(answer: httpx.Response, status: int) -> list[str]:
    assert answer.status_code == status, answer.text
    said: dict[str, list[str]] = answer.json()
    assert set(said) == {"codes"}
    return said["codes"]


def test_a_job_is_taken_in_once_and_shown_to_its_owner(hook: Hook) -> None:
    raw = signed()
    first, again = hook.post(raw), hook.post(raw)
    assert (first.status_code, again.status_code) == (202, 202)
    assert first.json() == again.json() == {"job": job_of(raw)}
    assert hook.register.document(job_of(raw)) == raw
    shown = hook.get(job_of(raw)).json()
    assert (shown["job"], shown["state"], shown["codes"], shown["attempt"]) == (job_of(raw), "submitted", [], 0)


def test_it_stops_soon_when_it_is_told_to_even_with_an_event_unsent(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        assert served.post(signed()).status_code == 202
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(timeout=20) in (0, -signal.SIGTERM)


def test_the_row_is_durable_before_the_answer(tmp_path: Path) -> None:
    raw = signed()
    with serving(tmp_path) as served:
        assert served.post(raw).status_code == 202
        os.kill(served.process.pid, signal.SIGKILL)
        served.process.wait()
    found = Register.at(tmp_path / "register.sqlite").status(job_of(raw))
    assert found is not None and found.state == "submitted"


def test_A13_another_tenant_sees_what_an_unknown_job_shows(hook: Hook) -> None:
    raw = signed()
    assert hook.post(raw).status_code == 202
    theirs = hook.get(job_of(raw), OTHER_SECRET, key_id="key-b")
    nobodys = hook.get("sha256:" + "0" * 64, OTHER_SECRET, key_id="key-b")
    assert codes(theirs, 404) == codes(nobodys, 404) == ["job-unknown"]
    assert theirs.content == nobodys.content
    assert codes(hook.get("..%2f..%2fetc"), 404) in (["job-unknown"], ["webhook-path"])


def test_A13_another_tenant_cannot_send_an_owners_declaration(hook: Hook) -> None:
    raw = signed()
    assert "owner-mismatch" in codes(hook.post(raw, OTHER_SECRET, key_id="key-b"), 403)
    assert hook.register.status(job_of(raw)) is None


def test_a_replayed_call_is_refused_and_so_is_its_nonce_on_another(hook: Hook) -> None:
    raw = signed()
    sent = headers(SECRET, raw)
    assert hook.post(raw, send=sent).status_code == 202
    assert codes(hook.post(raw, send=sent), 401) == ["webhook-replayed"]
    nonce = sent["Rapha-Nonce"]
    assert codes(hook.get(job_of(raw), nonce=nonce), 401) == ["webhook-replayed"]
    assert hook.get(job_of(raw), OTHER_SECRET, key_id="key-b", nonce=nonce).status_code == 404  # another key's nonces are its own


def test_a_nonce_stays_spent_when_the_webhook_starts_again(tmp_path: Path) -> None:
    raw = signed()
    sent = headers(SECRET, raw)
    with serving(tmp_path) as served:
        assert served.post(raw, send=sent).status_code == 202
    with serving(tmp_path) as served:
        assert codes(served.post(raw, send=sent), 401) == ["webhook-replayed"]


@pytest.mark.parametrize("offset", [-302, 302, -86400, 10**9])
def test_a_call_outside_the_window_is_refused(hook: Hook, offset: int) -> None:
    assert codes(hook.post(signed(), at=int(time.time()) + offset), 401) == ["webhook-stale"]


@pytest.mark.parametrize("offset", [-295, 295])
def test_a_call_inside_the_window_is_taken(hook: Hook, offset: int) -> None:
    assert hook.post(signed(), at=int(time.time()) + offset).status_code == 202


def test_a_stale_call_does_not_spend_its_nonce_and_a_forged_one_neither(hook: Hook) -> None:
    raw, nonce = signed(), "n" * 40
    assert codes(hook.post(raw, at=int(time.time()) - 999, nonce=nonce), 401) == ["webhook-stale"]
    assert codes(hook.post(raw, b"x" * 32, nonce=nonce), 401) == ["webhook-unauthorised"]
    assert hook.post(raw, nonce=nonce).status_code == 202


FORGED = {
    "wrong secret": lambda s, raw: headers(b"x" * 32, raw),
    "unknown key": lambda s, raw: headers(SECRET, raw, key_id="key-z"),
    "another tenant's key": lambda s, raw: headers(SECRET, raw, key_id="key-b"),
    "signed another body": lambda s, raw: headers(SECRET, raw + b" "),
    "signed an empty body": lambda s, raw: headers(SECRET, b""),
    "another timestamp": lambda s, raw: s | {"Rapha-Timestamp": str(int(s["Rapha-Timestamp"]) + 1)},
    "leading zeros": lambda s, raw: s | {"Rapha-Timestamp": "0" + s["Rapha-Timestamp"]},
    "another nonce": lambda s, raw: s | {"Rapha-Nonce": s["Rapha-Nonce"] + "x"},
    "one digit": lambda s, raw: (
        s | {"Rapha-Signature": ("0" if s["Rapha-Signature"][0] != "0" else "1") + s["Rapha-Signature"][1:]}
    ),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_call_is_refused_and_leaves_nothing(hook: Hook, name: str) -> None:
    raw = signed()
    answer = hook.post(raw, send=FORGED[name](headers(SECRET, raw), raw))
    assert codes(answer, 401) == ["webhook-unauthorised"]
    assert hook.register.status(job_of(raw)) is None


MALFORMED = {
    "no headers": lambda s: {},
    "no signature": lambda s: {k: v for k, v in s.items() if k != "Rapha-Signature"},
    "short signature": lambda s: s | {"Rapha-Signature": s["Rapha-Signature"][:-1]},
    "capital digits": lambda s: s | {"Rapha-Signature": "A" * 64},
    "short nonce": lambda s: s | {"Rapha-Nonce": "n" * 15},
    "long nonce": lambda s: s | {"Rapha-Nonce": "n" * 129},
    "negative time": lambda s: s | {"Rapha-Timestamp": "-1"},
    "fractional time": lambda s: s | {"Rapha-Timestamp": "1.5"},
    "a year of digits": lambda s: s | {"Rapha-Timestamp": "9" * 400},
    "key with a path": lambda s: s | {"Rapha-Key-Id": "../key-a"},
}


@pytest.mark.parametrize("name", MALFORMED)
def test_odd_headers_are_refused(hook: Hook, name: str) -> None:
    raw = signed()
    assert codes(hook.post(raw, send=MALFORMED[name](headers(SECRET, raw))), 400) == ["webhook-headers"]


def test_a_header_that_comes_twice_is_refused(hook: Hook) -> None:
    raw = signed()
    sent = headers(SECRET, raw)
    twice = [*sent.items(), ("Rapha-Signature", sent["Rapha-Signature"])]
    assert codes(httpx.post(hook.url + PATH, content=raw, headers=twice), 400) == ["webhook-headers"]


def test_a_body_that_says_it_is_too_large_is_not_read(hook: Hook) -> None:
    with socket.create_connection(httpx.URL(hook.url).netloc.decode().split(":"), timeout=5) as peer:  # type: ignore[arg-type]
        lines = [f"{name}: {value}" for name, value in headers(SECRET, b"").items()]
        head = [f"POST {PATH} HTTP/1.1", "Host: x", f"Content-Length: {MAX_DECLARATION + 1}", *lines]
        peer.sendall("\r\n".join([*head, "", ""]).encode())  # and not one byte of the body
        answer = b"".join(iter(lambda: peer.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 413") and b"webhook-body-too-large" in answer


def test_a_body_that_does_not_say_how_large_it_is_is_cut_off(hook: Hook) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(2000):
            sent += 65536
            yield b"x" * 65536

    try:
        answer = httpx.post(hook.url + PATH, content=chunks(), headers=headers(SECRET, b""))
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        pass  # the connection was closed on us
    else:
        assert codes(answer, 413) == ["webhook-body-too-large"]
    assert sent < 2000 * 65536


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "json-malformed"),
        (b"[]", "declaration-not-an-object"),
        (b'{"a":1,"a":2}', "json-duplicate-key"),
        (b"[" * 1000, "json-too-deep"),
        (b"{}", "declaration-missing-field"),
    ],
)
def test_A11_what_is_no_declaration_is_refused_with_codes_only(hook: Hook, body: bytes, code: str) -> None:
    assert codes(hook.post(body), 422) == [code]


def test_a_declaration_that_intake_would_refuse_is_not_taken_in(hook: Hook) -> None:
    for raw, code in (
        (signed(document(node="node-b")), "node-differs"),
        (signed(key=STRANGER), "signature-untrusted"),
        (signed(document(deadline=1_700_000_000)), "deadline-passed"),
    ):
        assert codes(hook.post(raw), 422) == [code]
        assert hook.register.status(job_of(raw)) is None


def test_A12_a_client_nonce_is_one_declarations(hook: Hook) -> None:
    first = document()
    assert hook.post(signed(first)).status_code == 202
    other = signed(document(client_nonce=first["client_nonce"], deadline=first["deadline"] + 1))
    assert codes(hook.post(other), 409) == ["client-nonce-reused"]


def test_other_paths_and_methods_say_nothing(hook: Hook) -> None:
    for path in ("/", "/docs", "/openapi.json", "/redoc", PATH + "/jobs", PATH + "/jobs/"):
        assert codes(httpx.get(hook.url + path), 404) == ["webhook-path"]
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        assert codes(httpx.request(method, hook.url + PATH), 405) == ["webhook-method"]
    assert "server" not in httpx.get(hook.url).headers


# -- in process: the clock, the engine and the database under the test's hand


class Bench:
    def __init__(self, folder: Path, **changes: Any) -> None:
        self.told: list[str] = []
        self.register = Register.at(folder / "register.sqlite")
        keys = {"key-a": Key(OWNER, SECRET), "key-b": Key(OTHER, OTHER_SECRET)}
        options: dict[str, Any] = {"announce": self.told.append, "limits": LIMITS, **changes}
        self.desk = Desk(register=self.register, keys=keys, owner_keys=OWNER_KEYS, node_id=NODE, mode="development", **options)

    def post(self, body: bytes, **how: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(build(self.desk, PATH))
            async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
                return await client.post(PATH, content=body, headers=headers(SECRET, body, **how))

        return asyncio.run(call())


def test_the_event_is_sent_after_the_row_and_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    raw = signed()
    assert bench.post(raw).status_code == bench.post(raw).status_code == 202
    assert bench.told == [job_of(raw)]


@pytest.mark.parametrize("error", [OSError("refused"), RuntimeError("no loop"), ValueError("odd"), PeerError("engine", "gone")])
def test_an_event_that_cannot_be_sent_does_not_fail_the_request(tmp_path: Path, error: Exception) -> None:
    def fail(job: str) -> None:
        assert bench.register.status(job) is not None
        raise error

    bench = Bench(tmp_path, announce=fail)
    raw = signed()
    assert bench.post(raw).status_code == 202
    assert bench.register.owed() == [job_of(raw)]  # the sweep's


def test_the_event_names_the_job_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.webhook import event

    sent: dict[str, Any] = {}
    monkeypatch.setattr(event, "emit_event", lambda **fields: sent.update(fields))
    event.announce("sha256:" + "0" * 64)
    assert sent == {
        "event": "rapha.job.submitted",
        "resource": {"prefect.resource.id": "rapha.job.sha256:" + "0" * 64},
        "payload": {"job": "sha256:" + "0" * 64},
    }


def test_no_answer_is_given_for_a_row_that_cannot_be_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with bench.register._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE jobs")
    answer = bench.post(signed())
    assert codes(answer, 503) == ["register-unavailable"] and bench.told == []


def test_an_owner_with_too_many_open_jobs_waits_but_may_repeat_itself(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    first = signed()
    for raw in [first, *(signed() for _ in range(LIMITS.max_open_jobs - 1))]:
        assert bench.post(raw).status_code == 202
    assert codes(bench.post(signed()), 429) == ["too-many-open-jobs"]
    assert bench.post(first).status_code == 202


def test_a_replay_after_the_window_is_stale_and_within_it_spent(tmp_path: Path) -> None:
    now = [1_750_000_000]
    bench = Bench(tmp_path, clock=lambda: now[0])
    raw = signed()
    for moment, code in (
        (0, None),
        (299, "webhook-replayed"),
        (301, "webhook-stale"),
        (9999, "webhook-stale"),
        (10, "webhook-replayed"),
    ):
        now[0] = 1_750_000_000 + moment
        answer = bench.post(raw, at=1_750_000_000, nonce="n" * 20)
        assert (answer.json().get("codes") or [None])[0] == code


def test_a_slow_body_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.webhook.app.BODY_SECONDS", 0.2)
    app = build(Bench(tmp_path).desk, PATH)

    async def call() -> list[Any]:
        said: list[Any] = []

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(5)
            return {"type": "http.request", "body": b"x", "more_body": True}

        async def send(message: Any) -> None:
            said.append(message)

        raw = [(k.lower().encode(), v.encode()) for k, v in headers(SECRET, b"x").items()]
        scope = {"type": "http", "method": "POST", "path": PATH, "raw_path": PATH.encode(), "query_string": b"", "headers": raw}
        await asyncio.wait_for(app(scope, receive, send), 3)
        return said

    assert asyncio.run(call())[0]["status"] == 408


# -- the keys file


def test_a_keys_file_that_others_can_read_or_that_is_odd_is_not_used(tmp_path: Path) -> None:
    path = keys_file(tmp_path / "keys.json", {"key-a": (OWNER, SECRET)})
    assert load_keys(path)["key-a"].owner == OWNER and "aaaa" not in repr(load_keys(path))
    path.chmod(0o640)
    with pytest.raises(ConfigurationError) as error:
        load_keys(path)
    assert error.value.codes == ("webhook-keys-readable-by-others",)
    good = {"owner": OWNER, "secret_base64": "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE="}
    odd: list[Any] = [
        [],
        {"keys": []},
        {"keys": {"k": {"owner": OWNER}}},
        {"keys": {"k": good | {"secret_base64": "c2hvcnQ="}}},
        {"keys": {"k": good | {"admin": True}}},
        {"keys": {"../k": good}},
        {"keys": {}, "more": 1},
    ]
    for value in odd:
        path.write_text(json.dumps(value))
        path.chmod(0o600)
        with pytest.raises(ConfigurationError) as error:
            load_keys(path)
        assert error.value.codes == ("webhook-keys-unreadable",)
