"""C-MOVE of a CT study into the receiver, hashed, sealed and journalled, beside DCMTK's storescp; and the receiver's memory."""

import base64
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydicom.dataset import Dataset

from bench.processes import ROOT
from bench.row import Row, beside
from bench.studies import STUDY, ct_study
from bench.wado import peak
from blocks.archive import Archive
from blocks.endpoint import Endpoint
from infra.peers.orthanc import Orthanc, file_bytes, free_port

IMAGES = 300
AS_INSTALLED = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
NODELAY = {**os.environ, "TCP_NODELAY": "1"}
MEGABYTES = (205, 2000)


def rows() -> list[Row]:
    """Two rows of speed, two of memory."""
    return [*_moved(), *_memory()]


def _moved() -> list[Row]:
    study = ct_study(IMAGES)
    return [_untouched(study), _nodelay(study)]


def _untouched(study: Sequence[Dataset]) -> Row:
    note = f"{IMAGES} x 525 kB; Orthanc and storescp as installed, without TCP_NODELAY; ours hashed, sealed, journalled"
    with _archive(study, AS_INSTALLED) as (archive, ours, folder):
        ask = _asked(archive)
        with _storescp(folder, AS_INSTALLED) as there:
            _known(archive, ours, there)
            name = "receiver: C-MOVE, an untouched Orthanc"
            return beside(name, ask("RAPHA"), ask("PEER"), peer_name="the same C-MOVE to storescp", runs=3, note=note)


def _nodelay(study: Sequence[Dataset]) -> Row:
    note = f"{IMAGES} x 525 kB; Orthanc, movescu and storescp with TCP_NODELAY=1; ours hashed, sealed, journalled"
    with _archive(study, NODELAY) as (archive, ours, folder), _storescp(folder, NODELAY) as there:
        _known(archive, ours, there)
        argv = ["movescu", "-aec", "ORTHANC", "-S", "-k", "0008,0052=STUDY", "-k", f"0020,000D={STUDY}"]
        argv += ["127.0.0.1", str(archive.dicom_port)]

        def peer() -> None:
            subprocess.run([*argv, "-aem", "PEER"], env=NODELAY, check=True, capture_output=True)

        name = "receiver: C-MOVE, TCP_NODELAY=1"
        return beside(name, _asked(archive)("RAPHA"), peer, peer_name="movescu + storescp", runs=5, note=note)


def _asked(archive: Orthanc) -> Callable[[str], Callable[[], None]]:
    """A C-MOVE of the study to a destination, by our own SCU."""

    def to(destination: str) -> Callable[[], None]:
        at = {"name": "bench", "host": "127.0.0.1", "port": archive.dicom_port, "ae_title": "ORTHANC"}
        endpoint = Endpoint(**at, calling_ae_title="RAPHA", move_destination=destination)  # type: ignore[arg-type]

        def move() -> None:
            outcome = Archive(endpoint).move(STUDY, message_id=7)
            if outcome.status != 0 or outcome.completed not in (None, IMAGES):
                raise RuntimeError("the study did not come whole")

        return move

    return to


def _known(archive: Orthanc, ours: int, there: int) -> None:
    for name, port in (("RAPHA", ours), ("PEER", there)):
        body = f'{{"AET": "{name}", "Host": "127.0.0.1", "Port": {port}}}'
        archive.call("PUT", f"/modalities/{name}", body.encode())


@contextmanager
def _archive(study: Sequence[Dataset], environment: dict[str, str]) -> Iterator[tuple[Orthanc, int, Path]]:
    """(archive with the study, port of a fresh receiver, folder)."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rapha-bench-")))
        archive = stack.enter_context(_orthanc(folder / "orthanc", environment))
        archive.store_all(study)
        port, _ = stack.enter_context(_receiver(folder))
        yield archive, port, folder


@contextmanager
def _orthanc(folder: Path, environment: dict[str, str]) -> Iterator[Orthanc]:
    """Orthanc with the environment as given: infra.peers.orthanc always sets TCP_NODELAY, and here that is what is measured."""
    folder.mkdir()
    http, dicom = free_port(), free_port()
    configuration = {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "DicomAet": "ORTHANC"}
    ports = {"DicomPort": dicom, "HttpPort": http, "RemoteAccessAllowed": False, "AuthenticationEnabled": False}
    may = {"DicomAlwaysAllowMove": True, "DicomAlwaysAllowEcho": True}
    (folder / "orthanc.json").write_text(json.dumps({**configuration, **ports, **may}))
    process = subprocess.Popen(
        ["Orthanc", str(folder / "orthanc.json")], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    archive = Orthanc(f"http://127.0.0.1:{http}/dicom-web", f"http://127.0.0.1:{http}", dicom, process)
    try:
        for _ in range(600):
            try:
                archive.call("GET", "/system")
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        yield archive
    finally:
        process.kill()
        process.wait()


@contextmanager
def _receiver(folder: Path) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    public = X25519PrivateKey.generate().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "study.pub").write_bytes(public)
    argv = [sys.executable, "-m", "infra.receiver", "--ae", "RAPHA", "--port", str(free_port()), "--store", str(folder / "store")]
    argv += [
        "--seal-to",
        str(folder / "study.pub"),
        "--socket",
        str(folder / "r.sock"),
        "--peer",
        "ORTHANC",
        "--peer",
        "STORESCU",
    ]
    environment = {**AS_INSTALLED, "RAPHA_RECEIVER_KEY_BASE64": base64.b64encode(os.urandom(32)).decode()}
    process = subprocess.Popen(argv, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        said = [process.stdout.readline() for _ in range(2)] if process.stdout else []
        if not said or said[1] != "ready\n":
            raise RuntimeError("the receiver did not start")
        yield int(said[0].split()[1]), process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _storescp(folder: Path, environment: dict[str, str]) -> Iterator[int]:
    port, kept = free_port(), folder / "storescp"
    kept.mkdir()
    argv = ["storescp", "-aet", "PEER", "-od", str(kept), str(port)]
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if subprocess.run(["echoscu", "127.0.0.1", str(port)], env=NODELAY, capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def _memory() -> list[Row]:
    """High-water marks over one object's size; each of a fresh receiver."""
    found = []
    for megabytes in MEGABYTES:
        with tempfile.TemporaryDirectory(prefix="rapha-bench-") as name, _receiver(Path(name)) as (port, process):
            path = Path(name) / "large.dcm"
            write_large(path, megabytes)
            subprocess.run(
                ["storescu", "-R", "-aec", "RAPHA", "127.0.0.1", str(port), str(path)],
                env=NODELAY,
                check=True,
                capture_output=True,
            )
            title = f"receiver: peak memory for an object of {megabytes} MB"
            note = "VmHWM of the whole process after one C-STORE; lower is better, 128 is the bound"
            found.append(Row(title, peak(process.pid), 128.0, 1, "MiB", "the bound of the house", note))
    return found


def write_large(path: Path, megabytes: int) -> None:
    """A multi-frame CT of about so many MB, written without holding it."""
    (dataset,) = ct_study(1)
    frame = bytes(dataset.PixelData)
    frames = megabytes * 1_000_000 // len(frame)
    dataset.NumberOfFrames, dataset.SOPInstanceUID = frames, f"{STUDY}.9.{megabytes}"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    del dataset.PixelData
    with path.open("wb") as stream:
        stream.write(file_bytes(dataset))
        stream.write(b"\xe0\x7f\x10\x00OW\0\0" + (frames * len(frame)).to_bytes(4, "little"))
        for _ in range(frames):
            stream.write(frame)
