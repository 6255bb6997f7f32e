"""What the engine does with a stage's end: a peer is asked again, a refusal and a bug never; its server hears codes only."""

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from flows.stages import async_stage, stage
from infra.demo.world import World
from rapha.errors import PeerError, Refusal
from tasks.stage import StageBug

NAME = "Featherstonehaugh^Algernon"


def run(name: str, body: Any, retries: int = 2) -> None:
    """One flow of one stage, with the pauses between tries taken out."""
    made = stage(body, name, retries=retries).with_options(retry_delay_seconds=0, retry_jitter_factor=None)

    @flow(name=f"only-{name}", persist_result=False, log_prints=False)
    def only() -> None:
        made()

    only()


ENDS = pytest.mark.parametrize(
    ("error", "raised", "calls"),
    [
        (PeerError("archive-down", f"it said {NAME}", peer="pacs"), PeerError, 3),
        (Refusal(["manifest-expired"], f"of {NAME}", gate="manifest"), Refusal, 1),
        (KeyError(NAME), StageBug, 1),
    ],
    ids=["peer", "refusal", "bug"],
)


@ENDS
def test_only_a_failed_peer_is_asked_again(here: World, error: Exception, raised: type[Exception], calls: int) -> None:
    seen = []

    def body() -> None:
        seen.append(1)
        raise error

    with pytest.raises(raised) as ended:
        run(f"ends-{raised.__name__.lower()}", body)
    assert len(seen) == calls
    assert NAME not in str(ended.value)


@ENDS
def test_so_it_is_for_many_rows_in_one_asynchronous_flow(
    here: World, error: Exception, raised: type[Exception], calls: int
) -> None:
    seen, hooked = [], []

    def body(row: int) -> None:
        seen.append(row)
        raise error

    async def hook(_task: Any, run: Any, state: Any) -> None:
        hooked.append(type(await state.aresult(raise_on_failure=False)))

    made = async_stage(body, "one", retries=2, on_failure=[hook]).with_options(retry_delay_seconds=0, retry_jitter_factor=None)

    @flow(name="rows", persist_result=False, log_prints=False)
    async def rows() -> list[Any]:
        return await asyncio.gather(made(1), made(2), return_exceptions=True)

    ends = asyncio.run(rows())
    assert [type(end) for end in ends] == [raised] * 2
    assert sorted(seen) == [1] * calls + [2] * calls
    assert hooked == [raised] * 2
    assert not any(NAME in str(end) for end in ends)


def test_J05_a_name_in_an_exception_does_not_reach_the_engines_server(here: World) -> None:
    def body() -> None:
        raise ValueError(f"cannot read the header of {NAME}")

    with temporary_settings({PREFECT_LOGGING_TO_API_ENABLED: True}), pytest.raises(StageBug):
        run("quotes-a-name", body)
    api = here.environment["PREFECT_API_URL"]
    runs = [found for found in ask(api, "flow_runs") if found["state_type"] == "FAILED"]
    tasks = [found for found in ask(api, "task_runs") if found["state_type"] == "FAILED"]
    assert runs
    assert tasks
    for answer in (runs, tasks, ask(api, "logs")):
        assert NAME not in json.dumps(answer)
    database = here.layout.root / "engine"
    assert not [path for path in database.glob("prefect.db*") if NAME.encode() in path.read_bytes()]
    assert any("valueerror" in json.dumps(found["state"]).lower() for found in runs), "the code itself is there"


def ask(api: str, what: str) -> list[dict[str, Any]]:
    """Everything of a kind that the engine's server has."""
    request = urllib.request.Request(
        f"{api}/{what}/filter", json.dumps({"limit": 200}).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: list[dict[str, Any]] = json.loads(answer.read())
    return found


def test_the_engine_keeps_its_state_where_the_test_looks(here: World) -> None:
    assert list(Path(here.layout.root / "engine").glob("prefect.db*"))
