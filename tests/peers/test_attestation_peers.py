"""The attester as a process with a real swtpm: enrolment by credential activation, evidence, restarts, other machines."""

import datetime as dt
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cyclopts
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from blocks.attester import Attester, Identity
from blocks.credential import make_credential
from flows.console.attest import register
from infra.attester.development import development_policy
from infra.attester.synthetic import Machine
from infra.attester.tee import DeviceTee
from infra.attester.tpm import DeviceTpm
from policies.attestation_limits import read_limits
from policies.platform import Platform, read_platform
from policies.tpm import read_attest
from rapha.console.app import run
from rapha.errors import PeerError, Refusal
from tasks.shared.enrol import enrol
from tests.fixtures.attestation import Bench, bench

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Process:
    """An attester process; `state` survives it."""

    state: Path
    socket: Path
    child: "subprocess.Popen[str]"

    def stop(self, *, kill: bool = False) -> None:
        self.child.kill() if kill else self.child.terminate()
        self.child.wait(timeout=20)


def start(state: Path, kind: str = "swtpm") -> Process:
    socket = state.parent / f"{state.name}.sock"
    command = [sys.executable, "-m", "infra.attester", "--socket", str(socket), "--kind", kind, "--state", str(state)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return Process(state, socket, child)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manufactured TPM and machine, copied by each test: making one costs two seconds."""
    state = tmp_path_factory.mktemp("kept") / "node"
    start(state).stop()
    return state


@pytest.fixture
def process(tmp_path: Path, kept: Path) -> Iterator[Process]:
    state = tmp_path / "node"
    subprocess.run(["cp", "-a", str(kept), str(state)], check=True)
    running = start(state)
    yield running
    running.stop()


def _now() -> int:
    return int(time.time())


def against(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: Process, platform: Platform) -> Bench:
    """A bench whose evidence comes from the process, at the real time."""
    b = bench(tmp_path / "bench", monkeypatch)
    b.attempt = replace(b.attempt, clock=_now)
    b.prover = Attester(process.socket)  # type: ignore[assignment]
    root = (process.state / "dcap" / "root.der").read_bytes()
    limits = read_limits(development_policy(process.state, platform))
    collateral = (process.state / "dcap" / "collateral.json").read_bytes()
    b.change(root=root, limits=limits, platform=platform, collateral=collateral, trusted_time=_now)
    return b


def enrolment(process: Process) -> Platform:
    return enrol(Attester(process.socket), machine="node-1", mode="development", at=_now())


def test_swtpm_evidence_clears_both_gates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    platform = enrolment(process)
    assert platform.tpm.bound == "activate-credential"
    assert any(set(value) != {"0"} for value in platform.tpm.pcrs.values())
    b = against(tmp_path, monkeypatch, process, platform)
    first = b.attest()
    assert b.reattest(first).verdict.cleared


def test_enrolment_at_the_console(tmp_path: Path, process: Process, capsys: pytest.CaptureFixture[str]) -> None:
    app, out = cyclopts.App(name="rapha", version_flags=[]), tmp_path / "platform.json"
    register(app)
    words = ["node", "enrol", "--socket", str(process.socket), "--machine", "node-1", "--out", str(out), "--json"]
    assert run(app, words) == 3
    assert json.loads(capsys.readouterr().out)["codes"] == ["enrol-development-tpm"]
    maker = process.state / "tpm" / "maker" / "issuercert.pem"
    assert run(app, [*words, "--mode", "development", "--ek-root", str(maker)]) == 0
    assert json.loads(capsys.readouterr().out)["platform"] == read_platform(out.read_bytes()).digest


def test_swtpm_after_an_orderly_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: Process) -> None:
    """The same enrolled machine clears a new attempt after a reboot, but not the re-attestation of an attempt begun before it."""
    b = against(tmp_path, monkeypatch, process, enrolment(process))
    first = b.attest()
    process.stop()
    again = start(process.state)
    process.child = again.child
    b.change(collateral=(process.state / "dcap" / "collateral.json").read_bytes())
    with pytest.raises(Refusal) as refused:
        b.reattest(first)
    assert refused.value.codes == ("platform-changed",)
    assert b.attest().verdict.cleared


def test_swtpm_after_being_killed_has_a_safe_clock_again(process: Process) -> None:
    before = read_attest(Attester(process.socket).evidence(bytes(64)).attest)
    process.stop(kill=True)
    time.sleep(0.3)
    process.child = start(process.state).child
    after = read_attest(Attester(process.socket).evidence(bytes(64)).attest)
    assert after.safe and after.clock > before.clock and after.reset_count > before.reset_count


def test_G10_swtpm_of_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: Process, kept: Path) -> None:
    """The other machine has its own TPM and its own CPU; only the root is the same."""
    platform = enrolment(process)
    other = start(tmp_path / "other")
    try:
        mine, theirs = Machine.load(process.state / "dcap"), Machine.load(tmp_path / "other" / "dcap")
        assert mine.ppid != theirs.ppid
        b = against(tmp_path, monkeypatch, other, platform)
        assert {"tpm-signature", "tpm-signer", "platform-other"} <= set(b.codes())
    finally:
        other.stop()


def test_G15_credential_for_another_key_does_not_open(process: Process) -> None:
    """An attestation key that is not in the TPM of the endorsement key cannot be enrolled."""

    class Lying(Attester):
        def identity(self) -> Identity:
            return replace(super().identity(), ak_name="000b" + "11" * 32)

    with pytest.raises(Refusal) as refused:
        enrol(Lying(process.socket), machine="node-1", mode="development", at=_now())
    assert refused.value.codes == ("enrol-names",)
    attester = Attester(process.socket)
    credential = make_credential(attester.identity().ek_public, "000b" + "11" * 32, b"s" * 32)
    with pytest.raises(PeerError) as failed:
        attester.activate(credential)
    assert failed.value.codes == ("tpm-failed",)


def test_G15_key_that_could_sign_a_made_up_quote(process: Process) -> None:
    """The same key, said to be unrestricted: its name would differ, and the attribute alone is refused."""

    class Lying(Attester):
        def identity(self) -> Identity:
            found = super().identity()
            attributes = int.from_bytes(found.ak_public[6:10], "big") & ~(1 << 16)
            return replace(found, ak_public=found.ak_public[:6] + attributes.to_bytes(4, "big") + found.ak_public[10:])

    with pytest.raises(Refusal) as refused:
        enrol(Lying(process.socket), machine="node-1", mode="development", at=_now())
    assert refused.value.codes == ("enrol-tpm-key-unrestricted",)


def test_G15_endorsement_certificate_of_another_tpm(process: Process) -> None:
    real = Attester(process.socket).identity()

    class Lying(Attester):
        def identity(self) -> Identity:
            return replace(real, ek_certificate=_other_certificate())

    with pytest.raises(Refusal) as refused:
        enrol(Lying(process.socket), machine="node-1", mode="development", at=_now())
    assert refused.value.codes == ("enrol-ek-other",)


def test_G24_production_does_not_enrol_a_development_tpm(process: Process) -> None:
    with pytest.raises(Refusal) as refused:
        enrol(Attester(process.socket), machine="node-1", mode="production", at=_now())
    assert refused.value.codes == ("enrol-development-tpm",)


def test_endorsement_certificate_must_come_from_a_given_authority(process: Process) -> None:
    issuer = process.state / "tpm" / "maker" / "issuercert.pem"
    attester = Attester(process.socket)
    good = x509.load_pem_x509_certificates(issuer.read_bytes())
    assert enrol(attester, machine="node-1", mode="development", at=_now(), ek_roots=good).tpm.bound == "activate-credential"
    with pytest.raises(Refusal) as refused:
        enrol(
            attester,
            machine="node-1",
            mode="development",
            at=_now(),
            ek_roots=[x509.load_der_x509_certificate(_other_certificate())],
        )
    assert refused.value.codes == ("enrol-ek-untrusted",)


def test_software_attester_clears_in_development_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start(tmp_path / "node", "software")
    try:
        platform = enrolment(process)
        assert platform.tpm.bound == "none"
        b = against(tmp_path, monkeypatch, process, platform)
        assert b.attest().verdict.cleared
        b.attempt = replace(b.attempt, mode="production")
        assert {"platform-development", "root-development"} <= set(b.codes())
    finally:
        process.stop()


def test_device_refuses_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refused:
        DeviceTpm(tmp_path, device=tmp_path / "no-tpm")
    assert refused.value.codes == ("tpm-device-absent",)
    with pytest.raises(Refusal) as refused:
        DeviceTee(tsm=tmp_path / "no-tsm", gramine=tmp_path / "no-gramine")
    assert refused.value.codes == ("tee-device-absent",)


def test_device_reads_gramines_files(tmp_path: Path) -> None:
    (tmp_path / "quote").write_bytes(b"quote")
    assert DeviceTee(tsm=tmp_path / "no-tsm", gramine=tmp_path).quote(b"d" * 64) == b"quote"
    assert (tmp_path / "user_report_data").read_bytes() == b"d" * 64


def _other_certificate() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "another maker")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
    builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)
