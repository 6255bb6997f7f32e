"""What lies on the receiver's disk, before, during and after a kill; and what may be read from disk and wire meanwhile."""

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydicom import dcmread
from pydicom.data import get_testdata_file

from bench.receiver import write_large
from blocks.archive import attributes_digest
from blocks.instances import SealedReader, SealedWriter
from infra.peers.orthanc import free_port
from infra.receiver.journal import Journal
from infra.receiver.store import Arrival, Store
from rapha.errors import Refusal
from tests.fixtures.certificates import authority
from tests.fixtures.needles import Needles
from tests.fixtures.receiving import ENVIRONMENT, Receiving

CT = Path(str(get_testdata_file("CT_small.dcm")))
NEEDLE, PATIENT, UID = b"NEEDLE-IN-PIXELS", "PLANTED^NEEDLE^NAME", "2.25.31415926535"
KEY = bytes(range(32))


def kept(folder: Path) -> Store:
    return Store(folder, X25519PrivateKey.generate().public_key(), Journal(folder / "journal", KEY), 0)


def sealed(store: Store, uid: str, content: bytes) -> Arrival:
    """An instance kept as the engine does it."""
    from infra.receiver.engine import Came, Command

    command = Command(uid, "1.2.840.10008.5.1.4.1.1.2", "RAPHA", 1)
    addressed = store.addressed(command)
    assert addressed is not None
    addressed.writer.write(content)
    came = Came(command, "1.2.840.10008.1.2.1", "sha256:" + content.hex(), addressed.writer.finish(), addressed.ticket)
    assert store.keep(came) == 0
    return store.arrived(store.expect("X", 0, [uid]))[-1]


def planted(folder: Path, megabytes: int = 8) -> Path:
    dataset = dcmread(CT)
    dataset.PatientName, dataset.PatientID = PATIENT, "PLANTED-NEEDLE-ID"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID
    dataset.Rows, dataset.Columns = 1024, 1024
    dataset.NumberOfFrames = megabytes // 2
    dataset.PixelData = NEEDLE * (megabytes * (1 << 20) // len(NEEDLE))
    dataset.save_as(folder / "planted.dcm")
    return folder / "planted.dcm"


def test_a_sealed_file_that_the_journal_does_not_name_is_swept_and_no_other(tmp_path: Path) -> None:
    store = kept(tmp_path)
    mine, claimed, aside = (sealed(store, f"2.25.{number}", b"%d" % number) for number in (1, 2, 3))
    store.claim(store.expect("X", 0, ["2.25.2", "2.25.3"]))
    (tmp_path / "kept").mkdir()
    (tmp_path / aside.file).rename(tmp_path / "kept" / aside.file)
    writer = SealedWriter(tmp_path, X25519PrivateKey.generate().public_key())
    orphan = writer.finish().path  # killed between file and journal
    for _ in range(2):
        again = kept(tmp_path)
        assert {path.name for path in tmp_path.glob("*.sealed")} == {mine.file}
        assert {path.name for path in tmp_path.glob("kept/*.sealed")} == {aside.file}
        assert [one.sop_instance for one in again.unclaimed()] == ["2.25.1"]
    assert not orphan.exists() and claimed.file


def test_a_line_cut_short_is_dropped_and_a_changed_one_stops_the_receiver(tmp_path: Path) -> None:
    sealed(kept(tmp_path), "2.25.1", b"1")
    path = tmp_path / "journal"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert [one.sop_instance for one in kept(tmp_path).unclaimed()] == ["2.25.1"]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(reversed(lines)))
    with pytest.raises(Refusal) as refused:
        kept(tmp_path)
    assert refused.value.codes == ("journal-unreadable",)
    assert b"2.25" not in path.read_bytes()


def test_no_message_id_is_given_twice_whatever_is_killed(tmp_path: Path) -> None:
    given = [kept(tmp_path).next_message_id() for _ in range(10)]  # a process each, none of them stopped cleanly
    store = kept(tmp_path)
    given += [store.next_message_id() for _ in range(200)]
    assert len(set(given)) == len(given)
    assert all(0 < one < 0xFFFF for one in given)


