"""DICOM in clear onto a disk of the hospital's: only where a person names the folder, and only what the archive lists.

The folder is new or empty, its files are numbered and nobody's but their owner's; a name says nothing of what is in it.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blocks.archive import Archive
from blocks.reading_settings import BIND, RECEIVER_PLACES
from blocks.receiver import Receiver
from rapha.errors import ConfigurationError, PeerError
from tasks.shared.collect import save_by_get, save_by_move, save_instances, wanted_of

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be retrieved: a study, one of its series, or one instance of a series. `ConfigurationError` uid-…, series-…."""

    study: str
    series: str | None = None
    instance: str | None = None

    def __post_init__(self) -> None:
        for uid in (self.study, self.series, self.instance):
            if uid is not None:
                check_uid(uid)
        if self.instance is not None and self.series is None:
            raise ConfigurationError(["series-missing"], "an instance is asked for with its series")


@dataclass(frozen=True, slots=True)
class Saved:
    """files: how many; size: of all of them in bytes; method: how they were retrieved."""

    files: int
    size: int
    method: str


def check_uid(uid: str) -> str:
    """The UID. Raises `ConfigurationError(uid-malformed)` (PS3.5 section 9.1)."""
    if not isinstance(uid, str) or not _UID.fullmatch(uid) or len(uid) > 64:
        raise ConfigurationError(["uid-malformed"], "a UID is digits and dots, at most 64 of them")
    return uid


def check_folder(out: Path) -> None:
    """The folder is there afterwards, and empty. Raises `ConfigurationError` folder-not-empty, folder-unusable."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigurationError(["folder-not-empty"], f"{out} is no empty folder")
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(out, os.W_OK | os.X_OK):
            raise ConfigurationError(["folder-unusable"], "the folder cannot be written")
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        said = error.strerror if isinstance(error, OSError) else "not a name of a folder"
        raise ConfigurationError(["folder-unusable"], f"the folder cannot be made or used: {said}") from None


def save(archive: Archive, wanted: Wanted, out: Path, environment: Mapping[str, str]) -> Saved:
    """Retrieves into the folder, by WADO-RS, C-GET or C-MOVE; every instance that the archive lists, or `PeerError` pacs-….

    C-MOVE goes to the receiver that the environment names; where there is none, an archive that was not probed is tried by C-GET.
    Raises `ConfigurationError` folder-not-empty, folder-unusable, retrieve-needs-receiver; `Refusal` study-, series- or
    instance-not-found; `PeerError` of the archive and the receiver.
    """
    check_folder(out)
    what = (wanted.study, wanted.series, wanted.instance)
    if archive.method == "WADO-RS":
        return _by_web(archive, wanted, out)
    if archive.method == "C-MOVE" and (receiver := receiver_of(environment)) is not None:
        with receiver:
            return Saved(*save_by_move(archive, receiver, *what, out), "C-MOVE")
    if archive.endpoint.retrieve == "C-MOVE":
        said = "C-MOVE sends to the node's receiver: set RAPHA_RECEIVER_SOCKET and RAPHA_RECEIVER_STORE"
        raise ConfigurationError(["retrieve-needs-receiver"], said)
    return Saved(*save_by_get(archive, *what, out), "C-GET")


def receiver_of(environment: Mapping[str, str]) -> Receiver | None:
    """A connection to the node's receiver, where one is configured. Raises `PeerError(receiver-unreachable)`."""
    served = bool(environment.get(BIND, "").strip() and environment.get("RAPHA_STATE_DIR", "").strip())
    places = {name: f"{environment['RAPHA_STATE_DIR']}/{place}" for name, place in RECEIVER_PLACES.items()} if served else {}
    path, store = (environment.get(name, "").strip() or places.get(name, "") for name in RECEIVER_PLACES)
    return Receiver(Path(path), Path(store)) if path and store else None


def _by_web(archive: Archive, wanted: Wanted, out: Path) -> Saved:
    count = len(wanted_of(archive.list_study(wanted.study), wanted.series, wanted.instance))
    files, size = save_instances(archive.web(), wanted.study, wanted.series, wanted.instance, out)
    if files != count:
        raise PeerError("pacs-incomplete", f"{files} of {count} listed instances came", peer="pacs")
    return Saved(files, size, "WADO-RS")
