"""The polls on the engine: each archive by itself, one run at a time, a second one canceled."""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Pending, Running

from blocks.endpoint import Endpoint
from blocks.profile import Profile
from flows.deploying import deploy_all
from infra.engine import engine_environment, prepare, server
from infra.peers.orthanc import free_port
from infra.serve import base_environment
from infra.supervisor import Supervisor

HOME = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SyncPrefectClient]:
    folder, port = tmp_path_factory.mktemp("engine"), free_port()
    prepare(folder / "home")
    group = Supervisor(folder / "logs")
    try:
        group.start(server({**base_environment({}), **engine_environment(folder / "home", port)}, port))
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{port}/api"}), get_client(sync_client=True) as opened:
            yield opened
    finally:
        group.stop()


def profile(*polled: str, every: int = 300, active: bool = True) -> Profile:
    names = ("primary", "backup", "slides")
    ends = {name: Endpoint(name=name, host="h", port=1, ae_title="A", calling_ae_title="B") for name in names}
    values = {"workflow.polling_interval_seconds": every, "workflow.automated_polling": active}
    return Profile(mode="development", endpoints=ends, values=values, polled=polled)


def polls(client: SyncPrefectClient) -> dict[str, list[tuple[str, int]]]:
    """Name of each deployment of the poll -> (archive, seconds) of its active schedules."""
    found = {one.name: one for one in client.read_deployments() if one.name.startswith("poll")}
    for one in found.values():
        assert one.global_concurrency_limit and one.global_concurrency_limit.limit == 1
        assert one.concurrency_options and one.concurrency_options.collision_strategy.value == "CANCEL_NEW"
    return {
        name: [(s.parameters["pacs"], int(s.schedule.interval.total_seconds())) for s in one.schedules if s.active]
        for name, one in found.items()
    }


def started(client: SyncPrefectClient, deployment: str) -> tuple[UUID, str]:
    """A new run of a deployment, brought as far as it may go by what a worker says of it; its state."""
    run = client.create_flow_run_from_deployment(client.read_deployment_by_name(f"poll/{deployment}").id)
    if client.set_flow_run_state(run.id, Pending()).state.is_pending():  # type: ignore[union-attr]
        client.set_flow_run_state(run.id, Running())
    return run.id, str(client.read_flow_run(run.id).state_name)


def test_each_archive_is_polled_by_itself_and_by_one_run_at_a_time(client: SyncPrefectClient) -> None:
    names = deploy_all(HOME, ("reading",), profile("primary", "backup", every=77))
    assert {"poll/poll", "poll/poll-backup", "drain/drain"} == set(names)
    assert polls(client) == {"poll": [("primary", 77)], "poll-backup": [("backup", 77)]}
    first, state = started(client, "poll")
    assert (state, started(client, "poll")[1], started(client, "poll-backup")[1]) == ("Running", "Cancelled", "Running")
    client.set_flow_run_state(first, Completed())
    assert started(client, "poll")[1] == "Running"


def test_an_archive_that_is_polled_no_longer_has_no_deployment(client: SyncPrefectClient) -> None:
    deploy_all(HOME, ("reading",), profile("primary", "backup"))
    deploy_all(HOME, ("reading",), profile("slides"))
    assert polls(client) == {"poll": [], "poll-slides": [("slides", 300)]}, "by hand the primary may be polled still"
    deploy_all(HOME, ("reading",), profile("primary", active=False))
    assert polls(client) == {"poll": []}
