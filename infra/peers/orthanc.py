"""A real Orthanc with its DICOMweb plugin.

with running_orthanc(folder) as archive:
    archive.store(dataset)
    DicomWeb(archive.url)
"""

import ctypes
import io
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

PLUGINS = ("/usr/share/orthanc/plugins/libOrthancDicomWeb.so", "/usr/lib/orthanc/libOrthancDicomWeb.so")
PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def file_bytes(dataset: Dataset) -> bytes:
    """The data set as a DICOM file; a file meta group is made where it has none."""
    if not isinstance(dataset, FileDataset) or "TransferSyntaxUID" not in getattr(dataset, "file_meta", {}):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", ExplicitVRLittleEndian)
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
        dataset.file_meta = meta
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@dataclass(frozen=True)
class Orthanc:
    """url: the DICOMweb base; rest: Orthanc's own REST interface."""

    url: str
    rest: str
    dicom_port: int
    process: subprocess.Popen[bytes]

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        request = urllib.request.Request(self.rest + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def store(self, item: Dataset | bytes | Path) -> str:
        """Stores one object and returns the archive's own id of it."""
        raw = item if isinstance(item, bytes) else item.read_bytes() if isinstance(item, Path) else file_bytes(item)
        return str(json.loads(self.call("POST", "/instances", raw))["ID"])

    def store_all(self, items: Iterable[Dataset | bytes | Path]) -> list[str]:
        return [self.store(item) for item in items]

    def delete(self, orthanc_id: str) -> None:
        self.call("DELETE", f"/instances/{orthanc_id}")

    def clear(self) -> None:
        for study in json.loads(self.call("GET", "/studies")):
            self.call("DELETE", f"/studies/{study}")


@contextmanager
def running_orthanc(folder: Path, **settings: object) -> Iterator[Orthanc]:
    """Starts the archive, waits until it answers, and stops it. `settings` go into its configuration."""
    http, dicom = int(str(settings.get("HttpPort") or free_port())), free_port()
    plugin = next((path for path in PLUGINS if Path(path).exists()), PLUGINS[0])
    configuration = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "Plugins": [plugin],
        "DicomAet": "ORTHANC",
        "DicomPort": dicom,
        "HttpPort": http,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DefaultEncoding": "Utf8",
        "DicomAlwaysAllowStore": True,
        "UnknownSopClassAccepted": True,
        "OverwriteInstances": True,
        "SyncStorageArea": False,
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            ["Orthanc", str(folder / "orthanc.json")],
            stdout=log,
            stderr=log,
            env={**os.environ, "TCP_NODELAY": "1", "LC_ALL": "C.UTF-8"},
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - one call that takes no lock
        )
    rest = f"http://127.0.0.1:{http}"
    archive = Orthanc(f"{rest}/dicom-web", rest, dicom, process)
    try:
        _wait(archive, folder / "orthanc.log")
        yield archive
    finally:
        process.kill()  # a clean stop takes seconds and nothing here outlives the block
        process.wait()


def _wait(archive: Orthanc, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and archive.process.poll() is None:
        try:
            archive.call("GET", "/dicom-web/studies?limit=1")
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError("Orthanc did not start: " + log.read_text(errors="replace")[-2000:])
