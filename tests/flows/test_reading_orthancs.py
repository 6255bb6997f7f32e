"""Twenty studies at once from two Orthancs and a dcmqrscp, and back: what came is what they hold, by tools that are not ours."""

import io
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.archive import Archive
from blocks.dimse.services import ToStore
from blocks.instances import SealedReader
from blocks.part10 import read_meta
from infra.hospital.reading_cohort import file_bytes, make_study
from infra.peers.orthanc import free_port, running_orthanc
from rapha.canonical import digest
from rapha.ledger import read, verify
from tasks.reading.validate import sr_facts, validate
from tasks.shared.probe import probe, write_record
from tests.fixtures.dcmqrscp import ENVIRONMENT, running_dcmqrscp
from tests.fixtures.ward import Ward, ward

PROFILE = """
pacs_endpoints:
  primary: {{host: localhost, port: {first}, ae_title: ORTHANC_A, calling_ae_title: RAPHA, retrieve: C-MOVE}}
  second: {{host: localhost, port: {second}, ae_title: ORTHANC_B, calling_ae_title: RAPHA, retrieve: C-GET}}
  other: {{host: localhost, port: {third}, ae_title: ARCHIVE, calling_ae_title: RAPHA, retrieve: C-MOVE}}
workflow: {{max_concurrent_studies: 20, quiet_seconds: 0}}
"""
TITLES = {"primary": "ORTHANC_A", "second": "ORTHANC_B", "other": "ARCHIVE"}
ORTHANC = {"DicomAlwaysAllowGet": True, "DicomAlwaysAllowFind": True, "DicomAlwaysAllowMove": True, "MaximumPduLength": 131072}


def of_today(seed: int) -> list[Dataset]:
    study = make_study("ct" if seed % 5 == 0 else "dx", 500 + seed, seed % 2)
    for dataset in study:
        dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
    return study


# Nine in each Orthanc, two in the dcmqrscp: twenty in all.
HELD = {
    name: [of_today(seed) for seed in seeds] for name, seeds in zip(TITLES, (range(9), range(9, 18), range(18, 20)), strict=True)
}
STUDIES = [study for held in HELD.values() for study in held]


