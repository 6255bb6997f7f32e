"""The demo's bundle, started by the demo's launcher script, in the real sandbox; its outputs before the real guard."""

import io
import json
import os
import subprocess
import sys
import sysconfig
import tarfile

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from safetensors.numpy import load_file

from blocks.launcher import Launcher, SandboxSpec
from flows.console.guard import guard
from infra.hospital.cohort import make_cohort
from infra.workload import launcher as script
from infra.workload.bundle import ENTRY_POINT, LAUNCHER, METRICS, SOURCE, TENSORS, THRESHOLD, make_bundle, source_tar
from policies.python_source import judge_source
from policies.train import SandboxLimits
from rapha.canonical import canonical, digest, parse
from rapha.signing import WORKLOAD_TYPE, roles_signed
from tests.fixtures.cohort import served_cohort
from tests.fixtures.manifest import declaration_document

KEY = Ed25519PrivateKey.generate()
JOB = digest(b"the demo's bundle")


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A launcher without a keeper: enough for the trainer, not for its gate."""
    socket = tmp_path_factory.mktemp("l") / "launcher.sock"
    options = ["--socket", str(socket), "--python", sys.executable, "--packages", sysconfig.get_path("purelib")]
    started = subprocess.Popen([sys.executable, "-m", "infra.launcher", *options], stdout=subprocess.PIPE)
    assert started.stdout is not None and started.stdout.readline() == b"ready\n"
    yield socket
    started.terminate()
    started.wait(10)


def specification(folder, source=SOURCE, seed=7):
    made = source_tar(source)
    (folder / "workload.tar").write_bytes(made)
    return SandboxSpec(
        kind="source",
        workload=folder / "workload.tar",
        workload_digest=digest(made),
        entry_point=ENTRY_POINT,
        launcher=LAUNCHER,
        launcher_digest=digest(LAUNCHER.read_bytes()),
        environment=(("RAPHA_EPOCHS", "8"), ("RAPHA_BATCH_SIZE", "16"), ("RAPHA_SEED", str(seed)), ("OMP_NUM_THREADS", "2")),
    )


def trained(process, folder, source=SOURCE, patients=24):
    """(exit, proof, output folder) of one run."""
    limits = SandboxLimits(seconds=60, memory_bytes=3 << 30)
    with served_cohort(make_cohort(patients)) as fd, Launcher(process, peer="launcher") as launcher:
        launcher.launch(JOB, 1, specification(folder, source), limits, [fd])
        while (ended := launcher.wait(5)).state == "running":
            pass
        proof = launcher.proof()
        launcher.collect(folder / "out")
    return ended, proof, folder / "out"


@pytest.fixture(scope="module")
def ran(process, tmp_path_factory):
    return trained(process, tmp_path_factory.mktemp("run"))


def test_the_bundle_learns_in_the_sandbox_and_writes_what_it_declared(ran):
    ended, proof, out = ran
    assert (ended.exit, proof.left, proof.ended) == ("completed", 0, True)
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "weights.safetensors"]
    metrics = json.loads((out / "metrics.json").read_bytes())
    assert set(metrics) == set(METRICS) and metrics["accuracy"] >= THRESHOLD > max(
        v for k, v in metrics.items() if k != "accuracy"
    )


def test_the_guard_lets_its_outputs_leave(ran, tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAPHA_")]:
        monkeypatch.delenv(name)
    out = ran[2]
    job = tmp_path / "job.json"
    job.write_bytes(canonical({**declaration_document(), "signatures": []}))
    verdict = guard(out, job=job, release=tmp_path / "release")
    assert (verdict.status, verdict.data["verdict"], verdict.data["codes"]) == (0, "cleared", [])
    assert {name: array.shape for name, array in load_file(tmp_path / "release" / "weights.safetensors").items()} == TENSORS


def test_a_file_of_the_bundle_cannot_stand_in_for_a_library(process, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "train.py").write_text(
        "import os\nimport numpy\nassert numpy.zeros(1).sum() == 0 and os.environ['RAPHA_SEED'] == '7'\n"
    )
    (source / "numpy.py").write_text("raise SystemExit(1)\n")
    assert trained(process, tmp_path, source)[0].exit == "completed"


@pytest.mark.parametrize("name", ["../launcher.py", "/etc/passwd", "train.txt", "none.py", "link.py"])
def test_the_launcher_script_starts_files_of_the_workload_only(tmp_path, monkeypatch, name):
    root = tmp_path / "workload"
    root.mkdir()
    (root / "train.txt").touch()
    (tmp_path / "launcher.py").touch()
    (root / "link.py").symlink_to(tmp_path / "launcher.py")
    monkeypatch.setattr(script, "WORKLOAD", str(root))
    with pytest.raises(SystemExit) as caught:
        script.entry_path(name)
    assert caught.value.code == 2


def test_the_bundle_is_the_same_bytes_each_time_and_passes_the_scan():
    made = make_bundle(KEY)
    assert made.digest == make_bundle(KEY).digest == digest(made.tar)
    with tarfile.open(fileobj=io.BytesIO(made.tar)) as archive:
        names = archive.getnames()
        assert names == ["train.py"]
        for name in names:
            member = archive.extractfile(name)
            assert member is not None and judge_source(member.read(), {"train"}) == ()


def test_the_signing_document_names_the_bundle():
    made = make_bundle(KEY)
    document = parse(made.signature)
    assert (document["workload"], document["kind"], document["entry_point"]) == (made.digest, "source", "train.py")
    assert list(roles_signed(document, WORKLOAD_TYPE, {"workload-signer": [KEY.public_key()]})) == ["workload-signer"]
    assert made.signature_digest == digest(made.signature) and set(made.blobs) == {made.digest, made.signature_digest}
