"""Intake: each rule has one declaration that differs in one thing and is refused with that rule's own code."""

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from blocks.register_rows import JobFacts
from policies.intake import ADMISSION_CHECKS, IntakeEvidence, IntakeLimits, intake_gate
from policies.required import REQUIRED_CHECKS
from rapha.canonical import canonical, digest
from rapha.errors import PeerError, Refusal
from rapha.signing import JOB_TYPE, sign
from tasks.gate import Cleared
from tasks.training.intake import admit, intake
from tests.fixtures.intake import (
    LIMITS,
    NODE,
    OTHER,
    OWNER,
    OWNER_KEYS,
    SIGNATURE,
    STRANGER,
    TEAM,
    WORKLOAD,
    Blobs,
    attempt,
    document,
    job_of,
    signed,
)

FACTS = JobFacts(registered=True, owner=OWNER, attempt=1, nonce="5" * 64, open_jobs=1)


def run(folder: Path, raw: bytes, facts: JobFacts = FACTS, blobs: Blobs | None = None, **changes: Any) -> Cleared[IntakeEvidence]:
    options: dict[str, Any] = {"owner_keys": OWNER_KEYS, "node_id": NODE, "limits": LIMITS, **changes}
    made = attempt(folder, job_of(raw))
    return intake(raw, made, facts=facts, orchestrator=blobs or Blobs(), blobs=folder / "blobs", **options)


def codes(folder: Path, raw: bytes, **changes: Any) -> tuple[str, ...]:
    with pytest.raises(Refusal) as refusal:
        run(folder, raw, **changes)
    return refusal.value.codes


def changed(part: str, **fields: Any) -> bytes:
    value = document()
    return signed({**value, part: {**value[part], **fields}})


def test_a_good_declaration_passes_and_its_blobs_are_there(tmp_path: Path) -> None:
    raw = signed()
    cleared = run(tmp_path, raw)
    assert cleared.evidence.job == cleared.evidence.previous == job_of(raw)
    assert [(blob.kind, blob.size) for blob in cleared.evidence.blobs] == [
        ("workload", len(WORKLOAD)),
        ("signature", len(SIGNATURE)),
    ]
    assert (tmp_path / "blobs" / "sha256" / digest(WORKLOAD)[7:]).read_bytes() == WORKLOAD


def test_the_gates_checks_are_those_that_the_door_requires() -> None:
    assert frozenset(check.name for check in intake_gate(LIMITS).checks) == REQUIRED_CHECKS["intake"]


RUN = {
    "run-too-long": ("run", {"max_seconds": LIMITS.max_seconds + 1}),
    "too-many-epochs": ("run", {"epochs": LIMITS.max_epochs + 1}),
    "dates-not-ordered": ("dataset", {"date_from": "20210101"}),
}


@pytest.mark.parametrize("code", RUN)
def test_a_declaration_that_differs_in_one_field_is_refused(tmp_path: Path, code: str) -> None:
    part, fields = RUN[code]
    assert codes(tmp_path, changed(part, **fields)) == (code,)


@pytest.mark.parametrize("day", ["20200230", "20201301", "00000101", "20200100"])
def test_a_date_that_is_none_is_refused(tmp_path: Path, day: str) -> None:
    assert codes(tmp_path, changed("dataset", date_from=day)) == ("dates-not-ordered",)


def test_a_passed_deadline_is_refused(tmp_path: Path) -> None:
    assert codes(tmp_path, signed(document(deadline=1_700_000_000))) == ("deadline-passed",)


def test_another_nodes_job_is_refused(tmp_path: Path) -> None:
    assert codes(tmp_path, signed(document(node="node-b"))) == ("node-differs",)
    assert codes(tmp_path / "empty", signed(), node_id="") == ("node-differs",)


@pytest.mark.parametrize("key", ["A" * 43 + "=", "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="])
def test_a_recipients_key_of_low_order_is_refused(tmp_path: Path, key: str) -> None:
    assert codes(tmp_path, signed(document(recipient=key))) == ("recipient-unusable",)


