"""The stages as the engine's tasks: named, never cached, never persisted; peers retried with backoff and jitter, gates never."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.concurrency.asyncio import ConcurrencySlotAcquisitionError
from prefect.exceptions import PrefectException
from prefect.tasks import Task, exponential_backoff

from flows.pace import pace
from rapha.errors import PeerError
from tasks.stage import coded

P = ParamSpec("P")
R = TypeVar("R")
PEER_RETRIES = 3
# What the engine's client raises where its server is down, slow, or takes no task: a stage did not run, or its end is unknown.
ENGINE_FAILED = (PrefectException, ConcurrencySlotAcquisitionError, httpx.HTTPError)


def only_peers(_task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retries a failed peer and nothing else, as often as the profile says: a refusal is final, a bug is ours."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, PeerError) and _again(run)


async def only_peers_async(_task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """The same inside an asynchronous flow, where a state gives its result only to whoever awaits it."""
    return isinstance(await state.aresult(raise_on_failure=False), PeerError) and _again(run)


def _again(run: TaskRun) -> bool:
    """run_count: how often it was begun, the first time among them."""
    return run.run_count <= pace().retries


def stage(body: Callable[P, R], name: str, *, retries: int = PEER_RETRIES) -> Task[P, R]:
    """The task around a stage's plain function. Only codes of an exception reach the engine (`tasks.stage.coded`)."""
    return task(
        name=name,
        task_run_name=name,
        retries=retries,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=only_peers,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )(coded(body))


Hook = Callable[[Task[..., Any], TaskRun, State[Any]], Awaitable[None]]


def async_stage(
    body: Callable[P, R],
    name: str,
    *,
    retries: int = PEER_RETRIES,
    on_failure: Sequence[Hook] = (),
    named: str = "{name} row {row}",
) -> Task[P, Coroutine[Any, Any, R]]:
    """The same inside an asynchronous flow: its blocking body runs in a thread of the loop's pool.

    named: the task run's name, `{row}` for the parameter `row`; a study's stage, which has one, waits for its turn among those
    that may run at once (`flows.pace`).
    """
    plain, of_study = coded(body), "{row}" in named

    @functools.wraps(body)
    async def run(*args: P.args, **kwargs: P.kwargs) -> R:
        async with pace().turn() if of_study else nullcontext():
            return await asyncio.to_thread(plain, *args, **kwargs)

    return task(
        name=name,
        task_run_name=named.replace("{name}", name),
        retries=retries,
        retry_delay_seconds=exponential_backoff(backoff_factor=2),
        retry_jitter_factor=0.5,
        retry_condition_fn=only_peers_async,
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
        on_failure=list(on_failure),
    )(run)