def test_what_went_from_the_disk_is_taken_again(tmp_path: Path) -> None:
    store = kept(tmp_path)
    first = sealed(store, "2.25.1", b"1")
    (tmp_path / first.file).unlink()
    again = sealed(store, "2.25.1", b"1")
    assert (tmp_path / again.file).exists()
    assert not again.conflict


def test_nothing_in_clear_on_any_file_system_while_it_comes(tmp_path: Path) -> None:
    sent, needles = planted(tmp_path), Needles([PATIENT, UID], [NEEDLE])
    tree = tmp_path / "receiver"
    seen: set[bytes] = set()
    looks = 0
    with Receiving(tree) as process:
        assert process.process is not None
        open_files = Path(f"/proc/{process.process.pid}/fd")
        raw = sent.read_bytes()
        with slow_wire(process.port, piece=len(raw) // 6) as (port, halt):
            argv = ["storescu", "-R", "-aec", "RAPHA", "127.0.0.1", str(port), str(sent)]
            sender = subprocess.Popen(argv, env=ENVIRONMENT)
            while halt(sender):
                for path in [*tree.rglob("*"), *Path("/dev/shm").glob("*"), *Path("/tmp").glob("tmp*"), *open_files.iterdir()]:
                    content = _content(path, sent)
                    seen |= needles.in_(path.name.encode() + b"\n" + content)
                looks += any(path.stat().st_size > 1 << 19 for path in tree.rglob("*.part"))
            assert sender.wait(60) == 0
        assert looks >= 3  # it was looked at while half of it was there
        assert seen == set()
        with process.client() as client:
            (one,) = client.arrived(client.expect("X", client.message_id(), [UID]))
        assert attributes_digest(process.content(one)) == attributes_digest(raw)


def _content(path: Path, but: Path) -> bytes:
    """A regular file's bytes, by its name or through an open descriptor (an unlinked one too)."""
    try:
        return path.read_bytes() if path.is_file() and not path.samefile(but) else b""
    except OSError:
        return b""


@contextmanager
def slow_wire(to: int, piece: int) -> Iterator[tuple[int, "Callable[[subprocess.Popen[bytes]], bool]"]]:
    """A relay that stops after each `piece` bytes until the test has looked."""
    listener = socket.create_server(("127.0.0.1", 0))
    go, stopped = threading.Semaphore(0), threading.Semaphore(0)

    def forward() -> None:
        near, _ = listener.accept()
        with near, socket.create_connection(("127.0.0.1", to)) as far:
            threading.Thread(target=_pour, args=(far, near), daemon=True).start()
            budget = piece
            while block := near.recv(1 << 16):
                far.sendall(block)
                budget -= len(block)
                if budget < 0:
                    stopped.release()
                    go.acquire(timeout=30)
                    budget = piece
        stopped.release()

    threading.Thread(target=forward, daemon=True).start()
    first = [True]

    def halt(sender: "subprocess.Popen[bytes]") -> bool:
        if not first[0]:
            go.release()
        first[0] = False
        while sender.poll() is None and not stopped.acquire(timeout=0.1):
            pass
        return sender.poll() is None

    with listener:
        yield listener.getsockname()[1], halt


def _pour(source: socket.socket, sink: socket.socket) -> None:
    try:
        while block := source.recv(1 << 16):
            sink.sendall(block)
    except OSError:
        return


def test_the_wire_shows_nothing_under_tls(tmp_path: Path) -> None:
    sent, needles = planted(tmp_path, 2), [PATIENT.encode(), UID.encode(), NEEDLE]
    assert carried(tmp_path / "plain", sent, (), ()) >= set(needles)  # so that a reader who sees nothing is known to see
    ours = authority(tmp_path / "ca")
    cert, key = ours.issue("127.0.0.1")
    own, secret = ours.issue("sender.test")
    receiver = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(ours.bundle))
    sender = ("+tls", str(secret), str(own), "+cf", str(ours.bundle))
    assert carried(tmp_path / "tls", sent, (*receiver, "--tls-version", "TLS_1_2"), sender).isdisjoint(needles)


