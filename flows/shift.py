"""`python -m flows.shift`: a reading worker's shift, an hour long, as a flow run `drain`; the supervisor starts the next.

A process of the supervisor's and not a scheduled run: killed, it is back in seconds, while the place that the engine keeps for a
killed run is free again only after minutes. Prints `ready` when the shift begins.
"""

import asyncio
import logging
import socket
import sys

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectException
from prefect.states import Crashed

from flows.clinic import Clinic
from flows.reading import SHIFT_SECONDS, drain
from rapha.errors import PeerError, RaphaError

log = logging.getLogger("rapha.shift")


def main() -> int:
    """The exit status is that of the error's kind."""
    try:
        Clinic.open()
        asyncio.run(_shift())
    except RaphaError as error:
        sys.stderr.write(f"shift: {', '.join(error.codes)}: {error.message}\n")
        return error.exit_status
    return 0


async def _shift() -> None:
    await _bury(_name())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await drain.with_options(flow_run_name=_name())(seconds=SHIFT_SECONDS, idle=SHIFT_SECONDS)


def _name() -> str:
    """One worker a machine: two on one would each bury the other's run, in the view alone."""
    return f"drain on {socket.gethostname()}"


async def _bury(name: str) -> None:
    """Runs of ours that the engine still takes for running: their process is dead, or this one would not have been started."""
    running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING]))
    try:
        async with get_client() as client:
            found = await client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=["drain"])),
                flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name]), state=running),
            )
            for run in found:
                await client.set_flow_run_state(run.id, Crashed(message="its process was killed"), force=True)
    except (PrefectException, httpx.HTTPError, OSError):
        raise PeerError("engine-unreachable", "the engine does not answer", peer="engine") from None


if __name__ == "__main__":
    sys.exit(main())
