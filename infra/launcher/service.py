"""The launcher's verbs. A connection owns at most one sandbox; when the connection ends, so does the sandbox."""

import contextlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from blocks.keeper import Keeper
from infra.launcher import content, mounts, sandbox
from infra.launcher import limits as control
from infra.launcher.runtime import Runtime
from policies.train import IsolationFacts, SandboxLimits
from rapha.canonical import is_digest
from rapha.errors import PeerError, Refusal

Message = dict[str, Any]
VARIABLES = ("RAPHA_EPOCHS", "RAPHA_BATCH_SIZE", "RAPHA_SEED", "OMP_NUM_THREADS")
_NUMBER = re.compile(r"[0-9]{1,12}")
_ENTRY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./:-]{0,255}")


class Launcher:
    """What all connections share: the place in memory, the runtime, the keeper, and who runs for which attempt."""

    def __init__(self, stage: Path, runtime: Runtime, keeper: Path | None, *, drop: bool) -> None:
        self.stage, self.runtime, self.keeper, self.drop = stage, runtime, keeper, drop
        self._lock = threading.Lock()
        self._held: dict[str, tuple[str, int]] = {}

    def hold(self, name: str, job: str, attempt: int) -> None:
        with self._lock:
            self._held[name] = (job, attempt)

    def release(self, name: str) -> None:
        with self._lock:
            self._held.pop(name, None)

    def holds(self, job: str, attempt: int) -> bool:
        """Whether anything of this attempt is left here; ("", 0) asks for any attempt."""
        with self._lock:
            return bool(self._held) if not job else (job, attempt) in self._held.values()


