"""`python -m infra.serve`: the node's own processes as one supervised group (what `rapha serve` starts).

keeper, launcher, reader in the node's namespace · engine, worker, webhook in ours · attester beside the TPM and the TEE ·
where there is a profile, receiver, study reader and the launcher of models (infra/reading.py).
The pseudonym key reaches the reader and nobody else, the key of the receiver's journal the receiver.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from blocks.halves import halves
from blocks.reading_settings import BIND, RECEIVER_ALONE, reading_values
from blocks.settings import READER_ALONE, Settings, load
from infra import reading
from infra.engine import engine_environment, prepare, server, worker
from infra.reader.command import retrieving
from infra.supervisor import Member, Opener, Supervisor
from rapha.errors import ConfigurationError, PeerError, RaphaError

DEPLOY_SECONDS = 120.0


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def base_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What every process of ours gets: nothing of RAPHA_* beyond what its command line says."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "TMPDIR")
    return {name: environment[name] for name in kept if name in environment} | {"PYTHONUNBUFFERED": "1"}


def guardians(settings: Settings, environment: Mapping[str, str], inside: Opener) -> list[Member]:
    """Launcher, reader and keeper: started inside the node's namespace by `inside`."""
    base, state = base_environment(environment), settings.path("RAPHA_STATE_DIR")
    keeper, reader, launcher = (settings.text(f"RAPHA_{name}_SOCKET") for name in ("KEEPER", "READER", "LAUNCHER"))
    options, needed = retrieving(settings, environment)
    reading = python("infra.reader", "--socket", reader, *options)
    reading += ["--records", settings.text("RAPHA_DATASET_RECORDS_PATH"), "--staging", str(state / "staging")]
    launching = python("infra.launcher", "--socket", launcher, "--python", sys.executable, "--keeper", keeper)
    keeping = python("infra.keeper", "--socket", keeper, "--state", str(state / "keeper.json"), "--ledger", str(state / "ledger"))
    keeping += ["--wan", settings.text("RAPHA_WAN_INTERFACE"), "--lan", settings.text("RAPHA_LAN_INTERFACES")]
    keeping += ["--probe", settings.text("RAPHA_WAN_PROBE"), "--launcher", launcher, "--reader", reader]
    for route in filter(None, (settings.optional("RAPHA_LAN_ROUTES") or "").split(",")):
        keeping += ["--lan-route", route]
    return [
        Member("launcher", launching, base, popen=inside),
        Member("reader", reading, {**base, **needed, READER_ALONE: environment[READER_ALONE]}, popen=inside),
        Member("keeper", keeping, base, popen=inside),
    ]


def webhook(settings: Settings, environment: Mapping[str, str], engine: Mapping[str, str]) -> Member:
    """The inbound door, at the callback URL's path and port on loopback; TLS ends in front of it."""
    url, state = urlsplit(settings.text("RAPHA_ORCHESTRATOR_CALLBACK_URL")), settings.path("RAPHA_STATE_DIR")
    argv = python("infra.webhook", "--port", str(url.port or 8443), "--path", url.path, "--mode", settings.mode)
    argv += [
        "--register",
        f"sqlite:///{state.absolute() / 'register.sqlite'}",
        "--keys",
        settings.text("RAPHA_WEBHOOK_KEYS_PATH"),
    ]
    argv += ["--teams", str(settings.path("RAPHA_TRUST_DIR") / "ai-teams"), "--node-id", settings.text("RAPHA_NODE_ID")]
    argv += ["--site-policy", settings.text("RAPHA_SITE_POLICY_PATH")]
    return Member("webhook", argv, {**base_environment(environment), **engine}, timeout=60)


def engine_server(state: Path, environment: Mapping[str, str], port: int) -> Member:
    """The engine's server and UI; it knows no RAPHA_* setting."""
    engine = engine_environment(state / "engine", port)
    prepare(state / "engine")
    return server({**base_environment(environment), **engine}, port)


def flow_worker(state: Path, environment: Mapping[str, str], port: int, health_port: int) -> Member:
    """The worker whose flow runs read the node's settings, the keys that other processes hold alone left out."""
    engine = engine_environment(state / "engine", port)
    return worker({**base_environment(environment), **engine, **flow_settings(environment)}, health_port)


def flow_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """What a flow's process may know of the node's settings, with the secrets that the profile takes from variables."""
    alone = (READER_ALONE, RECEIVER_ALONE)
    known = {name: value for name, value in environment.items() if name.startswith("RAPHA_") and name not in alone}
    return known | reading.secrets(environment)


