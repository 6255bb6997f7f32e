"""The receiver's journal is written anew while it is used: nothing that was answered is lost, whatever is killed when."""

import base64
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pynetdicom import AE

from infra.receiver import journal as journals
from infra.receiver.engine import Came, Command
from infra.receiver.journal import Journal
from infra.receiver.store import COMMITMENT_SECONDS, Store
from rapha.errors import PeerError, Refusal
from tests.fixtures.receiving import Receiving
from tests.peers.test_receiver import renamed
from tests.peers.test_receiver_disk import KEY, kept, sealed

CT = Path(str(get_testdata_file("CT_small.dcm")))
OWN = X25519PrivateKey.generate().public_key()


def opened(path: Path, least: int = 1 << 20) -> tuple[Journal, list[dict[str, Any]]]:
    journal = Journal(path, KEY, least=least)
    return journal, list(journal.entries)


def waited(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_at_every_moment_of_a_rewriting_the_file_has_every_line_that_was_appended(tmp_path: Path) -> None:
    path, go, there = tmp_path / "journal", threading.Semaphore(0), threading.Semaphore(0)
    journal, _ = opened(path)
    for number in range(20):
        journal.append(dead=number)
    journal.append(live=0)
    appended = [0]

    def slowly() -> Iterator[dict[str, Any]]:
        yield {"live": 0}
        for _ in range(3):
            there.release()
            go.acquire()

    journal.compact(slowly())
    for _ in range(3):
        there.acquire()
        appended.append(len(appended))
        journal.append(live=appended[-1])
        assert recovered(path, tmp_path / "copy") == appended
        go.release()
    waited(lambda: path.stat().st_size < 1000)
    waited(lambda: not journal.is_due and journal._meanwhile is None)
    appended.append(len(appended))
    journal.append(live=appended[-1])
    assert recovered(path, tmp_path / "copy") == appended
    assert [entry for entry in opened(path)[1] if "dead" in entry] == []


def recovered(path: Path, copy: Path) -> list[int]:
    """What a kill at this moment would leave."""
    shutil.copy(path, copy)
    return [entry["live"] for entry in opened(copy)[1] if "live" in entry]


def test_a_disk_that_fails_meanwhile_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    journal, _ = opened(path, least=0)
    journal.append(live=0)

    def fails(*_: object) -> None:
        raise OSError(28, "no space")

    with monkeypatch.context() as disk:
        disk.setattr(journals.os, "fsync", fails)
        with pytest.raises(OSError):
            journal.append(live=1)
        with pytest.raises(OSError):
            journal.rewrite([{"live": 0}])
    write = os.write
    with monkeypatch.context() as disk:  # half a line is written, and cannot be taken back at once
        disk.setattr(journals.os, "write", lambda file, line: write(file, line[:20]))
        disk.setattr(journals.os, "ftruncate", fails)
        with pytest.raises(OSError):
            journal.append(live=1)
    journal.append(live=2)
    assert recovered(path, tmp_path / "copy") == [0, 2]
    with monkeypatch.context() as disk:  # the new file stands in its place, and the folder's entry may not be on disk
        disk.setattr(journals, "sync_folder", fails)
        with pytest.raises(OSError):
            journal.rewrite([{"live": 0}, {"live": 2}])
        with pytest.raises(OSError):
            journal.append(live=3)
    journal.append(live=4)
    assert recovered(path, tmp_path / "copy") == [0, 2, 4]
    assert not (tmp_path / "journal.new").exists()


@pytest.mark.parametrize("text", ["2.25.1\0", "\ud800", "2.25." + "1" * (1 << 20)])
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, text: str) -> None:
    """An archive's text that JSON here does not hold would keep the receiver from its next start."""
    store = kept(tmp_path)
    with pytest.raises(OSError):
        store.committed(text, {"2.25.1": "1.2"}, {})
    command = Command(text, "1.2", "RAPHA", 1)
    addressed = store.addressed(command)
    assert addressed is not None
    addressed.writer.write(b"x")
    assert store.keep(Came(command, "1.2", "sha256:x", addressed.writer.finish(), "")) == 0xC000
    store.committed("2.25.2", {"2.25.1": "1.2"}, {})
    assert kept(tmp_path).commitment("2.25.2") is not None


def test_a_report_of_commitment_is_forgotten_after_its_time_and_not_before(tmp_path: Path) -> None:
    now = [1_800_000_000.0]

    def at() -> Store:
        return Store(tmp_path, OWN, Journal(tmp_path / "journal", KEY), 0, now=lambda: now[0])

    store = at()
    store.committed("2.25.1", {"2.25.9": "1.2"}, {})
    now[0] += COMMITMENT_SECONDS
    assert store.commitment("2.25.1") is not None and at().commitment("2.25.1") is not None
    store = at()
    store.committed("2.25.2", {"2.25.9": "1.2"}, {})
    now[0] += 1
    store.committed("2.25.3", {"2.25.9": "1.2"}, {})
    assert [store.commitment(f"2.25.{number}") is None for number in (1, 2, 3)] == [True, False, False]
    again = at()
    assert [again.commitment(f"2.25.{number}") is None for number in (1, 2, 3)] == [True, False, False]


def test_a_report_from_before_reports_had_a_time_is_kept_for_a_while(tmp_path: Path) -> None:
    journal, _ = opened(tmp_path / "journal")
    journal.append(what="committed", transaction="2.25.1", kept=["2.25.9"], failed={})
    assert kept(tmp_path).commitment("2.25.1") is not None