class LauncherSession:
    """One connection, one sandbox."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._name = f"rapha-{secrets.token_hex(8)}"
        self._folder = launcher.stage / self._name
        self._running: sandbox.Running | None = None
        self._limits = SandboxLimits()
        self._watcher: threading.Thread | None = None
        self._begun = False

    def closed(self) -> None:
        """Kills, proves, wipes. What cannot be proven dead stays in the registry, so that the line stays cut."""
        if self._running is not None:
            self._running.kill("asked")
            if self._running.left():
                return
            self._running.group.remove()
        for name in ("out", "tmp", "shm", "in", "root"):
            mounts.drop(self._folder / name)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._launcher.release(self._name)

    def do_holds(self, message: Message, fds: list[int]) -> Message:
        return {"holds": self._launcher.holds(str(message.get("job", "")), int(message.get("attempt", 0)))}

    def do_launch(self, message: Message, fds: list[int]) -> Message:
        try:
            return {"isolation": asdict(self._launch(message, fds))}
        finally:
            for fd in fds:
                os.close(fd)

    def do_probe(self, message: Message, fds: list[int]) -> Message:
        """The probe alone, in a sandbox with nothing to run: may this node start one? Once a connection."""
        if self._begun:
            raise Refusal(["sandbox-twice"])
        self._begun = True
        self._prepare(self._limits, 0)
        self._own_files()
        group = control.make(f"{self._name}-try", self._limits.memory_bytes, self._limits.processes)
        group.remove()
        runtime = self._launcher.runtime
        environment = self._environment(runtime.packages)
        workload = self._folder / "in" / "workload"
        box = sandbox.Box(
            self._folder, runtime, runtime.python, self._limits, environment, [], workload, dropped=self._launcher.drop
        )
        found, probed = self._probe(box)
        return {"open": found, "probed": probed, "mechanism": group.mechanism, "user_dropped": box.dropped}

    def do_wait(self, message: Message, fds: list[int]) -> Message:
        running = self._started()
        end = time.monotonic() + min(max(float(message.get("seconds", 0)), 0.0), 5.0)
        while running.process.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if running.process.poll() is None:
            return {"state": "running", "exit": "", "reason": "", "seconds": int(time.monotonic() - running.started)}
        if self._watcher is not None:
            self._watcher.join(timeout=10)
        outcome, reason = running.exit()
        seconds = int((running.ended or time.monotonic()) - running.started) + 1
        return {"state": "ended", "exit": outcome, "reason": reason, "seconds": seconds}

    def do_kill(self, message: Message, fds: list[int]) -> Message:
        self._started().kill("asked")
        return {}

    def do_proof(self, message: Message, fds: list[int]) -> Message:
        running = self._started()
        ended = running.process.poll() is not None
        return {"left": len(running.left()), "pidns": running.pidns, "ended": ended, "said": running.said}

    def do_collect(self, message: Message, fds: list[int]) -> Message:
        running = self._started()
        if running.process.poll() is None or running.left():
            raise Refusal(["sandbox-alive"])
        if running.exit() != ("completed", ""):
            raise Refusal(["sandbox-not-completed"])
        try:
            return content.copy_out(
                self._folder / "out",
                Path(str(message["destination"])),
                files=self._limits.output_files,
                size=self._limits.output_bytes,
            )
        except (OSError, KeyError):
            raise Refusal(["out-not-copied"]) from None

    def _started(self) -> sandbox.Running:
        if self._running is None:
            raise Refusal(["sandbox-not-started"])
        return self._running

    def _launch(self, message: Message, fds: list[int]) -> IsolationFacts:
        if self._begun:
            raise Refusal(["sandbox-twice"])
        self._begun = True
        request = _checked(message, fds)
        self._limits = request["limits"]
        self._launcher.hold(self._name, request["job"], request["attempt"])
        inside = self._fill(request)
        box = self._box(request, inside, fds)
        tried, seen = self._probe(box)
        if tried:
            raise Refusal(["sandbox-open", *(f"sandbox-open-{code}" for code in tried)])
        running = sandbox.start(box, [box.python, "-s", "/rapha/launch.py", request["entry_point"]], self._name)
        self._running = running
        registered = self._registered(request, running.pidns)
        facts = IsolationFacts(
            netns=running.netns,
            host_netns=Path("/proc/self/ns/net").stat().st_ino,
            pidns=running.pidns,
            links=sandbox.links_of(running.init),
            open=tuple(tried),
            probed=seen,
            user=Path(f"/proc/{running.init}").stat().st_uid,
            user_dropped=box.dropped,
            mechanism=running.group.mechanism,
            registered=registered,
            workload=inside.workload,
            launcher=inside.launcher,
            weights=inside.weights,
        )
        if facts.links != ("lo:down",) or facts.netns == facts.host_netns:
            running.kill("asked")
            raise Refusal(["sandbox-network"])
        self._guard(request, registered, running)
        running.started = time.monotonic()
        running.let_go()
        return facts

    def _guard(self, request: Message, registered: bool, running: sandbox.Running) -> None:
        cut = _Cut(self._launcher.keeper, request["job"], request["attempt"]) if registered and self._launcher.keeper else None
        self._watcher = threading.Thread(target=sandbox.watch, args=(running, self._limits, cut), daemon=True)
        self._watcher.start()

    def _fill(self, request: Message) -> content.Inside:
        """Copies everything into memory."""
        weights = Path(request["weights"]) if request["weights"] else None
        self._prepare(request["limits"], weights.stat().st_size if weights and weights.is_file() else 0)
        return self._copy_in(request, weights)

    def _prepare(self, limits: SandboxLimits, extra: int) -> None:
        """The sandbox's folders, each of a bounded size; `closed` drops them."""
        owner = sandbox.NOBODY if self._launcher.drop else 0
        self._folder.mkdir(mode=0o755)
        room = content.MAX_SOURCE * 3 + extra
        mounts.memory(self._folder / "in", size=room, entries=50_000, mode="0755", executable=True)
        entries = max(64, limits.output_files * 4)
        mounts.memory(self._folder / "out", size=limits.output_bytes, entries=entries, mode="0700", owner=owner)
        mounts.memory(self._folder / "tmp", size=limits.scratch_bytes, entries=10_000, mode="0700", owner=owner)
        mounts.memory(self._folder / "shm", size=limits.shared_bytes, entries=10_000, mode="0700", owner=owner)
        for name in ("in/rapha/lib", "in/workload", "in/etc"):
            (self._folder / name).mkdir(parents=True)
        (self._folder / "in/etc/passwd").write_text("nobody:x:65534:65534:nobody:/tmp:/nonexistent\n")
        (self._folder / "in/etc/group").write_text("nogroup:x:65534:\n")

    def _own_files(self) -> Path:
        """The `rapha` package and the probe, as /rapha."""
        rapha = self._folder / "in/rapha"
        content.put_package(rapha / "lib")
        for name in ("probe.py", "leash.py"):
            shutil.copy(Path(__file__).with_name(name), rapha / name)
        self._readable()
        return rapha

    def _readable(self) -> None:
        for path in (self._folder / "in").rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)

    def _environment(self, packages: Sequence[str]) -> dict[str, str]:
        fixed = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}  # noqa: S108
        python = {"PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return {**fixed, **python, "PYTHONPATH": ":".join(["/rapha/lib", *packages])}

    def _copy_in(self, request: Message, weights: Path | None) -> content.Inside:
        rapha = self._own_files()
        launcher = content.put_launcher(Path(request["launcher"]), request["launcher_digest"], rapha)
        if request["kind"] == "source":
            workload = content.put_source(Path(request["workload"]), request["workload_digest"], self._folder / "in/workload")
        else:
            workload = content.check_root(Path(request["workload"]), request["workload_digest"])
            mounts.show(Path(request["workload"]), self._folder / "root")
        digest, place = "", ""
        if weights is not None:
            digest = content.put_weights(weights, request["weights_digest"], rapha / "base.safetensors")
            place = "/rapha/base.safetensors"
        self._readable()
        return content.Inside(workload, launcher, digest, place)

    def _box(self, request: Message, inside: content.Inside, fds: list[int]) -> sandbox.Box:
        image = self._folder / "root" if request["kind"] == "oci" else None
        python = (request["interpreter"] or _image_python(image)) if image else ""
        runtime = self._launcher.runtime
        # An image without an interpreter is a workload with packages of its own, run by the hospital's Python.
        own = ["/workload/site-packages"] if image and (image / "workload/site-packages").is_dir() else []
        environment = self._environment([*own, *(() if python else runtime.packages)])
        environment |= {**request["environment"], "RAPHA_LOADER_FDS": ",".join(map(str, fds))}
        if inside.weights_path:
            environment["RAPHA_BASE_WEIGHTS"] = inside.weights_path
        return sandbox.Box(
            folder=self._folder,
            runtime=runtime,
            python=python or runtime.python,
            limits=request["limits"],
            environment=environment,
            fds=fds,
            workload=_shown_workload(self._folder),
            root=image if python else None,
            dropped=self._launcher.drop,
        )

    def _probe(self, box: sandbox.Box) -> tuple[list[str], int]:
        """Runs the probe in the same sandbox, by the launcher's own interpreter or the image's. No answer is a refusal."""
        said: list[bytes] = []
        names = ",".join([*box.environment, "PWD"])
        program = [box.python, "-s", "/rapha/probe.py", names, ",".join(map(str, box.fds))]
        running = sandbox.start(box, program, f"{self._name}-probe", capture=said)
        try:
            if sandbox.links_of(running.init) != ("lo:down",):
                return ["links"], 0
            running.let_go()
            with contextlib.suppress(TimeoutError, OSError):
                _wait(running, 30.0)
        finally:
            running.kill("asked")
            running.group.remove()
        return _answer(b"".join(said))

    def _registered(self, request: Message, pidns: int) -> bool:
        if self._launcher.keeper is None:
            return False
        with Keeper(self._launcher.keeper, peer="keeper", timeout=10.0) as keeper:
            keeper.register(request["job"], request["attempt"], pidns)
        return True


class _Cut:
    """Asks the keeper, for the watchdog. A keeper that does not answer is a broken cut."""

    def __init__(self, socket: Path, job: str, attempt: int) -> None:
        self._socket, self._job, self._attempt = socket, job, attempt

    def __call__(self) -> tuple[str, ...]:
        try:
            with Keeper(self._socket, peer="keeper", timeout=5.0) as keeper:
                return keeper.watch(self._job, self._attempt)
        except (PeerError, Refusal):
            return ("keeper-gone",)


def _wait(running: sandbox.Running, seconds: float) -> None:
    end = time.monotonic() + seconds
    while running.process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.01)  # the last bytes of the pipe


