"""What our own door turns away: from a real association to a DICOM audit message, once, however often it came."""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pynetdicom import AE, evt

from blocks.archive import Archive
from blocks.audit import AuditTrail, Wanted
from blocks.endpoint import Endpoint, TlsSettings
from flows import reading as flows
from infra.receiver.alarms import MOST, Alarms
from infra.receiver.engine import MOST_THREADS, TURNED_AWAY
from policies.alerts import CAUSES, NODE_AUTHENTICATION
from policies.audit_message import Message
from rapha.errors import PeerError
from tests.fixtures.audit import new_trail
from tests.fixtures.certificates import authority
from tests.fixtures.receiving import Receiving
from tests.peers.test_receiver import _stored_as, renamed

CT = Path(str(get_testdata_file("CT_small.dcm")))
VERIFICATION = "1.2.840.10008.1.1"


@pytest.fixture
def receiving(tmp_path: Path) -> Iterator[Receiving]:
    with Receiving(tmp_path / "receiver") as process:
        yield process


@pytest.fixture
def trail(tmp_path: Path) -> AuditTrail:
    return new_trail(tmp_path / "trail")


def minded(process: Receiving, trail: AuditTrail, receiver: Callable[[], Any] | None = None) -> list[Message]:
    """One round of what the drain does beside its studies; every alert of the trail after it."""
    register = SimpleNamespace(reap=lambda now, letters_to: None, queue=list)
    clinic: Any = SimpleNamespace(
        receiver=receiver or process.client, trail=trail, person="reading@node", register=register, letters_to=""
    )
    board: Any = SimpleNamespace(show=lambda queue, ends, why: None)
    asyncio.run(flows._looked_after(clinic, SimpleNamespace(ends={}, brake=SimpleNamespace(why="")), board))  # type: ignore[arg-type]
    return [trail.message(one) for one in trail.search(Wanted(kinds=frozenset({"alert"})))]


def refused(port: int, calling: str, called: str = "RAPHA", sent: bytearray | None = None) -> None:
    """An association that is rejected. sent: becomes what was sent."""
    ae, seen = AE(calling), sent if sent is not None else bytearray()
    ae.add_requested_context(VERIFICATION)
    seen.clear()
    handlers: list[Any] = [(evt.EVT_DATA_SENT, lambda event: seen.extend(event.data))]
    assert ae.associate("127.0.0.1", port, ae_title=called, evt_handlers=handlers).is_rejected


def test_a_wrong_title_is_one_alert_and_a_right_one_is_none(receiving: Receiving, trail: AuditTrail) -> None:
    ae = AE("ORTHANC")
    ae.add_requested_context(VERIFICATION)
    right = ae.associate("127.0.0.1", receiving.port, ae_title="RAPHA")
    assert right.is_established
    right.release()
    assert minded(receiving, trail) == []
    for _ in range(3):
        refused(receiving.port, "STRANGER")
    refused(receiving.port, "ORTHANC", called="OTHER")
    first, second = minded(receiving, trail)
    assert [one.event.outcome for one in (first, second)] == [8, 8]
    assert {code.code for code in first.event.types} == {NODE_AUTHENTICATION}
    assert first.event.description.split()[:2] == ["receiver-calling-title", "3"]
    assert second.event.description.split()[:2] == ["receiver-called-title", "1"]
    who, offender = first.participants
    assert (who.user, who.requestor, offender.requestor) == ("reading@node", True, False)
    assert (offender.user, offender.network, offender.network_type) == ("STRANGER", "127.0.0.1", "2")
    assert len(minded(receiving, trail)) == 2  # once


