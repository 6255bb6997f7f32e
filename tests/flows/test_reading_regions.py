"""A model that draws: its segmentations go the report's whole way, and none of it twice, from the sandbox into the archive."""

import io
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from blocks.archive import Archive
from flows.course import Course
from infra.hospital.reading_cohort import make_study
from rapha.canonical import digest
from rapha.ledger import read, verify
from tasks.reading.validate import sr_facts, validate, validate_segmentation
from tasks.shared.probe import probe, write_record
from tests.fixtures.regions import DRAWS, declared
from tests.fixtures.ward import Ward, until, ward

QUIET = {"SR", "SEG"}


def study() -> list[Dataset]:
    """A made-up study of today: a first poll looks a day back."""
    found = make_study("ct", 81, 1)
    for dataset in found:
        dataset.StudyDate, dataset.StudyTime = time.strftime("%Y%m%d"), "000100"
    return found


@pytest.fixture(scope="module", params=["C-MOVE", pytest.param("C-GET", marks=pytest.mark.soak)])
def up(request: pytest.FixtureRequest) -> Iterator[Ward]:
    with ward([study()], request.param, model=DRAWS, declared=declared()) as made:
        if request.param == "C-MOVE":  # probed: it is known to take segmentations and to offer storage commitment
            write_record(made.folder / "state" / "capabilities", probe(Archive(made.clinic().profile.endpoints["primary"]), 1))
        assert made.run('flows.poll("primary")')["new"] == 1
        yield made


def ours(up: Ward) -> dict[str, list[Path]]:
    """What the archive holds of us, in its own folder, by modality."""
    found: dict[str, list[Path]] = {}
    for path in sorted(up.archive.glob("*.dcm")):
        modality = str(dcmread(path, specific_tags=["Modality"]).Modality)
        if modality in QUIET:
            found.setdefault(modality, []).append(path)
    return found


def course(up: Ward) -> Course:
    clinic = up.clinic()
    lease = clinic.register.claim("w", int(time.time()), 300, row=1)
    assert lease is not None
    return Course(clinic, lease)


@pytest.mark.timeout(300)
def test_a_replay_finds_them_again_and_stores_each_once(up: Ward) -> None:
    """An attempt that dies between the objects' storing and their proof; the next one begins there, with the same objects."""
    first = course(up)
    first.retrieve()
    first.analyse(lambda name, handed, total: None)
    first.report()
    assert first.built is not None and len(first.built.segmentations) == 2
    first.study.store("primary", first.built.segmentations[0].path)  # one of three is there when it dies
    first._enter("store")
    digests = first.built.digests
    assert first.register.fail(first.lease, ["made-up"], int(time.time())) == "dead"
    first.close()
    (letter,) = up.clinic().register.dead_letters()
    up.clinic().register.replay(letter.id, int(time.time()))
    ends = up.run("asyncio.run(flows.drain(seconds=120.0, idle=0.0))")
    assert ends == {"completed": 1}, [(one.stage, one.codes) for one in up.clinic().register.dead_letters()]
    entries = [entry for entry in read(up.folder / "state" / "ledger")]
    (resumed,) = [entry.body for entry in entries if entry.kind == "resumed"]
    assert (resumed["begins"], resumed["codes"]) == ("store", [])
    (said,) = [entry.body for entry in entries if entry.kind == "segmentations"]
    assert [*said["objects"], said["report"]] == digests
    assert verify(up.folder / "state" / "ledger").ok
    check_archive(up, digests)
    check_nothing_left(up)


def check_archive(up: Ward, digests: list[str]) -> None:
    """Each object once, valid, of the digest that the ledger has; the report refers to images of the study and to them."""
    held = ours(up)
    assert Counter({kind: len(paths) for kind, paths in held.items()}) == {"SR": 1, "SEG": 2}
    (report,) = (path.read_bytes() for path in held["SR"])
    segmentations = [path.read_bytes() for path in held["SEG"]]
    assert validate(report).codes == ()
    assert all(validate_segmentation(one).codes == () for one in segmentations)
    assert {data_set(raw) for raw in (report, *segmentations)} == set(digests)
    register = up.clinic().register
    images = {one.sop_uid for one in register.instances(1) if one.after and one.analysed and one.referenced}
    drawn = {str(dcmread(io.BytesIO(raw)).SOPInstanceUID) for raw in segmentations}
    assert sr_facts(report).evidence == images | drawn and len(images) == len(study())


def data_set(raw: bytes) -> str:
    """`sha256:…` of a file's data set: beyond the preamble, the prefix and the meta information of the length that it states."""
    return digest(raw[144 + int.from_bytes(raw[140:144], "little") :])


def check_nothing_left(up: Ward) -> None:
    """Our own series are no change of the study; nothing sealed stays; another tool finds them at the archive."""
    again = up.run('flows.poll("primary")')
    assert (again["new"], again["changed"]) == (0, 0)
    until(lambda: not up.sealed(), "nothing sealed is left", seconds=10)
    assert up.clinic().kept.names() == []
    endpoint = up.clinic().profile.endpoints["primary"]
    uid = str(study()[0].StudyInstanceUID)
    keys = ["-k", "QueryRetrieveLevel=SERIES", "-k", f"StudyInstanceUID={uid}", "-k", "Modality=SEG", "-k", "SeriesInstanceUID"]
    said = subprocess.run(
        ["findscu", "-S", "-aec", endpoint.ae_title, endpoint.host, str(endpoint.port), *keys],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert (said.stdout + said.stderr).count("(0020,000e)") >= 1