@dataclass
class Archives:
    """The service, each archive's port, and a storescp of DCMTK's (AE title KEEP) that they send to as they send to us."""

    ward: Ward
    ports: dict[str, int]
    kept: Path

    def asked(self, name: str, level: str, folder: Path, **keys: str) -> list[Dataset]:
        """What findscu is told."""
        folder.mkdir(parents=True)
        wanted = [part for key, value in keys.items() for part in ("-k", f"{key}={value}" if value else key)]
        argv = [
            "findscu",
            "-S",
            "-X",
            "-od",
            str(folder),
            "-aet",
            "RAPHA",
            "-aec",
            TITLES[name],
            "-k",
            f"QueryRetrieveLevel={level}",
        ]
        subprocess.run([*argv, *wanted, "localhost", str(self.ports[name])], env=ENVIRONMENT, check=True, capture_output=True)
        return [dcmread(path, force=True) for path in sorted(folder.iterdir())]

    def listed(self, name: str, study: str, folder: Path) -> dict[str, str]:
        """SOP Instance UID -> modality of its series, asked for series by series."""
        found: dict[str, str] = {}
        for series in self.asked(name, "SERIES", folder / "series", StudyInstanceUID=study, SeriesInstanceUID="", Modality=""):
            uid = str(series.SeriesInstanceUID)
            below = self.asked(name, "IMAGE", folder / uid, StudyInstanceUID=study, SeriesInstanceUID=uid, SOPInstanceUID="")
            found |= {str(one.SOPInstanceUID): str(series.Modality) for one in below}
        return found

    def sent(self, name: str, study: str) -> dict[str, bytes]:
        """SOP Instance UID -> the file as the archive sends it to DCMTK's storescp, bit by bit."""
        argv = ["movescu", "-S", "-aet", "KEEP", "-aem", "KEEP", "-aec", TITLES[name], "-k", "QueryRetrieveLevel=STUDY"]
        argv += ["-k", f"StudyInstanceUID={study}", "localhost", str(self.ports[name])]
        subprocess.run(argv, env=ENVIRONMENT, check=True, capture_output=True)
        found = {str(dcmread(path, stop_before_pixels=True).SOPInstanceUID): path.read_bytes() for path in self.kept.iterdir()}
        for path in self.kept.iterdir():
            path.unlink()
        return found


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    folder.mkdir()
    port = free_port()
    process = subprocess.Popen(["storescp", "-B", "+xa", "-aet", "KEEP", "-od", str(folder), str(port)], env=ENVIRONMENT)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archives]:
    folder, ours = tmp_path_factory.mktemp("archives"), free_port()
    with ExitStack() as open_:
        keep = open_.enter_context(storescp(folder / "kept"))
        known = {"DicomModalities": {"rapha": ["RAPHA", "127.0.0.1", ours], "keep": ["KEEP", "127.0.0.1", keep]}, **ORTHANC}
        first, second = (
            open_.enter_context(running_orthanc(folder / name, DicomAet=TITLES[name], **known)) for name in ("primary", "second")
        )
        third = open_.enter_context(running_dcmqrscp(folder / "other", ours, {"KEEP": keep}))
        ports = {"primary": first.dicom_port, "second": second.dicom_port, "other": third}
        profile = PROFILE.format(first=first.dicom_port, second=second.dicom_port, third=third)
        up = open_.enter_context(ward([], "", profile=profile, ports={"receiver": ours}))
        for name, studies in HELD.items():
            put(folder, ports[name], TITLES[name], studies)
            write_record(up.folder / "state" / "capabilities", probe(Archive(up.clinic().profile.endpoints[name]), 1))
        yield Archives(up, ports, folder / "kept")


def put(folder: Path, port: int, title: str, studies: list[list[Dataset]]) -> None:
    """Into an archive, by DCMTK's storescu."""
    files = []
    for number, dataset in enumerate(one for study in studies for one in study):
        files.append(folder / f"{title}-{number}.dcm")
        files[-1].write_bytes(file_bytes(dataset))
    subprocess.run(["storescu", "-R", "-aec", title, "localhost", str(port), *map(str, files)], env=ENVIRONMENT, check=True)


def data_set(file: bytes) -> bytes:
    meta = read_meta(file)
    assert meta is not None
    return file[meta.length :]


@pytest.mark.timeout(700)
def test_twenty_studies_at_once_come_back_as_one_report_each(archives: Archives, tmp_path: Path) -> None:
    up = archives.ward
    flow = up.flow()
    flow.ready()
    flow.start('[flows.poll(name)["new"] for name in ("primary", "second", "other")]')
    assert flow.result() == [9, 9, 2]
    flow = up.flow()
    flow.ready()
    flow.start("asyncio.run(flows.drain(seconds=300.0, idle=0.0))")
    register, ends = up.clinic().register, flow.result(400)
    late = [
        one for one in register.queue() if one.codes == ("engine-failed",)
    ]  # twenty at once can be more than its database takes
    assert Counter(ends) == Counter(completed=20 - len(late), scheduled=len(late)), [
        (one.stage, one.codes) for one in (*register.dead_letters(), *register.queue())
    ]
    if late:
        flow = up.flow()
        flow.ready()
        flow.start(f"[asyncio.run(flows.read(row))['end'] for row in {[one.row for one in late]}]")
        assert set(flow.result(200)) == {"completed"}
    for name, studies in HELD.items():
        for study in studies:
            check_equation(archives, name, study, tmp_path)
    assert up.sealed() == []
    assert verify(up.folder / "state" / "ledger").ok
    cleared = Counter(e.body["gate"] for e in read(up.folder / "state" / "ledger") if e.kind == "verdict" and not e.body["codes"])
    assert cleared == {"arrival": 20, "completeness": 20}
    assert Counter(notice.row for notice in register.notices()) == Counter(range(1, 21))


