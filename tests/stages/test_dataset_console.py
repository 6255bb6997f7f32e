"""`rapha manifest`, `rapha minimise` and `rapha pacs` on the embedded hospital, from a query to the gate's verdict."""

import base64
import datetime as dt
import io
import json
import os
import sys
import threading
import time

import cyclopts
import pytest
import uvicorn
from pydicom import dcmread
from pydicom.data import get_testdata_file

from flows.console import manifest as manifest_console
from flows.console import pacs as pacs_console
from infra.hospital.archive import application
from infra.hospital.cohort import make_cohort, write_cohort
from infra.hospital.paper import AGREEMENT, CONSENT, OUTER_QUERY, make_records, site_section
from policies.manifest import APPROVERS
from policies.records import records_root
from rapha.console.app import run
from rapha.signing import write_private, write_public
from tests.fixtures.manifest import declaration_document

KEY = bytes(range(1, 33))
NAMES = "--cohort c --project p --purpose q --agreement a --consent-basis b --opt-outs-applied 2026-11-20 "
SCOPE = "--modality DX --body-part CHEST --date-from 20240101 --date-to 20241231"


@pytest.fixture(scope="module")
def cohort():
    return make_cohort(9)


@pytest.fixture(scope="module")
def archive(cohort, tmp_path_factory):
    root = tmp_path_factory.mktemp("dicom")
    write_cohort(cohort, root)
    server = uvicorn.Server(uvicorn.Config(application(root), port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/dicom-web"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def rapha(archive, tmp_path, monkeypatch, capsys):
    """Runs a command with --json: (exit status, the object)."""
    for name in [name for name in os.environ if name.startswith("RAPHA_")]:
        monkeypatch.delenv(name)
    (tmp_path / "site.json").write_text(json.dumps({"manifest": site_section()}))
    values = {
        "DICOMWEB_BASE_URL": archive,
        "DICOMWEB_STUDY_QUERY_JSON": json.dumps(OUTER_QUERY),
        "PHI_HMAC_KEY_BASE64": base64.b64encode(KEY).decode(),
        "TRUST_DIR": tmp_path / "trust",
        "SITE_POLICY_PATH": tmp_path / "site.json",
        "ENABLE_HOSPITAL_DATA_INTEGRATION": "false",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"RAPHA_{name}", str(value))
    app = cyclopts.App(name="rapha")
    manifest_console.register(app)
    pacs_console.register(app)

    def call(*argv):
        status = run(app, [*map(str, argv), "--json"])
        said = capsys.readouterr().out
        return status, json.loads(said)

    return call


@pytest.fixture
def signed(rapha, cohort, tmp_path):
    """A manifest that was built from the archive and signed by the three approvers: (manifest, records file)."""
    paths = tmp_path / "manifest.json", tmp_path / "records.jsonl"
    (tmp_path / "labels.json").write_text(json.dumps(cohort.labels))
    yesterday = dt.datetime.fromtimestamp(time.time() - 86400, dt.UTC).isoformat()
    names = f"--cohort chest-dx --project chest-lesion --purpose diagnostic-model-research --agreement {AGREEMENT}".split()
    scope = f"--opt-outs-applied {yesterday} --consent-basis {CONSENT} {SCOPE}".split()
    status, said = rapha(
        "manifest", "build", paths[0], "--records", paths[1], "--labels", tmp_path / "labels.json", *names, *scope
    )
    assert (status, said["count"], said["patients"]) == (0, 36, 9)
    for role in APPROVERS:
        key = write_private(tmp_path / f"{role}.pem")
        write_public(tmp_path / "trust" / "manifest" / role / "key.pem", key.public_key())
        status, said = rapha("manifest", "sign", paths[0], "--role", role, "--key", tmp_path / f"{role}.pem")
        assert status == 0
    assert said["roles"] == list(APPROVERS)
    return paths


def test_built_signed_and_checked(rapha, signed, cohort):
    status, said = rapha("manifest", "check", signed[0], "--records", signed[1])
    assert (status, said["verdict"], said["codes"], said["gate"], said["mode"]) == (0, "cleared", [], "manifest", "development")


def test_the_archive_gives_the_same_records_as_the_files_themselves(signed, cohort):
    assert json.loads(signed[0].read_bytes())["record_set"]["root"] == records_root(make_records(cohort, KEY))
    assert signed[1].stat().st_mode & 0o077 == 0


def test_check_holds_a_job_to_it(rapha, signed, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({**declaration_document(dataset__cohort="other"), "signatures": []}))
    status, said = rapha("manifest", "check", signed[0], "--records", signed[1], "--job", tmp_path / "job.json")
    assert status == 3
    assert set(said["codes"]) == {"cohort-differs", "job-too-many-records"} and said["reasons"][0]["todo"]


def test_check_sees_a_changed_byte_and_a_missing_signature(rapha, signed):
    document = json.loads(signed[0].read_bytes())
    signed[0].write_text(json.dumps({**document, "version_number": 2}))
    assert "signature-invalid" in rapha("manifest", "check", signed[0], "--records", signed[1])[1]["codes"]
    signed[0].write_text(json.dumps({**document, "signatures": document["signatures"][1:]}))
    assert rapha("manifest", "check", signed[0], "--records", signed[1])[1]["codes"] == ["manifest-approvals"]


def test_signing_again_replaces_ones_own_signature(rapha, signed, tmp_path):
    _, said = rapha("manifest", "sign", signed[0], "--role", "dpo", "--key", tmp_path / "dpo.pem")
    assert said["roles"] == list(APPROVERS)


@pytest.mark.parametrize("name", ["PHI_HMAC_KEY_BASE64", "DICOMWEB_BASE_URL"])
def test_build_names_what_is_missing(rapha, tmp_path, monkeypatch, name):
    monkeypatch.delenv(f"RAPHA_{name}")
    status, said = rapha("manifest", "build", tmp_path / "m", "--records", tmp_path / "r", *(NAMES + SCOPE).split())
    assert status == 2 and said["codes"] == [f"missing-{name.lower().replace('_', '-')}"]


def test_build_asks_nothing_for_a_scope_that_is_no_scope(rapha, tmp_path):
    words = (NAMES + SCOPE.replace("DX", "*")).split()
    status, said = rapha("manifest", "build", tmp_path / "m", "--records", tmp_path / "r", *words)
    assert status == 3 and said["codes"] == ["manifest-bad-value"]


def test_minimise_leaves_no_identifier(rapha, cohort, tmp_path):
    (tmp_path / "in.json").write_text(json.dumps([dcmread(io.BytesIO(image.file)).to_json_dict() for image in cohort.images]))
    status, said = rapha("minimise", tmp_path / "in.json", "--project", "chest-lesion")
    text = json.dumps(said, ensure_ascii=False)
    assert status == 0 and len(said["datasets"]) == len(cohort.images) and said["dropped"]["private"] == 3 * len(cohort.images)
    assert not [identifier for identifier in cohort.identifiers if identifier in text]


def test_minimise_reads_standard_input_and_keeps_the_shape(rapha, monkeypatch, capsys):
    one = {"00100020": {"vr": "LO", "Value": ["HX12345678"]}, "00280010": {"vr": "US", "Value": [64]}}
    for given, shape in ((one, dict), ([one], list)):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(given).encode())))
        app = cyclopts.App(name="rapha")
        pacs_console.register(app)
        assert run(app, ["minimise"]) == 0
        assert isinstance(json.loads(capsys.readouterr().out), shape)


