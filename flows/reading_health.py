"""How the reading service is, part by part: each looked at for a few seconds at most, all at once."""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from pathlib import Path
from typing import Any

from blocks.archive import Archive
from blocks.audit import Wanted, open_audit_trail
from blocks.channel import Channel
from blocks.endpoint import Endpoint
from blocks.ledger import Ledger
from blocks.mail import notifications
from blocks.profile import Profile
from blocks.reading import open_reading_register
from blocks.reading_settings import reading_values
from blocks.receiver import Receiver
from flows.engine import engine_answers
from flows.polled import polling_interval, sweep_seconds
from policies.polling import poll_code
from rapha.errors import ConfigurationError, RaphaError, Refusal
from rapha.signing import load_private

PEER_SECONDS, WHOLE_SECONDS = 5.0, 20.0
LEAST_FREE = 1 << 30
POLL, QUEUE = "poll", "queue"
STALLED_SECONDS = 600  # a shift begins again within seconds, and is idle for no longer than it takes to look
Looks = Mapping[str, Callable[[], object]]


def reading_components(environment: Mapping[str, str], profile: Profile) -> dict[str, str]:
    """Name of the part -> "" where it is well, else the first code of what is wrong."""
    return looked_at(_looks(_filled(environment), profile))


def waits_for_a_person(environment: Mapping[str, str]) -> dict[str, int]:
    """Code -> how many: dead-letters, of studies that were given up on, and that nobody has replayed or discarded."""
    register = open_reading_register(environment)
    try:
        letters = register.tally(int(time.time())).dead_letters
    finally:
        register.close()
    return {"dead-letters": letters} if letters else {}


def looked_at(looks: Looks) -> dict[str, str]:
    """Each look's code, "" for none; they run at once, and one that does not come back in time is `…-timeout`."""
    pool = ThreadPoolExecutor(max(1, len(looks)), thread_name_prefix="health")
    try:
        running = {name: pool.submit(_code, name, look) for name, look in looks.items()}
        until = time.monotonic() + WHOLE_SECONDS
        found = {}
        for name, future in running.items():
            try:
                found[name] = future.result(max(0.0, until - time.monotonic()))
            except NotInTime:
                found[name] = f"{_dashed(name)}-timeout"
        return found
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def overall(codes: Iterable[str]) -> str:
    """The whole is healthy where every part is, and there is one."""
    told = list(codes)
    return "healthy" if told and not any(told) else "unhealthy"


def _code(name: str, look: Callable[[], object]) -> str:
    try:
        look()
    except RaphaError as error:
        return error.codes[0]
    except OSError:
        return f"{_dashed(name)}-unreachable"
    return ""


def _dashed(name: str) -> str:
    return name.replace(" ", "-").lower()


def _looks(environment: Mapping[str, str], profile: Profile) -> Looks:
    looks: dict[str, Callable[[], object]] = {
        "reading register": lambda: _register(environment),
        "outbox": lambda: _outbox(environment),
        QUEUE: lambda: _queue(environment),
        "audit trail": lambda: _trail(environment),
        "study reader": lambda: _holds(environment, "RAPHA_STUDY_SOCKET", "study"),
        "model launcher": lambda: _holds(environment, "RAPHA_MODEL_LAUNCHER_SOCKET", "launcher", job="", attempt=0),
        "reading disk": lambda: _disk(environment),
        "reading ledger": lambda: _ledger(environment),
    }
    if environment.get("PREFECT_API_URL", "").strip():
        looks["engine"] = lambda: engine_answers(environment)
    if environment.get("RAPHA_RECEIVER_SOCKET", "").strip() or any(_moves(one) for one in profile.endpoints.values()):
        looks["receiver"] = lambda: _receiver(environment)
    if profile.values.get("notifications.email.enabled"):
        looks["mail server"] = lambda: _mail(environment, profile)
    for endpoint in profile.endpoints.values():
        looks[f"pacs {endpoint.name}"] = lambda one=endpoint: _echo(one)  # type: ignore[misc]
    for name in profile.polled:
        looks[f"{POLL} {name}"] = lambda one=name: _poll(environment, profile, one)  # type: ignore[misc]
    return looks


