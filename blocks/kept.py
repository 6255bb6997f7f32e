"""Sealed files that are needed longer than the connection which brought them, and the note that says whose they are.

What the receiver or the study reader writes for a connection is removed when that connection ends, or when its process starts
again. Whoever needs it longer writes a note first, sealed with the register's key, and only then moves the files aside, into
`kept/` beside them: so there is no kept file without a note, and a kill in between leaves a note of files that are gone.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blocks.sealed_columns import SealedColumns
from rapha.errors import PeerError
from rapha.files import replace_durably, unfinished

KEPT, NOTE = "kept", ".note"
_HALF = unfinished(Path(NOTE)).name
_NAME = re.compile(r"[0-9a-z-]{1,100}")


class KeptFiles:
    """The notes of one node, in a folder of their own. A note's name says nothing but whose it is: row, opening, attempt."""

    def __init__(self, folder: Path, columns: SealedColumns) -> None:
        self._folder, self._columns = folder, columns

    def keep(self, name: str, document: Mapping[str, Any], files: Sequence[Path]) -> list[Path]:
        """Writes the note, in place of an older one of its name, and moves the files aside; where they are now, in their order.

        Raises `PeerError` sealed-file-gone (its process was started again meanwhile), kept-unwritable.
        """
        places = [kept_place(path) for path in files]
        said = json.dumps({**document, "files": [str(place) for place in places]})
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_durably(self._note(name), self._columns.seal(said, "kept", name))
            for path, place in zip(files, places, strict=True):
                place.parent.mkdir(exist_ok=True, mode=0o700)
                if path != place:
                    path.rename(place)
        except FileNotFoundError:
            raise PeerError("sealed-file-gone", "a sealed file went with the process that wrote it", peer="study") from None
        except OSError:
            raise PeerError("kept-unwritable", "sealed files cannot be kept", peer="disk") from None
        return places

    def read(self, name: str) -> dict[str, Any] | None:
        """The note's document with its `files`; None where there is no such note. Raises `PeerError` register-tampered,
        kept-unreadable: a note that cannot be read now is not one that is gone."""
        try:
            sealed = self._note(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            raise _unreadable() from None
        document: dict[str, Any] = json.loads(self._columns.open(sealed, "kept", name))
        return document

    def strays(self, stores: Sequence[Path]) -> list[Path]:
        """Files kept aside in these stores that no note names: whoever kept them is gone, and their note with it.

        Files are listed before notes, and a note is written before its files are moved: what somebody keeps meanwhile is not
        among them. Raises `PeerError` register-tampered, kept-unreadable where a note does not open, for any file might be its.
        """
        lying = [path for store in stores for path in (store / KEPT).glob("*") if path.is_file()]
        named = {file for name in self.names() for file in (self.read(name) or {"files": []})["files"]} if lying else set()
        return [path for path in lying if str(path) not in named]

    def names(self) -> list[str]:
        """Every note there is. Raises `PeerError(kept-unreadable)`."""
        return sorted(name for name in self._listed(NOTE) if _NAME.fullmatch(name))

    def unfinished(self) -> list[str]:
        """Notes that somebody began to write: whoever was killed meanwhile has moved no file yet."""
        return sorted(self._listed(_HALF))

    def forget(self, name: str, *, but: frozenset[str] = frozenset()) -> int:
        """Removes the note's files, but for those that another note has, and then the note; how many. Raises `PeerError`
        register-tampered (nothing is removed), kept-unreadable, kept-unwritable."""
        document = self.read(name) or {"files": []}
        gone = [path for path in document["files"] if path not in but]
        try:
            for path in gone:
                Path(path).unlink(missing_ok=True)
            for note in (self._note(name), unfinished(self._note(name))):
                note.unlink(missing_ok=True)
        except OSError:
            raise PeerError("kept-unwritable", "a sealed file cannot be removed", peer="disk") from None
        return len(gone)

    def _listed(self, ending: str) -> list[str]:
        """The folder's names that end so, without that; a folder that cannot be read is not an empty one."""
        try:
            return [path.name.removesuffix(ending) for path in self._folder.iterdir() if path.name.endswith(ending)]
        except FileNotFoundError:
            return []
        except OSError:
            raise _unreadable() from None

    def _note(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(name)
        return self._folder / f"{name}{NOTE}"


def _unreadable() -> PeerError:
    return PeerError("kept-unreadable", "the notes of kept files cannot be read now", peer="disk")


def of_this_process() -> str:
    """The beginning of a note's name for as long as this process lives, and no longer."""
    return f"hand-{os.getpid()}-{_started(os.getpid())}"


def orphaned(name: str) -> bool:
    """Whether a note is of a process that has ended. Any other name is nobody's to give up."""
    found = re.match(r"hand-([0-9]{1,10})-([0-9]{1,20})-", name)
    return found is not None and _started(int(found[1])) != found[2]


def _started(pid: int) -> str:
    """When a process was started, in ticks since the machine was (proc_pid_stat(5)); "" where there is none of this number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def kept_place(path: Path) -> Path:
    """Where a sealed file lies once it is kept."""
    return path if path.parent.name == KEPT else path.parent / KEPT / path.name