def attester(settings: Settings, environment: Mapping[str, str], kind: str) -> Member:
    """The process beside the TPM and the TEE; `device` refuses where either is absent."""
    argv = python("infra.attester", "--socket", settings.text("RAPHA_ATTESTER_SOCKET"), "--kind", kind)
    argv += ["--state", str(settings.path("RAPHA_STATE_DIR") / "attester")]
    return Member("attester", argv, base_environment(environment), timeout=60)


def deploying(
    engine: Mapping[str, str], environment: Mapping[str, str], logs: Path, only: str | None = None
) -> "subprocess.Popen[bytes]":
    """Registers the pool and the deployments, in a process that the caller gives to `deployed`; it logs to `deploy.log`."""
    home = Path(__file__).resolve().parent.parent
    with (logs / "deploy.log").open("ab") as log:
        argv = python("rapha.console", "deploy", *(["--only", only] if only else []))
        known = {**base_environment(environment), **engine, **flow_settings(environment)}
        return subprocess.Popen(argv, env=known, cwd=home, stdout=log, stderr=log)


def deployed(process: "subprocess.Popen[bytes]") -> None:
    """Returns once the deployments stand. Raises `PeerError(engine-deploy-failed)`."""
    try:
        failed = process.wait(DEPLOY_SECONDS) != 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        failed = True
    if failed:
        raise PeerError("engine-deploy-failed", "the engine did not take the deployments", peer="engine")


def inside_by(words: str | None) -> Opener:
    """How to start a process in the node's namespace: behind these command words, or right here where there are none."""
    prefix = shlex.split(words or "")

    def start(argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*prefix, *argv], **options)

    return start


def main() -> int:
    """Serves until SIGTERM or SIGINT. The exit status is that of the error's kind."""
    parser = argparse.ArgumentParser(prog="python -m infra.serve")
    parser.add_argument("--engine-port", type=int, default=4200)
    parser.add_argument("--health-port", type=int, default=4208)
    parser.add_argument("--namespace", default=None)
    parser.add_argument("--only", choices=("train", "read"))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout once everything runs, or why not")
    options = parser.parse_args()
    over = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    try:
        settings = load(os.environ) if "training" in halves(os.environ, options.only) else None
        state = settings.path("RAPHA_STATE_DIR") if settings else Path(reading_values(os.environ)["RAPHA_STATE_DIR"])
        group = Supervisor(private(state) / "logs")
        return _served(group, state, settings, options, over)
    except RaphaError as error:
        if options.json:
            print(json.dumps({"codes": list(error.codes), "error": error.message}))
        print(f"serve: {', '.join(error.codes)}: {error.message}", file=sys.stderr)
        return error.exit_status


def private(state: Path) -> Path:
    """The state folder, made where it is missing, which nobody but its owner may enter: evidence, outputs and logs lie in it."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = state.stat().st_mode
    except OSError as error:
        raise ConfigurationError(["state-unusable"], f"RAPHA_STATE_DIR: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigurationError(["state-open-to-others"], f"{state}: only its owner may enter it; chmod 700 it")
    return state


def _served(group: Supervisor, state: Path, settings: Settings | None, options: argparse.Namespace, over: threading.Event) -> int:
    engine = engine_environment(state / "engine", options.engine_port)
    base = base_environment(os.environ)
    wanted = "reading" in halves(os.environ, options.only)
    inside = inside_by(options.namespace)
    # Where training receives by C-MOVE the receiver sees clear fragments of a job's data: it has no outside line either.
    moves = settings is not None and bool(settings.optional("RAPHA_TRAINING_ENDPOINT") and settings.optional(BIND))
    beside = reading.members(os.environ, base, popen=inside if moves else subprocess.Popen) if wanted else []
    beside += [reading.receiver_alone(os.environ, base, inside)] if moves and not wanted else []
    try:
        group.start(engine_server(state, os.environ, options.engine_port))
        if settings:
            group.start(attester(settings, os.environ, "device"))
            group.start(*guardians(settings, os.environ, inside))
        group.start(*beside)
        deployment = deploying(engine, os.environ, group.logs, options.only)
        working = flow_worker(state, os.environ, options.engine_port, options.health_port)
        shift = reading.shift({**base, **engine, **flow_settings(os.environ)}) if wanted else []
        group.start(working, *([webhook(settings, os.environ, engine)] if settings else []), *shift)
        deployed(deployment)
        address = f"http://127.0.0.1:{options.engine_port}"
        print(json.dumps({"ready": True, "engine": address}) if options.json else f"ready\nengine: {address}", flush=True)
        group.watch(over.is_set)
    finally:
        group.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
