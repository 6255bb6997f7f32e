"""What the engine costs a study that is read: 50 in flight in one flow run, seven empty stages each, beside bare tasks."""

import asyncio
import itertools
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, PREFECT_LOGGING_TO_API_ENABLED, temporary_settings

from bench.row import Row, timed
from flows.draining import Shift
from flows.stages import async_stage
from infra.engine import engine_environment, prepare, server
from infra.serve import base_environment
from infra.supervisor import Supervisor

STUDIES, AT_MOST, RUNS = 50, 50, 5
QUIET, BUSY = 8, 0.05  # looks of a quarter of a second at which the server used less than so many seconds
STAGES = ("retrieve", "analyse", "report", "store", "prove", "complete", "tell")


def rows() -> list[Row]:
    """One row: milliseconds a study."""
    took: dict[str, list[float]] = {"ours": [], "bare": []}
    with _engine() as server:
        works = {"ours": _ours(), "bare": _bare()}
        for turn in range(RUNS + 1):
            for name, work in works.items():
                _settled(server)
                seconds = timed(work)
                took[name] += [seconds] if turn else []  # the first of each is not measured
    ours, bare = (1000 * statistics.median(took[name]) / STUDIES for name in works)
    note = f"{STUDIES} studies, {AT_MOST} in flight, {len(STAGES)} stages each; the engine's server beside it, idle before each"
    said = "as many bare tasks of the engine in one flow run"
    return [Row("engine: a study of empty stages", ours, bare, RUNS, "ms", said, note)]


def _settled(pid: int) -> None:
    """Waits until the engine's server has taken in what the last run told it: it would keep the next one waiting."""
    quiet, before = 0, _cpu(pid)
    while quiet < QUIET:
        time.sleep(0.25)
        now = _cpu(pid)
        quiet, before = (quiet + 1 if now - before < BUSY else 0), now


def _cpu(pid: int) -> float:
    """Seconds of a process so far (proc_pid_stat(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _ours() -> Callable[[], None]:
    stages = [async_stage(_nothing, name) for name in STAGES]

    async def study(row: int) -> str:
        for stage in stages:
            await stage(row)
        return "completed"

    @flow(name="bench-drain", retries=0, persist_result=False)
    async def drain() -> dict[str, int]:
        numbers = itertools.count(1)

        def claim() -> int | None:
            row = next(numbers)
            return row if row <= STUDIES else None

        return await Shift(claim, study, at_most=AT_MOST, idle=0.0, until=time.monotonic() + 600, pause=0.05).work()

    return lambda: _ran(drain())


def _bare() -> Callable[[], None]:
    @task(cache_policy=NO_CACHE, persist_result=False)
    async def nothing() -> None:
        return None

    async def study() -> None:
        for _ in STAGES:
            await nothing()

    @flow(name="bench-bare", retries=0, persist_result=False)
    async def bare() -> None:
        for _ in range(STUDIES // AT_MOST):
            await asyncio.gather(*(study() for _ in range(AT_MOST)))

    return lambda: _ran(bare())


def _nothing(row: int) -> None:
    return None


def _ran(run: Any) -> None:
    asyncio.run(run)


@contextmanager
def _engine() -> Iterator[int]:
    """The server's process id."""
    with tempfile.TemporaryDirectory(prefix="rapha-bench-") as name:
        home, port = Path(name) / "engine", _free_port()
        environment = engine_environment(home, port)
        prepare(home)
        group = Supervisor(Path(name) / "logs")
        group.start(server({**base_environment(environment), **environment}, port))
        settings = {PREFECT_API_URL: environment["PREFECT_API_URL"], PREFECT_LOGGING_LEVEL: "CRITICAL"}
        try:
            with temporary_settings({**settings, PREFECT_LOGGING_TO_API_ENABLED: False}):
                process = group.members[0].process
                assert process is not None
                yield process.pid
        finally:
            group.stop()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