def small(folder: Path) -> Store:
    return Store(folder, OWN, Journal(folder / "journal", KEY, least=2000), 0)


def test_a_journal_stays_as_small_as_what_matters(tmp_path: Path) -> None:
    store = small(tmp_path)
    owed = [sealed(store, f"2.25.{number}", b"%d" % number).sop_instance for number in range(5)]
    most = 0
    given = set[int]()
    for number in range(150):
        sealed(store, "2.25.99", b"%d" % number)
        store.claim(store.expect("X", 0, ["2.25.99"]))
        given.add(store.next_message_id())
        own = store.expect("RAPHA", 7, [], OWN)
        most = max(most, (tmp_path / "journal").stat().st_size)
        store.close_ticket(own)
    assert most < 60_000  # 150 times 900 bytes were appended
    waited(lambda: store.journal._meanwhile is None)
    again = small(tmp_path)
    assert sorted(one.sop_instance for one in again.unclaimed()) == owed
    more = {again.next_message_id() for _ in range(70)}
    assert len(given) == 150 and not given & more  # an id that was reserved is not given again
    assert again.addressed(_command("RAPHA", 7)) is None  # and what was closed stays nobody's


def _command(originator: str, number: int) -> Any:
    return Command("2.25.5000", "1.2", originator, number)


def test_what_is_sealed_to_a_tickets_own_key_is_in_no_journal_that_is_written_anew(tmp_path: Path) -> None:
    store = small(tmp_path)
    ticket, command = store.expect("RAPHA", 7, ["2.25.1"], OWN), Command("2.25.1", "1.2", "RAPHA", 7)
    addressed = store.addressed(command)
    assert addressed is not None and addressed.ticket == ticket
    addressed.writer.write(b"x")
    assert store.keep(Came(command, "1.2.840.10008.1.2.1", "sha256:x", addressed.writer.finish(), ticket)) == 0
    store.journal.rewrite(store._live())
    assert {entry["what"] for entry in opened(tmp_path / "journal")[1]} == {"own", "ids"}


def storm(port: int, datasets: list[Dataset], answered: list[str]) -> None:
    """C-STOREs until one is not answered with success."""
    ae = AE("ORTHANC")
    ae.add_requested_context(datasets[0].SOPClassUID, datasets[0].file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port, ae_title="RAPHA")
    with suppress(RuntimeError, OSError):
        for dataset in datasets:
            if not association.is_established or association.send_c_store(dataset).get("Status") != 0:
                return
            answered.append(str(dataset.SOPInstanceUID))


def lines_without_use(process: Receiving) -> None:
    with suppress(PeerError, Refusal), process.client() as client:
        while True:  # until it is killed
            client.forgo(client.expect("NOBODY", 1, [], seal_to=OWN))


def test_sigkill_in_a_storm_while_the_journal_is_written_anew(tmp_path: Path) -> None:
    """It is due again and again, and each kill waits for a rewriting to fall into."""
    with Receiving(tmp_path / "r", "--compact-at", "1500") as process:
        answered: list[str] = []
        datasets = [dcmread(renamed(CT, tmp_path, 5000 + number)) for number in range(90)]
        caught, new = 0, process.store / "journal.new"
        for turn in range(1, 4):
            threads = [
                threading.Thread(target=storm, args=(process.port, datasets, answered)),
                threading.Thread(target=lines_without_use, args=(process,)),
            ]
            for one in threads:
                one.start()
            waited(partial(reached, answered, 8 * turn))
            waited(new.exists)
            process.kill()
            caught += new.exists()
            for one in threads:
                one.join(60)
            process.start()
        with process.client() as client:
            arrived = client.arrived(client.expect("ORTHANC", client.message_id(), [str(one.SOPInstanceUID) for one in datasets]))
        assert caught >= 1  # killed in the middle
        assert set(answered) <= {one.sop_uid for one in arrived}
        assert not any(one.conflict for one in arrived)
        assert (process.store / "journal").stat().st_size < 600 * (len(arrived) + 10)


def reached(answered: list[str], count: int) -> bool:
    return len(answered) >= count


def test_memory_does_not_grow_with_the_journal(tmp_path: Path) -> None:
    """100 MB of what was claimed and of reports that are past their time, and one instance that still matters."""
    with Receiving(tmp_path / "r") as process:
        assert process.send(renamed(CT, tmp_path, 6000)) == 0
        process.kill()
        path = process.store / "journal"
        journal = Journal(path, base64.b64decode(process.secret))
        number = len(list(journal.entries))
        gone = {"sop_class": "1.2", "transfer_syntax": "1.2", "sha256": "sha256:" + "0" * 64, "size": 1}
        gone |= {"originator": "A", "message_id": 1, "conflict": False, "ticket": ""}
        report = {"what": "committed", "transaction": "2.25.1", "kept": ["1" * 5000] * 100, "failed": {}, "at": 1}
        with path.open("ab") as stream:
            for turn in range(10_000):
                came = {"what": "came", "sop_instance": f"2.25.{turn}", "file": f"{turn}.sealed", **gone}
                stream.write(journal._line(number, came))
                number += 1
            while stream.tell() < 100_000_000:
                stream.write(journal._line(number, {**report, "transaction": f"2.25.{number}"}))
                number += 1
        process.start()
        assert process.process is not None
        status = Path(f"/proc/{process.process.pid}/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) // 1024
        with process.client() as client:
            assert client.unclaimed() == 1
        assert path.stat().st_size < 10_000
        assert peak < 128, f"{peak} MB"