def test_a_wrong_certificate_is_one_alert_and_who_only_knocks_is_none(tmp_path: Path, trail: AuditTrail) -> None:
    ours, foreign = authority(tmp_path / "ca"), authority(tmp_path / "foreign", "Foreign")
    cert, key = ours.issue("127.0.0.1")
    with Receiving(tmp_path / "r", "--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(ours.bundle)) as process:
        socket.create_connection(("127.0.0.1", process.port)).close()
        stranger = foreign.issue("sender.test")
        tls = TlsSettings(ca_bundle=ours.bundle, cert_file=stranger[0], key_file=stranger[1])
        there = {"name": "r", "host": "127.0.0.1", "port": process.port, "ae_title": "RAPHA", "calling_ae_title": "ORTHANC"}
        with pytest.raises(PeerError):
            Archive(Endpoint(**there, tls=tls, connect_seconds=5.0)).echo()  # type: ignore[arg-type]
        (alert,) = minded(process, trail)
    assert alert.event.description.split()[:2] == ["tls-certificate-untrusted", "1"]
    assert {code.code for code in alert.event.types} == {NODE_AUTHENTICATION}
    assert alert.participants[1].network == "127.0.0.1"


def test_a_refused_object_is_an_alert_without_a_word_of_the_patient(
    receiving: Receiving, trail: AuditTrail, tmp_path: Path
) -> None:
    dataset: Any = dcmread(renamed(CT, tmp_path, 901))
    dataset.file_meta.MediaStorageSOPInstanceUID = "2.25.901"
    assert _stored_as(receiving, dataset, "2.25.902") == 0xA900
    with receiving.client() as client:  # a ticket with a key of its own, closed: what comes for it is nobody's
        own = X25519PrivateKey.generate().public_key()
        client.forgo(client.expect("ORTHANC", 77, ["2.25.901"], seal_to=own))
    ae = AE("ORTHANC")
    ae.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", receiving.port, ae_title="RAPHA")
    assert association.send_c_store(dataset, originator_aet="ORTHANC", originator_id=77).Status == 0x0124
    association.release()
    told = [one.event.description.split()[0] for one in minded(receiving, trail)]
    assert told == ["receiver-object-named-otherwise", "receiver-object-unexpected"]
    kept = (receiving.store / "alarms").read_bytes() + b"".join(xml for _, xml in trail.messages())
    assert [one for one in (b"2.25.90", b"CompressedSamples", str(dataset.PatientID).encode()) if one in kept] == []


def test_a_disk_that_is_low_is_an_alert(tmp_path: Path, trail: AuditTrail) -> None:
    with Receiving(tmp_path / "r", "--disk-floor", str(1 << 60)) as full:
        assert full.send(CT) != 0
        (alert,) = minded(full, trail)
    assert alert.event.description.split()[:2] == ["receiver-out-of-resources", "1"]


def test_what_a_dead_worker_did_not_write_stays_and_a_kill_of_the_receiver_keeps_it(
    receiving: Receiving, trail: AuditTrail
) -> None:
    class Dying:
        def record(self, *_: object, **__: object) -> None:
            raise PeerError("audit-unwritable", "the disk is full", peer="audit")

    refused(receiving.port, "STRANGER")
    minded(receiving, SimpleNamespace(record=Dying().record, search=lambda wanted: ()))  # type: ignore[arg-type]
    with receiving.client() as client:
        assert [one.titles for one in client.alarms()] == [("STRANGER",)]
    until = time.monotonic() + 10
    while b"STRANGER" not in ((receiving.store / "alarms").read_bytes() if (receiving.store / "alarms").exists() else b""):
        assert time.monotonic() < until
        time.sleep(0.05)
    receiving.kill()
    receiving.start()
    (alert,) = minded(receiving, trail)
    assert alert.participants[1].user == "STRANGER"


def test_a_receiver_that_is_gone_stops_nothing(receiving: Receiving, trail: AuditTrail) -> None:
    def gone() -> Any:
        raise PeerError("receiver-unreachable", "gone", peer="receiver")

    assert minded(receiving, trail, gone) == []


def test_a_flood_of_a_thousand_is_one_alert_with_its_count(receiving: Receiving, trail: AuditTrail) -> None:
    request = bytearray()
    for number in range(6):
        refused(receiving.port, f"STRANGER{number}", sent=request)
    for _ in range(994):  # the last request again, without the cost of a library on this side
        with socket.create_connection(("127.0.0.1", receiving.port)) as raw:
            raw.sendall(request)
            assert raw.recv(1) == b"\x03"  # A-ASSOCIATE-RJ (PS3.8 section 9.3.4)
    (alert,) = minded(receiving, trail)
    assert alert.event.description.split()[:2] == ["receiver-calling-title", "1000"]
    assert alert.participants[1].user == "STRANGER0 STRANGER1 STRANGER2 STRANGER3"
    refused(receiving.port, "STRANGER")
    assert len(minded(receiving, trail)) == 1  # what goes on is told again after some quiet


@pytest.mark.soak
def test_a_flood_of_silent_connections_is_bounded_and_told(receiving: Receiving) -> None:
    assert receiving.process is not None
    task = Path(f"/proc/{receiving.process.pid}/task")
    silent = [socket.create_connection(("127.0.0.1", receiving.port)) for _ in range(MOST_THREADS // 2 + 60)]
    with receiving.client() as client:
        until = time.monotonic() + 20
        while not (found := client.alarms()):
            assert time.monotonic() < until
            time.sleep(0.05)
        assert [one.code for one in found] == ["receiver-out-of-resources"]
        assert len(list(task.iterdir())) < 2 * MOST_THREADS
    for one in silent:
        one.close()


def test_a_flood_from_everywhere_fills_neither_memory_nor_disk(tmp_path: Path) -> None:
    alarms = Alarms(tmp_path / "alarms")
    for number in range(20_000):
        alarms.note("receiver-calling-title", f"10.0.{number // 256 % 256}.{number % 256}", f"T{number}")
    for name in ("PATIENT^NAME", "a" * 17, "", "Zoë", "new\nline"):
        alarms.note("receiver-calling-title", "10.0.0.1", name)
    found = alarms.due()
    assert len(found) <= MOST + 1 and sum(one["count"] for one in found) == 20_005
    assert all(title.startswith("T") and len(one["titles"]) <= 4 for one in found for title in one["titles"])
    for one in found:
        alarms.written({one["name"]: one["count"]})
    for number in range(1_000):  # the rest of the flood, while those are still kept quiet: further addresses are one
        alarms.note("receiver-calling-title", f"10.1.{number // 256}.{number % 256}", "T")
    assert [one for one in alarms.due() if one["address"]] == []
    time.sleep(1.5)
    assert (tmp_path / "alarms").stat().st_size < 1 << 17


def test_what_came_while_it_was_written_is_not_lost(tmp_path: Path) -> None:
    alarms = Alarms(tmp_path / "alarms")
    alarms.note("receiver-called-title", "10.0.0.1")
    (one,) = alarms.due()
    alarms.note("receiver-called-title", "10.0.0.1")
    (again,) = alarms.due()  # another worker asks
    assert (again["name"], again["count"]) == (one["name"], 2)
    alarms.written({one["name"]: 1})
    alarms.written({one["name"]: 2})  # late, of what is written already
    assert [held.count for held in alarms._alarms.values()] == [1]


def test_every_code_of_the_door_is_an_alert_of_its_type() -> None:
    codes = {*TURNED_AWAY.values(), "receiver-calling-title", "receiver-called-title"}
    assert codes == {code for code in CAUSES if code.startswith("receiver-")}


def test_a_file_of_alarms_that_is_spoilt_keeps_no_receiver_from_starting(tmp_path: Path) -> None:
    for content in (b"", b"{", b'[{"x": 1}]', b"[1]", b"1"):
        (tmp_path / "alarms").write_bytes(content)
        assert Alarms(tmp_path / "alarms").due() == []
