"""The engine's event that starts a run: a hint, never the record (the register's row is)."""

from prefect.events import emit_event

EVENT, RESOURCE = "rapha.job.submitted", "rapha.job."


def announce(job: str) -> None:
    """Sends `rapha.job.submitted` for the resource `rapha.job.<id>`, with the id alone as payload."""
    emit_event(event=EVENT, resource={"prefect.resource.id": RESOURCE + job}, payload={"job": job})
