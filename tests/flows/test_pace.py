"""What the profile says of a worker's pace holds: studies begun at a time, stages at once, tries of a peer; associations."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import pairwise
from typing import Any

import pytest
from prefect import flow

from blocks.archive import Archive
from blocks.profile import Profile
from flows.draining import Shift
from flows.pace import adopt, pace
from flows.stages import async_stage, stage
from infra.demo.world import World
from infra.hospital.reading_cohort import make_study
from rapha.errors import PeerError
from tests.fixtures.misbehaving import Misbehaving


class AtOnce:
    """How many are inside at once, at most."""

    def __init__(self, seconds: float = 0.05) -> None:
        self.now, self.most, self._lock, self._seconds = 0, 0, threading.Lock(), seconds

    def __call__(self, *_: Any) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self._seconds)
        with self._lock:
            self.now -= 1


@pytest.fixture
def alone() -> Iterator[Any]:
    """A context of its own for what adopts a pace."""
    yield copy_context().run


def profile(**values: Any) -> Profile:
    return Profile(mode="development", endpoints={}, values={name.replace("__", "."): value for name, value in values.items()})


def test_a_worker_begins_no_more_than_a_batch_at_one_look(alone: Any) -> None:
    """Between two looks there is a pause while the studies in flight go on; within one, there is none."""
    rows, claims = list(range(7)), list[float]()

    def claim() -> int | None:
        if rows:
            claims.append(time.monotonic())
        return rows.pop() if rows else None

    async def run(row: int) -> str:
        while rows:  # none ends before all have begun: an end is a look too
            await asyncio.sleep(0.02)
        return "completed"

    def shift() -> dict[str, int]:
        adopt(profile(workflow__batch_size=2))
        return asyncio.run(Shift(claim, run, at_most=8, idle=0.0, until=time.monotonic() + 30, pause=0.1).work())

    assert alone(shift) == {"completed": 7}
    looks = [1]
    for before, now in pairwise(claims):
        looks = [*looks, 1] if now - before > 0.08 else [*looks[:-1], looks[-1] + 1]
    assert max(looks) <= 2


def test_no_more_stages_run_at_once_than_the_worker_has_threads(here: World, alone: Any) -> None:
    inside, own = AtOnce(), AtOnce()

    def body(row: int) -> None:
        inside()

    def tells(row: int) -> None:
        own()

    made, other = async_stage(body, "one"), async_stage(tells, "tell", named="tell")

    @flow(name="threads", persist_result=False, log_prints=False)
    async def rows() -> None:
        adopt(profile(workflow__worker_threads=2))
        await asyncio.gather(*(made(row) for row in range(6)), *(other(row) for row in range(4)))

    alone(lambda: asyncio.run(rows()))
    assert inside.most == 2
    assert own.most > 2  # what is nobody's stage waits for none


@pytest.mark.parametrize("retries", [0, 2])
def test_a_failed_peer_is_tried_again_as_often_as_the_profile_says(here: World, alone: Any, retries: int) -> None:
    seen: list[str] = []

    def fails(row: int) -> None:
        seen.append("called")
        raise PeerError("archive-down", "down", peer="pacs")

    quick = {"retry_delay_seconds": 0, "retry_jitter_factor": None}
    plain = stage(fails, "ask").with_options(**quick)
    many = async_stage(fails, "rows").with_options(**quick)

    @flow(name=f"tries-{retries}", persist_result=False, log_prints=False)
    def sync() -> None:
        adopt(profile(performance__max_retries=retries))
        plain(1)

    @flow(name=f"tries-many-{retries}", persist_result=False, log_prints=False)
    async def rows() -> None:
        adopt(profile(performance__max_retries=retries))
        await many(1)

    for run in (sync, lambda: asyncio.run(rows())):
        seen.clear()
        with pytest.raises(PeerError):
            alone(run)
        assert len(seen) == 1 + retries


def test_without_a_word_of_the_profile_the_pace_is_the_old_one(alone: Any) -> None:
    assert alone(lambda: adopt(profile())) == pace()
    assert (pace().batch, pace().threads, pace().retries) == (50, None, 3)


@pytest.mark.parametrize("size", [1, 3, None])
def test_no_more_associations_are_open_than_the_pool_has_places(size: int | None) -> None:
    """Seen from the archive: how many questions it has before it at once."""
    inside = AtOnce(0.05 if size else 0.5)
    with Misbehaving(make_study("dx", 51, 0), spoils=inside) as pacs, ThreadPoolExecutor(6) as pool:
        archive = Archive(pacs.endpoint(pool_size=size, idle_seconds=20.0))
        assert all(list(pool.map(lambda _: archive.find_studies({"PatientID": "*"}), range(6))))
        assert archive.list_study(str(make_study("dx", 51, 0)[0].StudyInstanceUID))  # several associations, one after another
    assert inside.most <= (size or 6)
    assert inside.most > 1 or size == 1


def test_a_pool_that_stays_full_is_a_failed_peer() -> None:
    from blocks.dimse.slots import slot

    full, may_go = threading.Event(), threading.Event()
    with Misbehaving([]) as pacs:
        endpoint = pacs.endpoint(pool_size=1, whole_seconds=0.2, name="full")

        def hold() -> None:
            with slot(endpoint), slot(endpoint):  # a thread that has a place does not wait for itself
                full.set()
                may_go.wait(10)

        holding = threading.Thread(target=hold)
        holding.start()
        full.wait(10)
        with pytest.raises(PeerError) as waited:
            Archive(endpoint).echo()
        may_go.set()
        holding.join()
    assert waited.value.codes == ("dimse-pool",)
