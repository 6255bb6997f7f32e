# ruff: noqa: F811 - fixtures are imported by name
"""C-MOVE for the training flow: who can open what the receiver holds, what any kill leaves, and how much memory it takes."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydicom.dataset import Dataset
from pynetdicom import AE
from pynetdicom.presentation import build_context

from blocks.instances import SealedReader
from infra.receiver.journal import Journal
from rapha.errors import PeerError, Refusal
from tests.attacks.test_data_path import changed_since, content, marks
from tests.fixtures.data_path import begin
from tests.fixtures.orthanc import Orthanc
from tests.fixtures.reading import cohort, make_image, set_pixels, write_records_file
from tests.fixtures.receiving import Receiving
from tests.fixtures.three_ways import DIMSE, WAYS, by, manifest_of, misbehaving, orthanc, receiving  # noqa: F401

NOT_AUTHORIZED = 0x0124


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Receiving]:
    """A receiver of this test's own, to be killed."""
    with Receiving(tmp_path / "receiver", "--peer", "PACS") as process:
        yield process


class Halfway:
    """Delivers one of the two images of each series; the next question of the first series that asks again waits for `go`."""

    def __init__(self) -> None:
        self.there, self.go = threading.Event(), threading.Event()

    def __call__(self, asked: list[Dataset]) -> list[Dataset]:
        if len(asked) == 2:
            return asked[:1]
        self.there.set()
        self.go.wait(30)
        return asked


@contextmanager
def half_fetched(folder: Path, receiving: Receiving) -> Iterator[tuple[int, Halfway, list[BaseException]]]:
    """A reader in the middle of a C-MOVE: its process id, what it waits for, how its fetch failed."""
    datasets = cohort(9, 2)
    manifest_of(folder, datasets)
    halfway, failed = Halfway(), list[BaseException]()
    with misbehaving("C-MOVE", folder, receiving, datasets, halfway) as hospital:
        reader = hospital.reader()
        begin(reader)
        reader.query()

        def fetch() -> None:
            try:
                reader.fetch()
            except (PeerError, Refusal) as error:
                failed.append(error)

        thread = threading.Thread(target=fetch, daemon=True)
        thread.start()
        assert halfway.there.wait(20)
        assert hospital.process is not None
        try:
            yield hospital.process.pid, halfway, failed
        finally:
            halfway.go.set()
            thread.join(30)


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def sealed(receiving: Receiving) -> list[Path]:
    return sorted(receiving.store.glob("*.sealed"))


def test_without_the_attempts_key_nobody_opens_what_the_receiver_kept(own: Receiving, tmp_path: Path) -> None:
    with half_fetched(tmp_path, own) as (pid, _, failed):
        kept = sealed(own)
        assert kept
        own.kill()  # it cannot tidy up any more
        os.kill(pid, signal.SIGKILL)  # and the private key is gone
        until(lambda: bool(failed))
        assert sealed(own) == kept
        for path in kept:
            with pytest.raises(Refusal) as refused:
                SealedReader(path, own.key)
            assert refused.value.codes == ("sealed-not-for-this-key",)
            assert not [mark for mark in marks(range(1, 10)) if mark in path.read_bytes()]
        own.start()
        assert sealed(own) == []


def test_what_a_dead_reader_leaves_at_the_receiver_is_removed(own: Receiving, tmp_path: Path) -> None:
    with half_fetched(tmp_path, own) as (pid, _, _):
        assert sealed(own)
        os.kill(pid, signal.SIGKILL)
        until(lambda: sealed(own) == [])


def test_a_receiver_killed_in_the_middle_is_a_failed_peer_and_the_next_try_is_whole(own: Receiving, tmp_path: Path) -> None:
    datasets = cohort(9, 2)
    manifest_of(tmp_path, datasets)
    killed = []

    def killing(asked: list[Dataset]) -> list[Dataset]:
        if not killed:
            killed.append(True)
            own.kill()
            own.start()
        return asked

    with misbehaving("C-MOVE", tmp_path, own, datasets, killing) as hospital, hospital.reader() as reader:
        begin(reader)
        reader.query()
        with pytest.raises(PeerError) as failed:
            reader.fetch()
        assert failed.value.codes[0] in ("receiver-gone", "receiver-unreachable", "pacs-stopped")
        assert sealed(own) == [] == list((tmp_path / "reader/staging").iterdir())
        facts = reader.fetch()
        assert (facts.received, facts.expected_root) == (18, facts.received_root)
        assert sealed(own) == []


def test_the_journal_of_the_receiver_names_no_instance_of_an_attempt(own: Receiving, tmp_path: Path) -> None:
    import base64

    with half_fetched(tmp_path, own):
        own.kill()
        entries = Journal(own.store / "journal", base64.b64decode(own.secret)).entries
    assert {entry["what"] for entry in entries} == {"ids", "own"}


def store(receiving: Receiving, dataset: Dataset, originator: str | None = None, number: int | None = None) -> int:
    """A C-STORE to the receiver, which names a C-MOVE or none; its status."""
    ae = AE("PACS")
    ae.requested_contexts = [build_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)]
    association = ae.associate("127.0.0.1", receiving.port, ae_title="RAPHA")
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = (
        dataset.SOPClassUID,
        dataset.SOPInstanceUID,
    )
    status = association.send_c_store(dataset, originator_aet=originator, originator_id=number)
    association.release()
    return int(status.Status)


