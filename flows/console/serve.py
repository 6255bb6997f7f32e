"""`rapha serve` and `rapha deploy`: a node as one supervised group, and its deployments on the engine."""

import os
from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from blocks.halves import Half, halves
from blocks.profile import load_profile
from blocks.reading_settings import reading_values
from blocks.settings import load
from flows.console.demo import HOME, replace_process
from rapha.console.app import AsJson, Result


def register(app: cyclopts.App) -> None:
    """Adds the commands."""
    app.command(serve, name="serve")
    app.command(deploy, name="deploy")


def serve(
    *,
    engine_port: Annotated[int, Parameter(help="Port of the engine's server and UI on loopback.")] = 4200,
    health_port: Annotated[int, Parameter(help="Port of the worker's health check on loopback.")] = 4208,
    namespace: Annotated[
        str | None, Parameter(help="Command words that enter the namespace of keeper, reader and launcher.")
    ] = None,
    only: Annotated[
        Half | None, Parameter(help="One half of a node: train, or read. Each that is configured, when left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The node: engine, worker, webhook, keeper, reader, launcher and attester as one supervised process group.

    Where it reads too: receiver, study reader, launcher of models. Starts only with complete settings. With --json one object,
    {"ready": true, "engine": address}, stands on stdout once all of them run.

    Example: `rapha serve --engine-port 4200`
    """
    wanted = halves(os.environ, only)
    if "training" in wanted:
        load(os.environ)
    if "reading" in wanted:
        reading_values(os.environ)
    arguments = ["--engine-port", str(engine_port), "--health-port", str(health_port)]
    arguments += ["--only", only] if only else []
    arguments += ["--namespace", namespace] if namespace else []
    arguments += ["--json"] if as_json else []
    replace_process("infra.serve", arguments)


def deploy(*, only: Half | None = None, as_json: AsJson = False) -> Result:
    """Registers the work pool and the deployments of prefect.yaml on the engine at PREFECT_API_URL.

    Those of each half that is configured. Example: `rapha deploy`
    """
    from flows.deploying import deploy_all  # the flows and the engine's client take seconds to import

    wanted = halves(os.environ, only)
    profile = load_profile(Path(reading_values(os.environ)["RAPHA_PROFILE_PATH"])) if "reading" in wanted else None
    names = deploy_all(HOME, wanted, profile)
    return Result({"deployed": names}, [f"deployed: {name}" for name in names])
