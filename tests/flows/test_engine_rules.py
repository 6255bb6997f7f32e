"""What the engine may and may not do with our flows and stages, read off the objects that it is given."""

import inspect

import pytest
from prefect.cache_policies import NO_CACHE
from prefect.flows import Flow
from prefect.tasks import Task

import flows.training as training

STAGES = {name: found for name, found in vars(training).items() if isinstance(found, Task)}
FLOWS = [found for found in vars(training).values() if isinstance(found, Flow)]
NEVER_RETRIED = ("training", "output", "seal")


def test_every_stage_of_the_protocol_is_a_task() -> None:
    assert len(STAGES) >= 16
    assert all(found.name[0].isdigit() for found in STAGES.values())


@pytest.mark.parametrize("name", sorted(STAGES))
def test_J02_no_stage_is_cached_or_persisted(name: str) -> None:
    stage = STAGES[name]
    assert stage.cache_policy is NO_CACHE
    assert stage.persist_result is False
    assert stage.log_prints is False


@pytest.mark.parametrize("name", NEVER_RETRIED)
def test_J03_nothing_across_the_cut_is_retried(name: str) -> None:
    assert STAGES[name].retries == 0


def test_J03_whatever_is_retried_is_retried_for_peers_alone() -> None:
    retried = [stage for stage in STAGES.values() if stage.retries]
    assert retried
    assert all(stage.retry_condition_fn is not None for stage in retried)


@pytest.mark.parametrize("found", FLOWS, ids=lambda found: found.name)
def test_J04_results_are_json_and_not_kept(found: Flow) -> None:  # type: ignore[type-arg]
    assert found.result_serializer == "json"
    assert found.persist_result is False
    assert not found.retries


def test_J06_a_run_is_told_the_job_and_nothing_else() -> None:
    assert list(inspect.signature(training.train.fn).parameters) == ["job"]


def test_the_halt_hook_stands_at_every_bad_end() -> None:
    hooks = training.train
    assert [hook.__name__ for hook in hooks.on_failure_hooks] == ["halt"]
    assert [hook.__name__ for hook in hooks.on_crashed_hooks] == ["halt"]
    assert [hook.__name__ for hook in hooks.on_cancellation_hooks] == ["halt"]
