"""An archive that answers a C-GET of some instances with all that it has, and with one that it does not list."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.archive import Archive
from blocks.ledger import read
from blocks.study import SealedFile
from infra.hospital.reading_cohort import make_study
from tasks.reading.retrieve import retrieve
from tests.fixtures.misbehaving import Misbehaving, Reply, others
from tests.fixtures.study_running import study_reader
from tests.peers.test_study_fetch import PRIVATE
from tests.stages.test_reading_content import Desk


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    opened = Desk(tmp_path)
    yield opened
    opened.register.close()


def test_what_an_archive_that_ignores_the_keys_of_a_c_get_sends_besides_is_not_read(desk: Desk, tmp_path: Path) -> None:
    holds = make_study("ct", 31, 1)[:3]
    with Misbehaving(holds, replies=[Reply(deliver=lambda _: [*holds, *others(holds[:1])])]) as pacs:
        archive = Archive(pacs.endpoint(retrieve="C-GET"))
        with study_reader(tmp_path, {"primary": archive}, PRIVATE) as reader:
            lease, attempt = desk.begin(str(holds[0].StudyInstanceUID))
            arrival, kept = retrieve(lease, attempt, desk.register, archive, reader, None)
            opened = reader.open([SealedFile(kept[uid].path, kept[uid].sha256) for uid in sorted(kept)])
        assert pacs.asked
    assert [one.sop_uid for one in opened] == sorted(str(one.SOPInstanceUID) for one in holds)
    assert (arrival.evidence.received, arrival.evidence.extra) == (3, 0)
    assert [one.body["codes"] for one in read(desk.ledger.folder) if one.kind == "movement"][-1:] == [["arrived-unlisted"]]
