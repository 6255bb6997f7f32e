"""The engine beside a node: Prefect's server and a process worker, silent towards the outside, everything on loopback.

`python -m infra.engine` makes the empty database that a new engine starts from: the server's own migrations, run once for
each installation and not at each first start.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from infra.supervisor import Member

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_LOGGING_LOG_PRINTS": "false",
    "PREFECT_CLI_COLORS": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}
DATABASE = "prefect.db"


def empty_database() -> Path:
    """Where this installation keeps the migrated, empty database of its version of the engine."""
    return Path(sys.prefix) / "var" / f"engine-{version('prefect')}.sqlite"


def prepare(home: Path) -> None:
    """A new engine's database. Where set-up made none the server makes its own, some seconds later; it checks either."""
    made = empty_database()
    if made.exists() and not (home / DATABASE).exists():
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.copyfile(made, home / DATABASE)


def make_database() -> None:
    """Runs the migrations into an empty database, which appears whole or not at all. Raises `CalledProcessError`."""
    made = empty_database()
    made.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as home:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment = {**kept, **QUIET, "PREFECT_HOME": home}
        subprocess.run(prefect("server", "database", "upgrade", "-y"), env=environment, check=True, stdout=subprocess.DEVNULL)
        (Path(home) / DATABASE).replace(made)


def engine_environment(home: Path, port: int) -> dict[str, str]:
    """Settings for the server and everything that speaks to it. JSON results, no analytics, no printing into its log."""
    return {**QUIET, "PREFECT_HOME": str(home), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api"}


def prefect(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prefect", *arguments]


def server(environment: Mapping[str, str], port: int) -> Member:
    """Prefect's server with its UI, in `environment` and nothing else."""
    argv = prefect("server", "start", "--host", "127.0.0.1", "--port", str(port))
    return Member("engine", argv, dict(environment), ready=f"http://127.0.0.1:{port}/api/health", timeout=180)


def worker(environment: Mapping[str, str], health_port: int) -> Member:
    """A process worker on the pool `rapha`; each flow run is a fresh interpreter with the worker's environment."""
    argv = prefect("worker", "start", "--pool", "rapha", "--type", "process", "--with-healthcheck")
    # Of its own: the engine's runner keeps its files in a folder of fixed name there, which another user may have made.
    scratch = Path(environment["PREFECT_HOME"]) / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    ports = {"PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1", "PREFECT_WORKER_WEBSERVER_PORT": str(health_port)}
    health = f"http://127.0.0.1:{health_port}/health"
    return Member("worker", argv, {**environment, **ports, "TMPDIR": str(scratch)}, ready=health, timeout=120)


if __name__ == "__main__":
    if not empty_database().exists():
        make_database()
