"""A11: what a job's declaration must not be able to say in two ways, or at all."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rapha.canonical import canonical
from rapha.declaration import MAX_DECLARATION, read_declaration
from rapha.errors import Refusal
from rapha.signing import JOB_TYPE, sign
from tests.fixtures.intake import TEAM, document, job_of, signed


def refused(raw: bytes) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refusal:
        read_declaration(raw)
    assert refusal.value.side == "job"
    return refusal.value.codes


def _set(path: str, value: Any) -> dict[str, Any]:
    root = document()
    part: Any = root
    *way, last = path.split(".")
    for step in way:
        part = part[int(step) if step.isdecimal() else step]
    part[last] = value
    return root


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": (_set("extra", 1), "declaration-unknown-field"),
    "unknown field inside": (_set("workload.command", "sh"), "declaration-unknown-field"),
    "unknown field in a list": (_set("outputs.tensors.0.path", "/x"), "declaration-unknown-field"),
    "another version": (_set("version", 2), "declaration-bad-value"),
    "a number as text": (_set("deadline", "1900000000"), "declaration-bad-value"),
    "truth as a number": (_set("run.epochs", True), "declaration-bad-value"),
    "a fraction": (_set("run.epochs", 1.5), "declaration-bad-value"),
    "no epochs": (_set("run.epochs", 0), "declaration-bad-value"),
    "a week and a second": (_set("run.max_seconds", 7 * 86400 + 1), "declaration-bad-value"),
    "a digest's prefix": (_set("workload.digest", "sha256:" + "0" * 63), "declaration-bad-value"),
    "a digest in capitals": (_set("workload.digest", "sha256:" + "A" * 64), "declaration-bad-value"),
    "a digest and a line": (_set("workload.digest", "sha256:" + "0" * 64 + "\n"), "declaration-bad-value"),
    "a path upwards": (_set("workload.entry_point", "../train.py"), "declaration-bad-value"),
    "an absolute path": (_set("workload.entry_point", "/bin/x.py"), "declaration-bad-value"),
    "an option": (_set("workload.entry_point", "-c.py"), "declaration-bad-value"),
    "a path with a line": (_set("workload.entry_point", "a\nb.py"), "declaration-bad-value"),
    "a shell's words": (_set("workload.entry_point", "a;rm -rf x.py"), "declaration-bad-value"),
    "no Python": (_set("workload.entry_point", "train.sh"), "declaration-bad-value"),
    "a name with a path": (_set("dataset.cohort", "../x"), "declaration-bad-value"),
    "a wildcard": (_set("dataset.body_parts", ["*"]), "declaration-bad-value"),
    "no modality": (_set("dataset.modalities", []), "declaration-bad-value"),
    "a name twice": (_set("outputs.metrics", [document()["outputs"]["metrics"][0]] * 2), "declaration-bad-value"),
    "a tensor's name upwards": (_set("outputs.tensors.0.name", "../x"), "declaration-bad-value"),
    "a pickle's type": (_set("outputs.tensors.0.dtype", "object"), "declaration-bad-value"),
    "a shape of nothing": (_set("outputs.tensors.0.shape", [0]), "declaration-bad-value"),
    "a negative price": (_set("budget.price_per_record", -1), "declaration-bad-value"),
    "a short nonce": (_set("client_nonce", "abc"), "declaration-bad-value"),
    "no object": ([1], "declaration-not-an-object"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", FIELDS)
def test_A11_a_declaration_says_what_it_may_and_nothing_else(name: str) -> None:
    value, code = FIELDS[name]
    assert code in refused(canonical(value))


@pytest.mark.parametrize("field", sorted(document()))
def test_A11_every_field_is_required(field: str) -> None:
    value = document()
    del value[field]
    assert refused(canonical(value)) == ("declaration-missing-field",)


BYTES = {
    "duplicate key": (lambda raw: raw.replace(b'"version":1', b'"version":1,"version":1'), "json-duplicate-key"),
    "duplicate signatures": (lambda raw: raw[:-1] + b',"signatures":[]}', "json-duplicate-key"),
    "NaN": (lambda raw: raw.replace(b'"maximum":1', b'"maximum":NaN'), "json-not-finite"),
    "huge integer": (lambda raw: raw.replace(b'"seed":7', b'"seed":' + b"7" * 400), "json-integer-range"),
    "depth bomb": (lambda raw: raw[:-1] + b',"x":' + b"[" * 5000 + b"]" * 5000 + b"}", "json-too-deep"),
    "padding": (lambda raw: raw + b" " * MAX_DECLARATION, "json-too-large"),
    "a second document": (lambda raw: raw + raw, "json-malformed"),
    "UTF-16": (lambda raw: raw.decode().encode("utf-16"), "json-malformed"),
    "NUL": (lambda raw: raw.replace(b'"node-a"', b'"node-a\\u0000"'), "json-bad-text"),
}


@pytest.mark.parametrize("name", BYTES)
def test_A11_bytes_that_two_readers_could_read_in_two_ways(name: str) -> None:
    change, code = BYTES[name]
    assert refused(change(signed())) == (code,)


def test_A11_a_refusal_quotes_nothing_of_the_declaration() -> None:
    secret = "Jane-Doe-19700101"
    for raw in (canonical(_set("dataset.cohort", secret)), canonical({**document(), secret: secret}), f'{{"{secret}'.encode()):
        with pytest.raises(Refusal) as refusal:
            read_declaration(raw)
        assert secret not in repr(refusal.value) + str(refusal.value) and refusal.value.__cause__ is None


def test_A12_a_jobs_id_is_its_content_not_its_spelling_or_its_signatures() -> None:
    value = document()
    spelled = json.dumps(dict(reversed(value.items())), indent=3).encode()
    twice = canonical(sign(sign(value, JOB_TYPE, TEAM, "ai-team"), JOB_TYPE, TEAM, "ai-team"))
    assert job_of(spelled) == job_of(canonical(value)) == job_of(signed(value)) == job_of(twice)
    assert job_of(canonical({**value, "deadline": value["deadline"] + 1})) != job_of(canonical(value))


def test_a_number_is_the_number_however_it_is_written() -> None:
    value = document()
    raw = canonical(value)
    assert job_of(raw.replace(b'"seed":7', b'"seed":7.0')) == job_of(raw.replace(b'"seed":7', b'"seed":70e-1')) == job_of(raw)


@given(st.data())
def test_A11_a_declaration_with_one_byte_changed_is_another_or_none(data: st.DataObject) -> None:
    raw = signed()
    at = data.draw(st.integers(0, len(raw) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != raw[at]))
    changed = raw[:at] + bytes([byte]) + raw[at + 1 :]
    try:
        _, value, job = read_declaration(changed)
    except Refusal:
        return
    same = job == job_of(raw)
    assert same is (
        {k: v for k, v in value.items() if k != "signatures"} == {k: v for k, v in json.loads(raw).items() if k != "signatures"}
    )