def _answer(raw: bytes) -> tuple[list[str], int]:
    try:
        value = json.loads(raw)
        found = [str(code) for code in value["open"]]
        return found, int(value["seen"]["families"]) + int(value["seen"]["calls"])
    except (ValueError, KeyError, TypeError):
        return ["no-answer"], 0


def _image_python(root: Path) -> str:
    names = ("usr/bin/python3", "usr/local/bin/python3", "opt/venv/bin/python3")
    return next((f"/{name}" for name in names if os.path.lexists(root / name)), "")


def _shown_workload(folder: Path) -> Path:
    image = folder / "root" / "workload"
    return image if image.is_dir() and not image.is_symlink() else folder / "in" / "workload"


def _checked(message: Message, fds: list[int]) -> Message:
    """The request, every field of its right kind. Raises `Refusal(launcher-bad-request)`."""
    try:
        names = {f.name for f in fields(SandboxLimits)}
        limits = SandboxLimits(**message["limits"]) if set(message["limits"]) == names else None
        texts = ("workload", "entry_point", "launcher", "weights", "weights_digest", "interpreter")
        environment = message["environment"]
        right = {
            "kind": message["kind"] in ("source", "oci"),
            "job": is_digest(message["job"]) and type(message["attempt"]) is int,
            "digests": is_digest(message["workload_digest"]) and is_digest(message["launcher_digest"]),
            "texts": all(type(message[name]) is str for name in texts),
            "weights": not message["weights"] or is_digest(message["weights_digest"]),
            "entry": bool(_ENTRY.fullmatch(message["entry_point"])) and ".." not in message["entry_point"],
            "environment": all(n in VARIABLES and bool(_NUMBER.fullmatch(v)) for n, v in environment.items()),
            "fds": message["loader_fds"] == len(fds) > 0,
            "limits": limits is not None and all(type(v) is int and v > 0 for v in message["limits"].values()),
            "interpreter": message["kind"] != "oci" or message["interpreter"].startswith("/") or not message["interpreter"],
        }
    except (KeyError, TypeError, AttributeError):
        raise Refusal(["launcher-bad-request"]) from None
    wrong = [name for name, ok in right.items() if ok is not True]
    if wrong:
        raise Refusal(["launcher-bad-request", *(f"launcher-bad-{name}" for name in wrong)])
    return {**message, "limits": limits}