def check_equation(archives: Archives, name: str, study: list[Dataset], folder: Path) -> None:
    """expected = received = analysed + left out; referenced = analysed; one report: by findscu, by what a storescp is sent."""
    uid = str(study[0].StudyInstanceUID)
    listed = archives.listed(name, uid, folder / uid)
    sent = archives.sent(name, uid)
    assert set(sent) == set(listed)
    images = {one for one, modality in listed.items() if modality != "SR"}
    (report,) = (one for one, modality in listed.items() if modality == "SR")
    assert images == {str(one.SOPInstanceUID) for one in study}
    register = archives.ward.clinic().register
    states = {one.sop_uid: one for one in register.instances(register.row_of(name, uid) or 0) if one.after}
    assert {uid: one.sha256 for uid, one in states.items()} == {uid: digest(data_set(sent[uid])) for uid in images}
    assert {uid for uid, one in states.items() if one.analysed} | {uid for uid, one in states.items() if one.reason} == images
    facts = sr_facts(sent[report])
    assert facts.evidence == {uid for uid, one in states.items() if one.analysed} == images
    assert dcmread(io.BytesIO(sent[report])).PatientID == study[0].PatientID


def test_a_report_as_the_archive_sends_it_is_valid(archives: Archives, tmp_path: Path) -> None:
    """One of each archive; which checks there are is for their own tests."""
    for name, studies in HELD.items():
        uid = str(studies[0][0].StudyInstanceUID)
        (report,) = (one for one, modality in archives.listed(name, uid, tmp_path / name).items() if modality == "SR")
        assert validate(archives.sent(name, uid)[report]).codes == ()


def test_our_reports_are_no_new_studies(archives: Archives) -> None:
    flow = archives.ward.flow()
    flow.ready()
    flow.start('[flows.poll(name) for name in ("primary", "second", "other")]')
    assert [(found["new"], found["changed"]) for found in flow.result()] == [(0, 0)] * 3


def test_instances_reach_another_archive_byte_for_byte(archives: Archives) -> None:
    """An Orthanc -> our receiver, sealed -> opened -> a dcmqrscp; compared with what the Orthanc sends a storescp of DCMTK's."""
    clinic, study = archives.ward.clinic(), str(HELD["primary"][0][0].StudyInstanceUID)
    source, destination = clinic.archive("primary"), clinic.archive("other")
    wanted = [one for one in source.list_study(study) if one.modality != "SR"]
    receiver = clinic.receiver()
    assert receiver is not None
    with receiver:
        number = receiver.message_id()
        ticket = receiver.expect("RAPHA", number, [one.sop_uid for one in wanted])
        source.move(study, message_id=number)
        arrived = receiver.arrived(ticket)
        private = load_pem_private_key((archives.ward.folder / "keys" / "study.pem").read_bytes(), None)
        for one in arrived:
            with SealedReader(one.path, private) as stream:  # type: ignore[arg-type]
                (archives.kept.parent / f"{one.sop_uid}.through").write_bytes(stream.read())
        receiver.claim(ticket)  # and with the connection they go
    through = {one.sop_uid: archives.kept.parent / f"{one.sop_uid}.through" for one in arrived}
    metas = {uid: read_meta(path.read_bytes()) for uid, path in through.items()}
    objects = [ToStore(path, metas[uid].sop_class, uid, metas[uid].transfer_syntax) for uid, path in through.items()]  # type: ignore[union-attr]
    assert set(destination.store(study, objects).values()) == {"stored"}
    first, last = archives.sent("primary", study), archives.sent("other", study)
    assert {one.sop_uid for one in wanted} <= set(last)
    for uid, content in last.items():
        assert data_set(content) == data_set(through[uid].read_bytes()) == data_set(first[uid])
