"""A study from an archive with C-MOVE alone, which commits to nothing and knows the patient otherwise: it ends all the same."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread, dcmwrite

from infra.hospital import dimse
from infra.hospital.cohort import file_name
from infra.hospital.index import Index
from infra.hospital.reading_cohort import file_bytes, make_study
from infra.peers.orthanc import free_port
from rapha.ledger import read
from tasks.shared.probe import probe, write_record
from tests.fixtures.ward import Ward, ward

PROFILE = """
pacs_endpoints:
  primary: {{host: localhost, port: {port}, ae_title: HOSPITAL, calling_ae_title: RAPHA, retrieve: C-MOVE}}
"""


class Coercing(dimse.DimseArchive):
    """What it stores is of the patient as it knows them (PS3.4 B.4.1.3)."""

    def _store(self, event: Any) -> int:
        dataset, out = dcmread(io.BytesIO(event.encoded_dataset(include_meta=True))), io.BytesIO()
        dataset.PatientName, dataset.PatientID = "Zeta^Reconciled", "HIS-4711"
        dcmwrite(out, dataset, enforce_file_format=True)
        path = self._folder / file_name(str(dataset.SOPInstanceUID))
        path.write_bytes(out.getvalue())
        self._index.add(path, dataset)
        return 0xB000


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ward, Path]]:
    folder, ports = tmp_path_factory.mktemp("archive"), {"receiver": free_port()}
    for dataset in make_study("ct", 77, 1):
        dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
        (folder / file_name(str(dataset.SOPInstanceUID))).write_bytes(file_bytes(dataset))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GET", "COMMITMENT"):
            patch.setattr(dimse, name, dimse.VERIFICATION)  # it offers neither
        archive = Coercing(folder, Index(folder), "HOSPITAL", {"RAPHA": ("127.0.0.1", ports["receiver"])})
        port = archive.start("127.0.0.1", 0)
    with ward([], "C-MOVE", profile=PROFILE.format(port=port), ports=ports) as made:
        yield made, folder


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_study_of_an_archive_with_c_move_alone_ends(up: tuple[Ward, Path]) -> None:
    made, folder = up
    record = probe(made.clinic().archive("primary").plain, 1_790_000_000)
    assert {"C-GET", "storage commitment"} & set(record["services"]) == set() and "C-MOVE" in record["services"]
    write_record(made.folder / "state" / "capabilities", record)
    assert made.run('flows.poll("primary")')["new"] == 1
    ends = made.run("asyncio.run(flows.drain(seconds=200.0, idle=0.0))")
    assert ends == {"completed": 1}, [(one.stage, one.codes) for one in made.clinic().register.dead_letters()]
    (said,) = made.folder.glob("state/reading/*/*/evidence/completeness.json")
    assert json.loads(said.read_bytes())["proof"] == "read-back"
    entries = list(read(made.folder / "state" / "ledger"))
    assert {tuple(one.body["tags"]) for one in entries if one.kind == "coerced"} == {("00100010", "00100020")}
    reports = [one for one in map(dcmread, folder.glob("*.dcm")) if one.Modality == "SR"]
    assert [str(one.PatientID) for one in reports] == ["HIS-4711"]
    assert made.sealed() == []
    receiver = made.clinic().receiver()
    assert receiver is not None
    with receiver:
        assert receiver.unclaimed() == 0
    assert made.run("asyncio.run(flows.drain(seconds=60.0, idle=0.0))") == {}