SIGNATURES = {
    "unsigned": (lambda: canonical(document()), ("signature-missing",)),
    "a stranger": (lambda: signed(key=STRANGER), ("signature-untrusted",)),
    "another role": (lambda: signed(role="custodian"), ("signature-untrusted",)),
    "changed after signing": (
        lambda: signed().replace(b'"epochs":2', b'"epochs":3'),
        ("signature-invalid",),
    ),
    "signed for another purpose": (lambda: canonical(sign(document(), "text/plain", TEAM, "ai-team")), ("signature-invalid",)),
    "a second, foreign signature": (
        lambda: canonical(sign(sign(document(), JOB_TYPE, TEAM, "ai-team"), JOB_TYPE, STRANGER, "ai-team")),
        ("signature-untrusted",),
    ),
    "not a list": (lambda: canonical({**document(), "signatures": {}}), ("signature-missing",)),
    "odd fields": (
        lambda: canonical({**document(), "signatures": [{"keyid": "x", "role": "ai-team", "sig": "x", "alg": "none"}]}),
        ("signature-malformed",),
    ),
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_declaration_is_signed_by_its_owners_key(tmp_path: Path, name: str) -> None:
    make, wanted = SIGNATURES[name]
    assert codes(tmp_path, make()) == wanted


def test_A13_a_team_cannot_declare_for_another(tmp_path: Path) -> None:
    """Signed with a key that the node knows, but of another team; sent, and registered, by that team."""
    raw = signed(document(owner=OWNER), key=STRANGER)
    assert codes(tmp_path, raw) == ("signature-untrusted",)
    facts = JobFacts(registered=True, owner=OTHER, attempt=1, nonce="5" * 64, open_jobs=1)
    assert codes(tmp_path / "2", raw, facts=facts) == ("owner-mismatch",)


def test_an_owner_without_enrolled_keys_is_refused(tmp_path: Path) -> None:
    assert codes(tmp_path, signed(), owner_keys={}) == ("signature-untrusted",)


REGISTER = {
    "never submitted": JobFacts(registered=False, owner=OWNER, attempt=1, nonce="5" * 64, open_jobs=0),
    "another attempt": JobFacts(registered=True, owner=OWNER, attempt=2, nonce="5" * 64, open_jobs=1),
    "another nonce": JobFacts(registered=True, owner=OWNER, attempt=1, nonce="6" * 64, open_jobs=1),
}


@pytest.mark.parametrize("name", REGISTER)
def test_A10_only_the_attempt_that_the_register_holds_runs(tmp_path: Path, name: str) -> None:
    assert codes(tmp_path, signed(), facts=REGISTER[name]) == ("attempt-not-registered",)


def test_an_owner_with_too_many_open_jobs_waits(tmp_path: Path) -> None:
    facts = JobFacts(registered=True, owner=OWNER, attempt=1, nonce="5" * 64, open_jobs=LIMITS.max_open_jobs + 1)
    assert codes(tmp_path, signed(), facts=facts) == ("too-many-open-jobs",)


def test_A12_an_attempt_of_another_job_takes_no_declaration(tmp_path: Path) -> None:
    made = attempt(tmp_path, "sha256:" + "0" * 64)
    with pytest.raises(Refusal) as refusal:
        intake(
            signed(),
            made,
            owner_keys=OWNER_KEYS,
            facts=FACTS,
            orchestrator=Blobs(),
            blobs=tmp_path,
            node_id=NODE,
            limits=LIMITS,
        )
    assert refusal.value.codes == ("job-id-differs",)


def test_a_blob_that_cannot_be_had_is_a_failing_peer(tmp_path: Path) -> None:
    with pytest.raises(PeerError) as error:
        run(tmp_path, signed(), blobs=Blobs({digest(WORKLOAD): WORKLOAD}))
    assert error.value.codes == ("orchestrator-blob-missing",)


def test_a_blob_of_other_bytes_is_refused_whoever_delivered_it(tmp_path: Path) -> None:
    lying = Blobs({digest(WORKLOAD): b"other bytes", digest(SIGNATURE): SIGNATURE})
    assert codes(tmp_path, signed(), blobs=lying) == ("blob-differs",)


def test_a_blob_beyond_the_sites_size_is_refused(tmp_path: Path) -> None:
    small = IntakeLimits(max_workload_bytes=len(WORKLOAD) - 1)
    assert codes(tmp_path, signed(), limits=small) == ("blob-too-large",)


def test_base_weights_are_fetched_where_the_job_fine_tunes(tmp_path: Path) -> None:
    weights = b"safetensors"
    raw = changed("workload", base_weights=digest(weights))
    held = Blobs()
    held.held[digest(weights)] = weights
    assert run(tmp_path, raw, blobs=held).evidence.kinds == ("workload", "signature", "base-weights")
    with pytest.raises(PeerError):
        run(tmp_path / "2", raw, blobs=Blobs())


def image(*members: tuple[str, bytes, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content) if kind == tarfile.REGTYPE else 0, kind
            info.linkname = "blobs/sha256/x" if kind == tarfile.SYMTYPE else ""
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_an_image_is_named_by_the_manifest_inside_its_archive(tmp_path: Path) -> None:
    manifest = b'{"schemaVersion":2}'
    name, path = digest(manifest), "blobs/sha256/" + digest(manifest)[7:]
    raw = changed("workload", kind="oci", digest=name)

    def held(content: bytes) -> Blobs:
        return Blobs({name: content, digest(SIGNATURE): SIGNATURE})

    good = held(image(("oci-layout", b"{}", tarfile.REGTYPE), (path, manifest, tarfile.REGTYPE)))
    assert run(tmp_path, raw, blobs=good).evidence.blobs[0].found == name
    bad = {
        "other manifest": image((path, manifest + b" ", tarfile.REGTYPE)),
        "no manifest": image(("index.json", b"{}", tarfile.REGTYPE)),
        "a link": image((path, b"", tarfile.SYMTYPE)),
        "not an archive": b"x" * 2048,
        "compressed": b"\x1f\x8b" + b"x" * 100,
        "cut": image((path, manifest, tarfile.REGTYPE))[:520],
    }
    for title, content in bad.items():
        assert codes(tmp_path / title, raw, blobs=held(content)) == ("blob-differs",), title


def test_admission_asks_nobody_and_writes_nothing(tmp_path: Path) -> None:
    raw = signed()
    options: dict[str, Any] = {"owner_keys": OWNER_KEYS, "node_id": NODE, "limits": LIMITS, "mode": "development"}
    admission = admit(raw, sender=OWNER, now=1_750_000_000, **options)
    assert admission.job == job_of(raw) and admission.verdict.cleared and list(tmp_path.iterdir()) == []
    assert admission.verdict.ran - {"limits"} == {check.name for check in ADMISSION_CHECKS}
    for sender, wanted in ((OTHER, "owner-mismatch"), ("", "owner-mismatch")):
        with pytest.raises(Refusal) as refusal:
            admit(raw, sender=sender, now=1_750_000_000, **options)
        assert wanted in refusal.value.codes and refusal.value.side == "job"


def test_a_refusal_says_who_can_mend_it_and_is_recorded(tmp_path: Path) -> None:
    raw = signed(document(node="node-b"))
    made = attempt(tmp_path, job_of(raw))
    with pytest.raises(Refusal) as refusal:
        intake(raw, made, owner_keys=OWNER_KEYS, facts=FACTS, orchestrator=Blobs(), blobs=tmp_path, node_id=NODE, limits=LIMITS)
    assert refusal.value.side == "job" and refusal.value.gate == "intake"
    (entry,) = made.ledger.entries()
    assert entry.body["verdict"] == "refused" and entry.body["codes"] == ["node-differs"]
