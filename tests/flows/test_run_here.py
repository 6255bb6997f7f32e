"""The whole flow in this process, against the real world: the shortest way to see that everything fits."""

import time

from flows.node import Node
from flows.sweeping import swept
from flows.training import train
from infra.demo.world import World
from tests.fixtures.world import attempt_folder, delivered, ended, entries, register_job, register_of


def test_a_job_runs_through_every_gate_and_is_delivered(here: World) -> None:
    job = register_job(here)
    result = train(job)
    assert result["state"] == "done"
    assert ended(here, job).state == "done"
    kinds = [entry.kind for entry in entries(here, job)]
    assert kinds.count("verdict") == 13
    assert kinds[-1] == "delivered"
    assert delivered(here, job) == {"1/result", "1/receipt", "1/report"}
    assert (attempt_folder(here, job) / "receipt.json").exists()


def test_an_end_that_a_killed_sweep_did_not_write_down_is_written_by_the_next(here: World) -> None:
    job, register, now = register_job(here), register_of(here), int(time.time())
    assert register.claim("a worker that dies", now - 1000, 10, job=job) is not None
    with Node.open().keeper() as keeper:
        keeper.cut(job, 1)
    assert [lost.job for lost in register.reap(now)] == [job], "and here the sweep is killed"
    register.cancel(job, now=now)
    assert swept(lambda job, key: None)["line_free"] is True
    assert [entry.kind for entry in entries(here, job)][-1] == "ended"