def _filled(environment: Mapping[str, str]) -> Mapping[str, str]:
    """With what follows from other settings; where one is missing, each part says which it misses."""
    try:
        return {**environment, **reading_values(environment)}
    except ConfigurationError:
        return environment


def _moves(endpoint: Endpoint) -> bool:
    return endpoint.retrieve == "C-MOVE"


def _register(environment: Mapping[str, str]) -> None:
    register = open_reading_register(environment)
    try:
        register.tally(int(time.time()))
    finally:
        register.close()


def _queue(environment: Mapping[str, str]) -> None:
    """Somebody works on what is due: a shift that is dead, or holds on, is seen here and nowhere else."""
    register = open_reading_register(environment)
    try:
        left = register.unclaimed_seconds(int(time.time()))
    finally:
        register.close()
    if left > STALLED_SECONDS:
        raise Refusal(["queue-stalled"], f"studies are due for {left // 60} minutes, and nobody works on any")


def _outbox(environment: Mapping[str, str]) -> None:
    """A notice that no channel took waits for a person (`rapha notify again`); one that waits for its turn is as it should be."""
    register = open_reading_register(environment)
    try:
        if register.tally(int(time.time())).notices.get("dead"):
            raise Refusal(["notices-dead"], "there are notices that no channel took")
    finally:
        register.close()


def _poll(environment: Mapping[str, str], profile: Profile, name: str) -> None:
    """Whether the last polls of an archive came to their end, and with all that it has."""
    register, now = open_reading_register(environment), int(time.time())
    try:
        code = poll_code(register.poll_state(name, now), now, polling_interval(profile), sweep_seconds(profile))
    finally:
        register.close()
    if code:
        raise Refusal([code], "the polls of this archive do not go as they must")


def _trail(environment: Mapping[str, str]) -> None:
    """It opens, what was written in the last day verifies as it is read, and its folder may be written to."""
    trail = open_audit_trail(environment, make=False)
    for _ in trail.search(Wanted(since=int(time.time()) - 86_400)):
        pass
    if not os.access(trail.folder, os.W_OK):
        raise Refusal(["audit-unwritable"], "the audit trail's folder cannot be written to")
    _room(trail.folder, "audit-disk-low")


def _ledger(environment: Mapping[str, str]) -> None:
    """Its head is signed and its end is there; the whole chain is `rapha ledger verify`'s."""
    key = load_private(_path(environment, "RAPHA_KEYS_DIR") / "ledger.key")
    Ledger(_path(environment, "RAPHA_STATE_DIR") / "ledger", key).position()


def _holds(environment: Mapping[str, str], name: str, peer: str, **fields: Any) -> None:
    with Channel(_path(environment, name), peer=peer, timeout=PEER_SECONDS) as channel:
        channel.call("holds", timeout=PEER_SECONDS, **fields)


def _receiver(environment: Mapping[str, str]) -> None:
    store = _path(environment, "RAPHA_RECEIVER_STORE")
    with Receiver(_path(environment, "RAPHA_RECEIVER_SOCKET"), store, timeout=PEER_SECONDS) as receiver:
        receiver.unclaimed()
    _room(store, "receiver-disk-low")


def _mail(environment: Mapping[str, str], profile: Profile) -> None:
    found = notifications(profile, environment)
    if found is not None:
        dataclasses.replace(found.server, idle_seconds=PEER_SECONDS, whole_seconds=2 * PEER_SECONDS).check()


def _echo(endpoint: Endpoint) -> None:
    quick = {"connect_seconds": PEER_SECONDS, "idle_seconds": PEER_SECONDS, "whole_seconds": 2 * PEER_SECONDS}
    Archive(dataclasses.replace(endpoint, **quick)).echo()  # type: ignore[arg-type]


def _disk(environment: Mapping[str, str]) -> None:
    _room(_path(environment, "RAPHA_STATE_DIR"), "disk-low")


def _room(folder: Path, code: str) -> None:
    if shutil.disk_usage(folder).free < LEAST_FREE:
        raise Refusal([code], f"less than {LEAST_FREE >> 20} MiB are free")


def _path(environment: Mapping[str, str], name: str) -> Path:
    value = environment.get(name, "").strip()
    if not value:
        missing = f"missing-{name.removeprefix('RAPHA_').lower().replace('_', '-')}"
        raise ConfigurationError([missing], f"{name} is not set")
    return Path(value)
