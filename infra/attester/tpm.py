"""What an attester needs of a TPM, and the TPM 2.0 tools that drive one: a chip at /dev/tpmrm0, or a swtpm that is started
here."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from rapha.errors import ConfigurationError, PeerError, Refusal

AK_HANDLE, EK_HANDLE = "0x81010002", "0x81010001"
EK_CERTIFICATE = "0x01c00002"  # RSA 2048 (TCG EK Credential Profile, 2.2.1.4)


@dataclass(frozen=True, kw_only=True)
class TpmQuote:
    attest: bytes
    signature: bytes
    pcrs: dict[int, bytes]


@dataclass(frozen=True, kw_only=True)
class TpmIdentity:
    ak_pem: str
    ak_name: bytes
    ak_qualified_name: bytes
    ak_public: bytes
    ek_public: bytes
    ek_certificate: bytes
    pcrs: dict[int, bytes]


class Tpm(Protocol):
    """A TPM that holds an attestation key."""

    kind: str

    def quote(self, nonce: bytes, pcrs: list[int]) -> TpmQuote: ...
    def identity(self) -> TpmIdentity: ...
    def activate(self, credential: bytes) -> bytes: ...
    def close(self) -> None: ...


class ToolTpm:
    """A TPM driven by tpm2-tools. `tcti` names it; `folder` holds passing files. The EK is RSA 2048 at 0x81010001, the AK
    P-256."""

    kind = "device"

    def __init__(self, tcti: str, folder: Path) -> None:
        self._tcti, self._folder = tcti, folder
        missing = [tool for tool in ("tpm2_quote", "tpm2_createak", "tpm2_activatecredential") if shutil.which(tool) is None]
        if missing:
            raise ConfigurationError(["tpm2-tools-missing"], "tpm2-tools is not installed: apt-get install tpm2-tools")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def ensure_keys(self) -> None:
        """Makes the EK and AK persistent where they are not there yet."""
        held = self._run("tpm2_getcap", "handles-persistent").decode().lower()
        if EK_HANDLE not in held:
            self._run("tpm2_createek", "-c", EK_HANDLE, "-G", "rsa")
        if AK_HANDLE not in held:
            with self._files() as at:
                parts = ("-G", "ecc", "-g", "sha256", "-s", "ecdsa")
                self._run("tpm2_createak", "-C", EK_HANDLE, "-c", f"{at}/ak.ctx", *parts)
                self._run("tpm2_flushcontext", "-t")
                self._run("tpm2_evictcontrol", "-c", f"{at}/ak.ctx", AK_HANDLE)
                self._run("tpm2_flushcontext", "-t")

    def quote(self, nonce: bytes, pcrs: list[int]) -> TpmQuote:
        """A quote over `pcrs` of the SHA-256 bank."""
        indices = sorted(pcrs)
        selection = "sha256:" + ",".join(map(str, indices))
        with self._files() as at:
            outputs = ("-m", f"{at}/attest", "-s", f"{at}/signature", "-o", f"{at}/pcrs", "-F", "values")
            self._run("tpm2_quote", "-c", AK_HANDLE, "-l", selection, "-q", nonce.hex(), "-g", "sha256", *outputs)
            attest, signature, values = (Path(at, name).read_bytes() for name in ("attest", "signature", "pcrs"))
        return TpmQuote(
            attest=attest,
            signature=signature,
            pcrs={index: values[32 * i : 32 * (i + 1)] for i, index in enumerate(indices)},
        )

    def identity(self) -> TpmIdentity:
        """The AK with its names, the EK with its certificate, the PCRs as they are now."""
        with self._files() as at:
            names = ("-n", f"{at}/name", "-q", f"{at}/qualified")
            self._run("tpm2_readpublic", "-c", AK_HANDLE, "-f", "pem", "-o", f"{at}/ak.pem", *names)
            self._run("tpm2_readpublic", "-c", AK_HANDLE, "-o", f"{at}/ak.pub")
            self._run("tpm2_readpublic", "-c", EK_HANDLE, "-o", f"{at}/ek.pub")
            self._run("tpm2_nvread", EK_CERTIFICATE, "-o", f"{at}/ek.der")
            self._run("tpm2_pcrread", "sha256:all", "-o", f"{at}/pcrs")
            values = Path(at, "pcrs").read_bytes()
            return TpmIdentity(
                ak_pem=Path(at, "ak.pem").read_text(),
                ak_name=Path(at, "name").read_bytes(),
                ak_qualified_name=Path(at, "qualified").read_bytes(),
                ak_public=Path(at, "ak.pub").read_bytes(),
                ek_public=Path(at, "ek.pub").read_bytes(),
                ek_certificate=Path(at, "ek.der").read_bytes(),
                pcrs={index: values[32 * index : 32 * (index + 1)] for index in range(len(values) // 32)},
            )

    def activate(self, credential: bytes) -> bytes:
        """TPM2_ActivateCredential: only the TPM that holds both EK and AK can open it (TPM 2.0 Part 1, 24)."""
        with self._files() as at:
            Path(at, "credential").write_bytes(credential)
            session = f"{at}/session"
            self._run("tpm2_startauthsession", "--policy-session", "-S", session)
            try:
                self._run("tpm2_policysecret", "-S", session, "-c", "e")
                where = ("-i", f"{at}/credential", "-o", f"{at}/secret")
                self._run("tpm2_activatecredential", "-c", AK_HANDLE, "-C", EK_HANDLE, *where, "-P", f"session:{session}")
            finally:
                self._run("tpm2_flushcontext", session)
            return Path(at, "secret").read_bytes()

    def close(self) -> None:
        """A chip needs no stopping."""

    def _files(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(dir=self._folder)

    def _run(self, *command: str) -> bytes:
        environment = {"PATH": os.environ.get("PATH", "/usr/bin"), "TPM2TOOLS_TCTI": self._tcti, "TSS2_LOG": "all+NONE"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False, umask=0o077)
        except subprocess.TimeoutExpired:
            raise PeerError("tpm-timeout", f"{command[0]} did not end in time", peer="tpm") from None
        if done.returncode != 0:
            raise PeerError("tpm-failed", f"{command[0]} ended with status {done.returncode}", peer="tpm")
        return done.stdout


class DeviceTpm(ToolTpm):
    """The machine's own TPM through its resource manager."""

    def __init__(self, folder: Path, device: Path = Path("/dev/tpmrm0")) -> None:
        if not device.exists():
            raise Refusal(["tpm-device-absent"], f"there is no TPM at {device}", gate="attestation")
        super().__init__(f"device:{device}", folder)
        self.ensure_keys()


