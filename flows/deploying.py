"""The deployments of prefect.yaml on the engine, through its own client: one process, no build steps, no questions."""

from collections.abc import Collection, Mapping
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import ConcurrencyLimitStrategy, ConcurrencyOptions
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectAlreadyExists, PrefectException
from prefect.flows import Flow
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from blocks.profile import Profile
from flows.polled import POLL_SECONDS
from rapha.errors import ConfigurationError, PeerError

POOL = "rapha"
POLL, PRIMARY = "poll", "primary"
DIRECTORY = "prefect.deployments.steps.set_working_directory"


def deploy_all(home: Path, halves: Collection[str] = ("training",), profile: Profile | None = None) -> list[str]:
    """Registers the pool and the deployments of `home/prefect.yaml`; their names. What was there under a name is replaced.

    halves: the deployments with one of these tags, training or reading; profile: how often which archive is polled.

    Raises `ConfigurationError(deployments-malformed)`, `PeerError(engine-deploy-failed)`.
    """
    try:
        wanted = yaml.safe_load((home / "prefect.yaml").read_bytes())["deployments"]
        with get_client(sync_client=True) as client:
            _pool(client)
            mine = [one for all_of in wanted if not set(halves).isdisjoint(all_of["tags"]) for one in _each(all_of, profile)]
            names = [_deploy(client, one, home, _schedules(one, profile)) for one in mine]
            if profile is not None:
                _forget(client, {one["name"] for one in mine})
            return names
    except (yaml.YAMLError, KeyError, TypeError, ValidationError):
        raise ConfigurationError(["deployments-malformed"], "prefect.yaml cannot be read as the deployments of a node") from None
    except (PrefectException, httpx.HTTPError):
        raise PeerError(
            "engine-deploy-failed", "the engine at PREFECT_API_URL did not take the deployments", peer="engine"
        ) from None


def _pool(client: SyncPrefectClient) -> None:
    try:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    except ObjectAlreadyExists:
        return  # a worker that was faster, or an earlier start


def _deploy(client: SyncPrefectClient, wanted: Mapping[str, Any], home: Path, schedules: list[DeploymentScheduleCreate]) -> str:
    module, _, name = wanted["entrypoint"].partition(":")
    flow: Flow[..., Any] = getattr(import_module(module), name)
    made = client.create_deployment(
        flow_id=client.create_flow_from_name(flow.name),
        name=wanted["name"],
        version=wanted["version"],
        description=wanted["description"],
        tags=wanted["tags"],
        entrypoint=wanted["entrypoint"],
        work_pool_name=wanted["work_pool"]["name"],
        work_queue_name=wanted["work_pool"]["work_queue_name"],
        **_limits(wanted),
        schedules=schedules,
        parameters=wanted.get("parameters", {}),
        parameter_openapi_schema=parameter_schema(flow).model_dump(),
        enforce_parameter_schema=True,
        pull_steps=[{DIRECTORY: {"directory": str(home)}}],
    )
    for one in schedules if flow.name == POLL else ():
        if one.active:  # a node that starts asks at once, not after the first interval
            client.create_flow_run_from_deployment(made, parameters=one.parameters)
    full = f"{flow.name}/{wanted['name']}"
    _trigger(client, made, full, wanted.get("triggers", ()))
    return full


def _each(wanted: Mapping[str, Any], profile: Profile | None) -> list[Mapping[str, Any]]:
    """`poll` once for each archive: the engine counts runs by deployment, and one archive is not to wait for another."""
    if wanted["name"] != POLL or profile is None:
        return [wanted]
    names = dict.fromkeys([PRIMARY, *profile.polled])
    return [
        {**wanted, "name": POLL if name == PRIMARY else f"{POLL}-{name}", "parameters": {"pacs": name}, "pacs": name}
        for name in names
    ]


def _forget(client: SyncPrefectClient, wanted: Collection[str]) -> None:
    """Deployments of archives that are polled no longer go, with their schedules."""
    for one in client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[POLL]))):
        if one.name.startswith(f"{POLL}-") and one.name not in wanted:
            client.delete_deployment(one.id)


def _limits(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """How many runs at once, where the engine is to see to it. A run that was killed keeps its place for some minutes."""
    if "concurrency_limit" not in wanted:
        return {}
    limit = wanted["concurrency_limit"]
    how = ConcurrencyOptions(collision_strategy=ConcurrencyLimitStrategy(limit["collision_strategy"]))
    return {"concurrency_limit": limit["limit"], "concurrency_options": how}


def _schedules(wanted: Mapping[str, Any], profile: Profile | None) -> list[DeploymentScheduleCreate]:
    """As prefect.yaml has them; of a `poll`, one where the profile has its endpoint polled, as often as it says."""
    if "pacs" not in wanted or profile is None:
        return [_schedule(one) for one in wanted.get("schedules", ())]
    every = timedelta(seconds=int(profile.values.get("workflow.polling_interval_seconds", POLL_SECONDS)))
    active = profile.values.get("workflow.automated_polling", True) is True
    schedule = IntervalSchedule(interval=every)
    made = {"schedule": schedule, "active": active}
    names = [name for name in profile.polled if name == wanted["pacs"]]
    return [DeploymentScheduleCreate(**made, parameters={"pacs": name}, slug=name) for name in names]


def _schedule(wanted: Mapping[str, Any]) -> DeploymentScheduleCreate:
    return DeploymentScheduleCreate(schedule=IntervalSchedule(interval=wanted["interval"]), active=wanted["active"])


def _trigger(client: SyncPrefectClient, deployment: UUID, name: str, wanted: Any) -> None:
    """The automations that events start it by; those of an earlier deployment go. An event that falls between is the sweep's."""
    client.delete_resource_owned_automations(f"prefect.deployment.{deployment}")
    for one in wanted:
        if one["type"] != "event":
            raise KeyError("type")
        trigger = DeploymentEventTrigger.model_validate({"name": f"{name} on {' '.join(one['expect'])}", **one})
        trigger.set_deployment_id(deployment)
        client.create_automation(trigger.as_automation())
