"""`rapha serve` and `rapha deploy`: a node as one supervised group, and its deployments on the engine."""

import os
import subprocess
import sys
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from blocks.settings import load
from flows.console.demo import HOME, replace_process
from rapha.console.app import AsJson, Result
from rapha.errors import PeerError


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
    for arguments in (["work-pool", "create", "rapha", "--type", "process", "--overwrite"], ["--no-prompt", "deploy", "--all"]):
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments], cwd=HOME, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise PeerError("engine-deploy-failed", "the engine at PREFECT_API_URL did not take the deployments", peer="engine")
    names = ["train/node", "sweep/sweep"]
    return Result({"deployed": names}, [f"deployed: {name}" for name in names])