def carried(folder: Path, sent: Path, receiver: tuple[str, ...], sender: tuple[str, ...]) -> set[bytes]:
    """The needles that a relay between storescu and the receiver saw."""
    wire = bytearray()
    listener = socket.create_server(("127.0.0.1", 0))
    with Receiving(folder, *receiver) as process, listener:

        def forward() -> None:
            near, _ = listener.accept()
            with near, socket.create_connection(("127.0.0.1", process.port)) as far:
                threading.Thread(target=_pour, args=(far, near), daemon=True).start()
                while block := near.recv(1 << 16):
                    wire.extend(block)
                    far.sendall(block)

        threading.Thread(target=forward, daemon=True).start()
        argv = ["storescu", "-R", "-aec", "RAPHA", *sender, "127.0.0.1", str(listener.getsockname()[1]), str(sent)]
        subprocess.run(argv, env=ENVIRONMENT, timeout=60, check=True)
        assert len(list(process.store.glob("*.sealed"))) == 1
    return {needle for needle in (PATIENT.encode(), UID.encode(), NEEDLE) if needle in wire}


def test_dcmqrscp_and_movescu_bring_what_dcmsend_stored(tmp_path: Path) -> None:
    with Receiving(tmp_path / "r") as process, dcmqrscp(tmp_path, process.port) as port:
        dataset = dcmread(CT)
        subprocess.run(["dcmsend", "-aec", "ARCHIVE", "127.0.0.1", str(port), str(CT)], env=ENVIRONMENT, check=True, timeout=60)
        asked = ["-k", "0008,0052=STUDY", "-k", f"0020,000D={dataset.StudyInstanceUID}"]
        argv = ["movescu", "-S", "-aet", "HOSPITAL", "-aec", "ARCHIVE", "-aem", "RAPHA", *asked, "127.0.0.1", str(port)]
        subprocess.run(argv, env=ENVIRONMENT, check=True, timeout=60)
        with process.client() as client:
            (one,) = client.arrived(client.expect("X", client.message_id(), [str(dataset.SOPInstanceUID)]))
        assert attributes_digest(process.content(one)) == attributes_digest(CT.read_bytes())


@contextmanager
def dcmqrscp(folder: Path, receiver: int) -> Iterator[int]:
    port, store = free_port(), folder / "archive"
    store.mkdir()
    hosts = f"rapha = (RAPHA, localhost, {receiver})\n"
    table = f"HostTable BEGIN\n{hosts}HostTable END\nVendorTable BEGIN\nVendorTable END\nAETable BEGIN\n"
    table += f"ARCHIVE {store} RW (200, 1024mb) ANY\nAETable END\n"
    head = f"NetworkTCPPort = {port}\nMaxPDUSize = 16384\nMaxAssociations = 16\n"
    (folder / "qr.cfg").write_text(head + table)
    process = subprocess.Popen(["dcmqrscp", "-c", str(folder / "qr.cfg")], env=ENVIRONMENT)
    try:
        until = time.monotonic() + 60
        while subprocess.run(["echoscu", "-aec", "ARCHIVE", "127.0.0.1", str(port)], env=ENVIRONMENT, check=False).returncode:
            assert time.monotonic() < until
        yield port
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_memory_for_two_gigabytes(tmp_path: Path) -> None:
    write_large(tmp_path / "large.dcm", 2000)
    with Receiving(tmp_path / "r") as process:
        argv = ["storescu", "-R", "-aec", "RAPHA", "127.0.0.1", str(process.port), str(tmp_path / "large.dcm")]
        subprocess.run(argv, env=ENVIRONMENT, check=True, timeout=500)
        assert process.process is not None
        status = Path(f"/proc/{process.process.pid}/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
        assert peak < 128, f"{peak} MB"
        (path,) = process.store.glob("*.sealed")
        with SealedReader(path, process.key) as stream:
            assert stream.size > 1_990_000_000