def test_each_gets_its_own_where_two_wait_for_the_same_instance(receiving: Receiving) -> None:
    image, private = make_image(61, 1), X25519PrivateKey.generate()
    wanted = [str(image.SOPInstanceUID)]
    with receiving.client() as reads, receiving.client() as trains:
        numbers = reads.message_id(), trains.message_id()
        reading = reads.expect("RAPHA", numbers[0], wanted)
        training = trains.expect("RAPHA", numbers[1], wanted, seal_to=private.public_key())
        assert store(receiving, image, "RAPHA", numbers[1]) == 0
        assert (len(reads.arrived(reading)), len(trains.arrived(training))) == (0, 1)
        assert store(receiving, image, "RAPHA", numbers[0]) == 0
        (mine,), (theirs,) = reads.arrived(reading), trains.arrived(training)
        assert receiving.content(mine)
        with pytest.raises(Refusal, match="sealed to another key"):
            receiving.content(theirs)
        with SealedReader(theirs.path, private) as clear:
            assert clear.read() == receiving.content(mine)
        with pytest.raises(Refusal):
            trains.claim(training)
        trains.forgo(training)
        assert not theirs.path.exists() and mine.path.exists()
        assert store(receiving, image, "RAPHA", numbers[1]) == NOT_AUTHORIZED  # late, and for nobody
        reads.claim(reading)
        assert reads.unclaimed() == 0


def test_an_archive_that_names_no_c_move_serves_the_oldest_who_waits(receiving: Receiving) -> None:
    image, private = make_image(62, 1), X25519PrivateKey.generate()
    wanted = [str(image.SOPInstanceUID)]
    with receiving.client() as reads, receiving.client() as trains:
        training = trains.expect("RAPHA", trains.message_id(), wanted, seal_to=private.public_key())
        reading = reads.expect("RAPHA", reads.message_id(), wanted)
        for number in (1, 2):
            assert store(receiving, image) == 0
            assert (len(trains.arrived(training)), len(reads.arrived(reading))) == (1, number - 1)
        reads.claim(reading)


def test_a_receiver_without_a_study_reader_takes_what_is_waited_for_and_no_more(tmp_path: Path) -> None:
    with Receiving(tmp_path / "receiver", "--peer", "PACS", seals=False) as alone, alone.client() as client:
        image, other, private = make_image(63, 1), make_image(64, 1), X25519PrivateKey.generate()
        with pytest.raises(Refusal, match="receiver-no-recipient"):
            client.expect("RAPHA", client.message_id(), [str(image.SOPInstanceUID)])
        ticket = client.expect("RAPHA", client.message_id(), [str(image.SOPInstanceUID)], seal_to=private.public_key())
        assert (store(alone, image), store(alone, other)) == (0, NOT_AUTHORIZED)
        assert len(client.arrived(ticket)) == len(sealed(alone)) == 1


@pytest.mark.parametrize("key", ["", "AAAA", "x" * 44, 7])
def test_a_key_that_is_none_is_refused(receiving: Receiving, key: object) -> None:
    with receiving.client() as client, pytest.raises(Refusal) as refused:
        client.call("expect", originator="RAPHA", message_id=1, wanted=[], seal_to=key)
    assert refused.value.codes == ("receiver-request-odd",)


@pytest.mark.parametrize("way", DIMSE)
def test_C18_nothing_in_clear_lies_anywhere_by_any_way(orthanc: Orthanc, receiving: Receiving, tmp_path: Path, way: str) -> None:
    orthanc.clear()
    datasets = cohort(9)
    plant = np.frombuffer(os.urandom(2048), dtype=np.uint16).reshape(32, 32)
    for dataset in datasets:
        set_pixels(dataset, plant)
    orthanc.store_all(datasets)
    write_records_file(tmp_path / "records.jsonl", datasets)
    started = time.time() - 1
    with by(way, tmp_path, receiving, orthanc) as (reader, process):
        begin(reader)
        reader.query()
        assert reader.fetch().received == 9
        wanted = [plant.tobytes()[:64], *marks(range(1, 10))]
        places = [*changed_since(started, Path("/dev/shm"), Path("/tmp"), tmp_path), *receiving.store.iterdir()]
        assert len([path for path in places if path.is_relative_to(tmp_path / way / "staging")]) == 9
        for path in places:
            assert not [mark for mark in wanted if mark in content(path)], path.name
        assert reader.finish().destroyed is True
        process.kill()
        assert process.stdout.read() + process.stderr.read() == ""


def peak(pid: int) -> int:
    """Peak resident memory of a process, in MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024


@pytest.mark.parametrize("way", DIMSE)
def test_a_large_instance_passes_in_flat_memory(orthanc: Orthanc, own: Receiving, tmp_path: Path, way: str) -> None:
    orthanc.clear()
    datasets = cohort(8)
    set_pixels(datasets[0], np.repeat(np.arange(160, dtype=np.uint8), 1 << 20).reshape(160, 1024, 1024))
    orthanc.store_all(datasets)
    write_records_file(tmp_path / "records.jsonl", datasets)
    orthanc.call("PUT", "/modalities/rapha", f'["RAPHA","127.0.0.1",{own.port}]'.encode())
    assert own.process is not None
    with by(way, tmp_path, own, orthanc) as (reader, process):
        begin(reader)
        reader.query()
        before = peak(process.pid), peak(own.process.pid)
        assert reader.fetch().largest > 160 << 20
        assert peak(process.pid) - before[0] < 48
        assert peak(own.process.pid) - before[1] < 48
