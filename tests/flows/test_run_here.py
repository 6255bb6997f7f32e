"""The whole flow in this process, against the real world: the shortest way to see that everything fits."""

from flows.training import train
from infra.demo.world import World
from tests.fixtures.world import attempt_folder, delivered, ended, entries, register_job


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
