"""Artifacts of the engine's UI: drawn where the engine takes them. A view and nothing else: when it does not, the run goes on."""

import logging
from collections.abc import Callable
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import PrefectException

log = logging.getLogger("rapha.view")


def drawn(draw: Callable[[], object]) -> UUID | None:
    """The artifact's id, None where it could not be drawn."""
    try:
        made = draw()
    except (PrefectException, httpx.HTTPError) as error:
        log.warning("the engine's view could not be drawn: %s", type(error).__name__)
        return None
    return made if isinstance(made, UUID) else None


def replace(artifact: UUID, data: str) -> None:
    """Other content in its place."""

    def draw() -> UUID:
        with get_client(sync_client=True) as client:
            client.update_artifact(artifact_id=artifact, artifact=ArtifactUpdate(data=data))
        return artifact

    drawn(draw)
