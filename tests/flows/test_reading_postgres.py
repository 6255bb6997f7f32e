"""Two workers, each a process of its own as on two machines, on one register in PostgreSQL: each study is read once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from pydicom import dcmread

from rapha.ledger import read
from tests.fixtures.clinic import reading
from tests.fixtures.postgres import running_postgres
from tests.flows.test_reading import new

STUDIES = [new("dx", seed, seed % 2) for seed in range(61, 65)]


@pytest.mark.timeout(300)
def test_two_workers_on_one_register_read_each_study_once() -> None:
    with running_postgres() as server, reading(STUDIES, "C-GET") as clinic:
        url, one = server.fresh(), clinic.folder / "one.yaml"
        one.write_text(
            (clinic.folder / "profile.yaml").read_text().replace("max_concurrent_studies: 4", "max_concurrent_studies: 1")
        )
        settings = {"RAPHA_REGISTER_URL": url, "RAPHA_PROFILE_PATH": str(one)}
        assert clinic.run('flows.poll("primary")', **settings)["new"] == len(STUDIES)

        def drain(_: int) -> dict[str, int]:
            return dict(clinic.run("asyncio.run(flows.drain(seconds=200.0, idle=2.0))", **settings))

        with ThreadPoolExecutor(2) as pool:
            ends = list(pool.map(drain, range(2)))
        ended = [entry.body for entry in read(clinic.folder / "state" / "ledger") if entry.kind == "ended"]
        assert sum(one.get("completed", 0) for one in ends) == len(STUDIES), (ends, ended)
        assert {name for one in ends for name in one} == {"completed"}
        assert all(ends), "one worker did all the work: this test has shown nothing of two"
        held = [dcmread(path, stop_before_pixels=True) for path in clinic.archive.glob("*.dcm")]
        reported = sorted(str(one.StudyInstanceUID) for one in held if one.Modality == "SR")
        assert reported == sorted(str(study[0].StudyInstanceUID) for study in STUDIES)
        done = [one.body for one in read(clinic.folder / "state" / "ledger") if one.body.get("gate") == "completeness"]
        assert [one["verdict"] for one in done] == ["cleared"] * len(STUDIES)
        assert not (clinic.folder / "state" / "reading.sqlite").exists()