@pytest.mark.parametrize("text", ["", "{", '{"a":1}', '[["x"]]', '{"00100020":{"vr":"LO","Value":["A"]},"00100020":{}}'])
def test_minimise_refuses_what_is_no_dicom_json(rapha, tmp_path, text):
    (tmp_path / "in.json").write_text(text)
    status, said = rapha("minimise", tmp_path / "in.json")
    assert status == 3 and said["verdict"] == "refused"


def test_minimise_needs_a_key(rapha, tmp_path, monkeypatch):
    (tmp_path / "in.json").write_text("{}")
    monkeypatch.setenv("RAPHA_PHI_HMAC_KEY_BASE64", base64.b64encode(bytes(32)).decode())
    assert rapha("minimise", tmp_path / "in.json")[1]["codes"] == ["pseudonym-key-weak"]
    monkeypatch.delenv("RAPHA_PHI_HMAC_KEY_BASE64")
    assert rapha("minimise", tmp_path / "in.json")[0] == 2


def test_minimise_takes_the_manifests_project(rapha, signed, tmp_path, monkeypatch):
    (tmp_path / "in.json").write_text("{}")
    assert rapha("minimise", tmp_path / "in.json")[1]["project"] == "no-project"
    monkeypatch.setenv("RAPHA_DATASET_MANIFEST_PATH", str(signed[0]))
    assert rapha("minimise", tmp_path / "in.json")[1]["project"] == "chest-lesion"


