"""Twenty studies of a real Orthanc are read by C-MOVE and stored back into it, while worker, receiver and engine are killed again
and again. What came of it is recomputed by DCMTK's tools and by the Orthanc's own REST interface."""

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from pydicom.dataset import Dataset

from blocks.archive import Archive
from infra.hospital.reading_cohort import make_study
from infra.peers.orthanc import Orthanc, free_port, running_orthanc
from rapha.ledger import read
from tasks.shared.probe import probe, write_record
from tests.fixtures.ward import FlowProcess, Ward, until, ward
from tests.flows.test_reading_kill import LEASE, STAGES, brought_to_their_end, check_clean, healthy
from tests.flows.test_reading_orthancs import ORTHANC, Archives, check_equation, put, storescp

log = logging.getLogger(__name__)
PROFILE = """
pacs_endpoints:
  primary: {{host: localhost, port: {port}, ae_title: ORTHANC_A, calling_ae_title: RAPHA, retrieve: C-MOVE}}
workflow: {{max_concurrent_studies: 6}}
"""
STUDIES = 20
DRAIN = "asyncio.run(flows.drain(seconds=300.0, idle=3.0))"
KILLED = {"lease-expired", "engine-failed", "receiver-gone", "receiver-unreachable"}
# Who dies, and at which stage some study is then.
VICTIMS = (
    ("receiver", "retrieve"),
    ("worker", "prove"),  # the report is stored, and nobody has said so yet
    ("engine", "analyse"),
    ("worker", "retrieve"),
    ("receiver", "prove"),
    ("worker", "store"),
    ("engine", "report"),
    ("worker", "prove"),
)


def of_today(number: int) -> list[Dataset]:
    study = make_study("ct" if number % 4 == 0 else "dx", 7000 + number, number % 2)
    for dataset in study:
        dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
    return study


HELD = [of_today(number) for number in range(STUDIES)]


@dataclass
class Place:
    """The service and its one archive; `archives`: the same for DCMTK's tools."""

    ward: Ward
    orthanc: Orthanc
    archives: Archives

    def reports(self) -> Counter[str]:
        """Study Instance UID -> how many structured reports the Orthanc holds of it, by its REST interface."""
        asked = {"Level": "Series", "Query": {"Modality": "SR"}, "Expand": True}
        found: Counter[str] = Counter()
        for series in json.loads(self.orthanc.call("POST", "/tools/find", json.dumps(asked).encode())):
            study = json.loads(self.orthanc.call("GET", f"/studies/{series['ParentStudy']}"))
            found[study["MainDicomTags"]["StudyInstanceUID"]] += len(series["Instances"])
        return found

    def progress(self) -> int:
        """How many stages all studies are through."""
        done = len(STAGES) + 1
        return sum(done if row["state"] == "completed" else STAGES.index(row["stage"]) for row in self.ward.rows())

    def at(self, stage: str) -> bool:
        """Whether some study is in this stage now."""
        return any(row["state"] == "in-progress" and row["stage"] == stage for row in self.ward.rows())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder, ours = tmp_path_factory.mktemp("kills"), free_port()
    with ExitStack() as open_:
        keep = open_.enter_context(storescp(folder / "kept"))
        known = {"DicomModalities": {"rapha": ["RAPHA", "127.0.0.1", ours], "keep": ["KEEP", "127.0.0.1", keep]}, **ORTHANC}
        orthanc = open_.enter_context(running_orthanc(folder / "orthanc", DicomAet="ORTHANC_A", DicomThreadsCount=32, **known))
        up = open_.enter_context(ward([], "", profile=PROFILE.format(port=orthanc.dicom_port), ports={"receiver": ours}))
        put(folder, orthanc.dicom_port, "ORTHANC_A", HELD)
        write_record(up.folder / "state" / "capabilities", probe(Archive(up.clinic().profile.endpoints["primary"]), 1))
        open_.enter_context(up.revived())
        yield Place(up, orthanc, Archives(up, {"primary": orthanc.dicom_port}, folder / "kept"))


def started(up: Ward) -> FlowProcess:
    flow = up.flow(**LEASE)
    flow.ready()
    flow.start(DRAIN)
    return flow


def killed(up: Ward, victim: str, flow: FlowProcess) -> None:
    """One SIGKILL; what dies is started again, but for the worker, whose place a new one takes."""
    if victim == "worker":
        flow.kill()
        return
    member = up.member(victim)
    process = member.process
    assert process is not None
    process.kill()
    until(lambda: member.process is not process, f"{victim} is started again")
    member.deaths.clear()
    until(lambda: healthy(up), "the engine answers", pause=0.1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_twenty_studies_are_read_once_whoever_is_killed(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    up, chance = place.ward, random.Random("orthanc kills")
    flow = up.flow()
    flow.ready()
    flow.start('flows.poll("primary")["new"]')
    assert flow.result() == STUDIES
    rows = [row["id"] for row in up.rows()]
    whole = STUDIES * (len(STAGES) + 1)
    points = sorted(chance.sample(range(2, whole * 3 // 4), len(VICTIMS)))
    flow, deaths = started(up), list[tuple[str, int]]()
    try:
        for (victim, stage), point in zip(VICTIMS, points, strict=True):
            while not (place.progress() >= point and place.at(stage)):
                assert place.progress() < whole, (deaths, victim, stage)
                if flow.process.poll() is not None:  # the shift ended, or died of its engine's or receiver's death
                    flow.close()
                    flow = started(up)
                time.sleep(0.003)
            killed(up, victim, flow)
            deaths.append((victim, place.progress()))
            if victim == "worker":
                flow.close()
                flow = started(up)
        flow.outcome(400)
    finally:
        flow.close()
    replayed(up)
    brought_to_their_end(up, rows)
    log.info("killed, after how many stages of all: %s", deaths)
    check(place, rows, tmp_path_factory)


def replayed(up: Ward) -> None:
    """A study that five kills have hit is a dead letter, and a person replays it. One with another code fails the test."""
    register = up.clinic().register
    for letter in register.dead_letters():
        if set(letter.codes) <= KILLED:
            register.replay(letter.id, int(time.time()))
    register.close()


def check(place: Place, rows: list[int], folders: pytest.TempPathFactory) -> None:
    up = place.ward
    for study in HELD:
        check_equation(place.archives, "primary", study, folders.mktemp("asked"))
    wanted = Counter({str(study[0].StudyInstanceUID): 1 for study in HELD})
    assert place.reports() == wanted, "no report twice, none missing"
    register = up.clinic().register
    assert Counter(notice.row for notice in register.notices()) == Counter(rows)
    register.close()
    ledger = [entry.body for entry in read(up.folder / "state" / "ledger")]
    closed = [one for one in ledger if one.get("gate") == "completeness" and not one["codes"]]
    assert len({one["job"] for one in closed}) == STUDIES
    assert any(one.get("attempt", 1) > 1 for one in ledger), "no kill hit a study: nothing was shown"
    check_clean(up, HELD)
    assert {row["state"] for row in up.rows()} == {"completed"}
