"""The manifest stage on real files, a real ledger and the real door."""

import json

import pytest

from infra.hospital.paper import OUTER_QUERY, site_limits
from policies.manifest_gate import manifest_gate
from rapha.errors import Refusal
from tasks.training.manifest import CLEARED, manifest
from tests.fixtures.manifest import KEYS, NOW, TRUSTED, Before, an_attempt, declaration, document, files, records, sign_manifest


def run(folder, raw=None, found=None, *, number=1, job=None, at=NOW):
    paths = files(folder, raw, found)
    return manifest(Before(), an_attempt(folder, number, at), job or declaration(), *paths, TRUSTED, OUTER_QUERY, site_limits())


def verdicts(folder):
    return [entry.body for entry in an_attempt(folder).ledger.entries() if entry.kind == "verdict"]


def test_clears_and_binds_what_it_read(tmp_path):
    cleared = run(tmp_path)
    assert cleared.evidence.records == 40 and cleared.evidence.records_patients == 10
    assert cleared.evidence.previous == Before.subject
    assert cleared.verdict.policy == manifest_gate(site_limits()).policy
    assert verdicts(tmp_path)[0]["verdict"] == "cleared"


def test_notes_the_version_once(tmp_path):
    for number in (1, 2):
        run(tmp_path, number=number)
    notes = [entry.body for entry in an_attempt(tmp_path).ledger.entries() if entry.kind == CLEARED]
    assert [note["version_number"] for note in notes] == [1]


@pytest.mark.parametrize("missing", ["manifest.json", "records.jsonl"])
def test_a_file_that_is_not_there_refuses(tmp_path, missing):
    paths = files(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(Refusal) as caught:
        manifest(Before(), an_attempt(tmp_path), declaration(), *paths, TRUSTED, OUTER_QUERY, site_limits())
    assert caught.value.codes == ({"manifest.json": "manifest-unreadable", "records.jsonl": "records-unreadable"}[missing],)


@pytest.mark.parametrize("change", ["cut", "twice", "label", "extra"])
def test_a_records_file_that_was_touched_refuses(tmp_path, change):
    paths = files(tmp_path)
    lines = paths[1].read_bytes().splitlines(keepends=True)
    if change == "cut":
        lines = lines[:-1]
    elif change == "twice":
        lines.append(lines[-1])
    elif change == "label":
        lines[0] = lines[0].replace(b'"label":0', b'"label":2').replace(b'"label":1', b'"label":2')
    else:
        lines[0] = lines[0].replace(b"{", b'{"a":1,', 1)
    paths[1].write_bytes(b"".join(lines))
    with pytest.raises(Refusal) as caught:
        manifest(Before(), an_attempt(tmp_path), declaration(), *paths, TRUSTED, OUTER_QUERY, site_limits())
    assert caught.value.codes[0].startswith("records-")


def test_a_refusal_is_in_the_ledger_and_leaves_no_note(tmp_path):
    with pytest.raises(Refusal) as caught:
        run(tmp_path, sign_manifest(document(expires_at=NOW + 5), KEYS))
    assert (caught.value.gate, caught.value.side, caught.value.codes) == ("manifest", "node", ("manifest-expired",))
    assert [body["codes"] for body in verdicts(tmp_path)] == [["manifest-expired"]]
    assert not [entry for entry in an_attempt(tmp_path).ledger.entries() if entry.kind == CLEARED]


def test_a_jobs_fault_is_the_jobs(tmp_path):
    with pytest.raises(Refusal) as caught:
        run(tmp_path, job=declaration(dataset__cohort="other"))
    assert (caught.value.side, caught.value.codes) == ("job", ("cohort-differs",))


def test_evidence_and_ledger_hold_no_pseudonym_and_no_content_digest(tmp_path):
    run(tmp_path)
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "records.jsonl")
    for record in records():
        assert record.record.encode() not in kept and record.patient.encode() not in kept and record.content.encode() not in kept


def test_a_check_taken_out_of_the_gate_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr("policies.manifest_gate.CHECKS", manifest_gate(site_limits()).checks[1:])
    with pytest.raises(Refusal) as caught:
        run(tmp_path)
    assert caught.value.codes == ("gate-incomplete",)


def test_a_ledger_that_cannot_be_written_stops_the_stage(tmp_path):
    paths = files(tmp_path)
    attempt = an_attempt(tmp_path)
    (tmp_path / "ledger" / "head.json").unlink()
    with pytest.raises(Refusal) as caught:
        manifest(Before(), attempt, declaration(), *paths, TRUSTED, OUTER_QUERY, site_limits())
    assert caught.value.codes in (("ledger-unreadable",), ("ledger-unwritable",))


def test_the_kept_evidence_is_the_subject(tmp_path):
    cleared = run(tmp_path)
    kept = json.loads((tmp_path / "1" / "evidence" / "manifest.json").read_bytes())
    assert kept["manifest"] == cleared.evidence.manifest and kept["limits"]["min_patients"] == 8