@pytest.mark.parametrize(("level", "count"), [("study", 18), ("series", 18), ("instance", 36)])
def test_find(rapha, level, count):
    status, said = rapha("pacs", "find", "Modality=DX", "BodyPartExamined=CHEST", "StudyDate=20240101-20241231", "--level", level)
    assert (status, said["count"]) == (0, count)
    assert all(row["StudyInstanceUID"] for row in said["found"])


def test_find_by_the_modalities_of_a_study(rapha):
    status, said = rapha("pacs", "find", "ModalitiesInStudy=DX", "StudyDate=20240101-20241231", "--limit", "1000")
    assert status == 0 and said["count"] >= 18
    assert {row["ModalitiesInStudy"] for row in said["found"]} == {"DX"}


@pytest.mark.parametrize("keys", [[], ["PatientID=*"], ["StudyDate=-"], ["PatientName=", "Modality=??"]])
def test_D01_a_broad_find_refuses(rapha, keys):
    status, said = rapha("pacs", "find", *keys)
    assert (status, said["codes"]) == (3, ["query-broad"])


def test_find_of_an_unknown_key_or_endpoint_is_wrong_usage(rapha):
    assert rapha("pacs", "find", "Nonsense=1")[0] == 2
    assert rapha("pacs", "find", "PatientID=1", "--pacs", "backup")[1]["codes"] == ["pacs-unknown"]


def test_retrieve(rapha, cohort, tmp_path):
    wanted = dcmread(io.BytesIO(cohort.images[0].file))
    status, said = rapha("pacs", "retrieve", wanted.StudyInstanceUID, "--out", tmp_path / "study")
    assert (status, said["files"]) == (0, 2)
    assert {path.read_bytes() for path in (tmp_path / "study").iterdir()} == {image.file for image in cohort.images[:2]}
    assert {path.name for path in (tmp_path / "study").iterdir()} == {"000001.dcm", "000002.dcm"}
    assert rapha("pacs", "retrieve", wanted.StudyInstanceUID, "--out", tmp_path / "study")[1]["codes"] == ["folder-not-empty"]


@pytest.mark.parametrize("uid", ["../etc", "1.2/../3", "1", "*", "1." + "2" * 64])
def test_retrieve_takes_uids_only(rapha, tmp_path, uid):
    assert rapha("pacs", "retrieve", uid, "--out", tmp_path / "x")[1]["codes"] == ["uid-malformed"]
    assert not (tmp_path / "x").exists()


def test_what_the_archive_has_not_is_refused(rapha, tmp_path):
    status, said = rapha("pacs", "retrieve", "1.2.3", "--out", tmp_path / "x")
    assert (status, said["codes"]) == (3, ["study-not-found"])


def test_no_archive_is_a_failed_peer(rapha, monkeypatch):
    monkeypatch.setenv("RAPHA_DICOMWEB_BASE_URL", "http://127.0.0.1:9/dicom-web")
    assert rapha("pacs", "find", "PatientID=1")[0] == 4


def test_the_dicomweb_side_answers_stores_and_holds(rapha, archive, tmp_path, monkeypatch):
    monkeypatch.setenv("RAPHA_STATE_DIR", str(tmp_path))
    dataset = dcmread(get_testdata_file("CT_small.dcm"))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.31"
    dataset.save_as(tmp_path / "new.dcm")
    status, said = rapha("pacs", "echo")
    assert (status, said["by"], said["answered"]) == (0, "QIDO-RS", True)
    status, said = rapha("pacs", "probe")
    assert (status, said["services"]) == (0, ["QIDO-RS", "STOW-RS"])
    assert json.loads((tmp_path / "capabilities" / "primary.json").read_bytes())["services"] == ["QIDO-RS", "STOW-RS"]
    assert rapha("pacs", "commit", str(tmp_path / "new.dcm"))[0] in (3, 4)
    assert rapha("pacs", "store", str(tmp_path / "new.dcm")) == (0, {"pacs": "primary", "stored": 1})
    assert rapha("pacs", "commit", str(tmp_path / "new.dcm")) == (0, {"pacs": "primary", "held": 1, "by": "read-back"})