class SwTpm(ToolTpm):
    """A swtpm with its state in `folder`, started as a child of this process and ended in order with it. For development."""

    kind = "swtpm"

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
            raise ConfigurationError(["swtpm-missing"], "swtpm is not installed: apt-get install swtpm swtpm-tools")
        state = folder / "tpm"
        if not state.exists():
            _manufacture(state)
        self._process, port = _start(state)
        super().__init__(f"swtpm:host=127.0.0.1,port={port}", folder)
        try:
            self._after_reset()
            self.ensure_keys()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """TPM2_Shutdown first: a TPM that loses power without it calls its clock unsafe."""
        if self._process.poll() is None:
            with contextlib.suppress(PeerError):  # gone already, or broken: ending it is all that is left
                self._run("tpm2_shutdown", "-c")
            self._process.terminate()
            self._process.wait(timeout=10)

    def _after_reset(self) -> None:
        """Measures a made-up boot, and advances the clock past any value it may have shown if the last stop was not in order."""
        for index in (4, 7):
            if self._run("tpm2_pcrread", f"sha256:{index}", "-Q", "-o", "/dev/stdout").strip(b"\0") == b"":
                self._run("tpm2_pcrextend", f"{index}:sha256={'0' * 62}{index:02x}")
        clock = self._run("tpm2_readclock").decode()
        if "safe: no" in clock:
            now = int(next(line.split()[1] for line in clock.splitlines() if line.strip().startswith("clock:")))
            self._run("tpm2_setclock", str(now + (1 << 22) + 1))


def _manufacture(state: Path) -> None:
    """A new TPM whose endorsement certificate is by an authority of its own, kept in `state`/maker."""
    maker = state / "maker"
    maker.mkdir(parents=True, mode=0o700)
    names = {"statedir": ".", "signingkey": "signkey.pem", "issuercert": "issuercert.pem", "certserial": "certserial"}
    (maker / "ca.conf").write_text("".join(f"{name} = {maker / file}\n" for name, file in names.items()))
    (maker / "ca.options").write_text("--platform-manufacturer Rapha\n--platform-version 1\n--platform-model development\n")
    tools = {"": shutil.which("swtpm_localca"), "_config": maker / "ca.conf", "_options": maker / "ca.options"}
    (maker / "setup.conf").write_text("".join(f"create_certs_tool{name} = {path}\n" for name, path in tools.items()))
    what = ("--createek", "--create-ek-cert", "--lock-nvram", "--overwrite", "--pcr-banks", "sha256")
    command = ["swtpm_setup", "--tpm2", "--config", str(maker / "setup.conf"), "--tpmstate", str(state), *what]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    if done.returncode != 0:
        shutil.rmtree(state, ignore_errors=True)
        raise PeerError("swtpm-setup-failed", f"swtpm_setup ended with status {done.returncode}", peer="tpm")


def _start(state: Path) -> tuple["subprocess.Popen[bytes]", int]:
    for _ in range(10):
        port = _free_pair()
        where = [f"type=tcp,port={port + i},bindaddr=127.0.0.1" for i in (0, 1)]
        serving = ("--server", where[0], "--ctrl", where[1], "--flags", "not-need-init,startup-clear")
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", *serving],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if _listening(process, port):
            return process, port
        process.kill()
        process.wait()
    raise PeerError("swtpm-failed", "swtpm does not start", peer="tpm")


def _listening(process: "subprocess.Popen[bytes]", port: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        if f":{port:04X}" in Path("/proc/net/tcp").read_text():
            return True
        time.sleep(0.02)
    return False


def _free_pair() -> int:
    """A port whose neighbour is free too: the tools' swtpm driver takes the control channel to be the next one."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            try:
                two.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
