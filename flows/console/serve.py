"""`rapha serve` and `rapha deploy`: a node as one supervised group, and its deployments on the engine."""

import os
from typing import Annotated

import cyclopts
from cyclopts import Parameter

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
    namespace: Annotated[
        str | None, Parameter(help="Command words that enter the namespace of keeper, reader and launcher.")
    ] = None,
) -> None:
    """The node: engine, worker, webhook, keeper, reader, launcher and attester as one supervised process group.

    Starts only with complete settings. Example: `rapha serve --engine-port 4200`
    """
    load(os.environ)
    arguments = ["--engine-port", str(engine_port)]
    arguments += ["--namespace", namespace] if namespace else []
    replace_process("infra.serve", arguments)


def deploy(*, as_json: AsJson = False) -> Result:
    """Registers the work pool and the deployments of prefect.yaml on the engine at PREFECT_API_URL.

    Example: `rapha deploy`
    """
    from flows.deploying import deploy_all  # the flows and the engine's client take seconds to import

    names = deploy_all(HOME)
    return Result({"deployed": names}, [f"deployed: {name}" for name in names])
