"""C-GET and WADO-RS on behalf of a flow: what the archive sends is sealed as it comes, and counted by its own names.

The sealed files are of the same form as the receiver's, so that whatever reads them needs not know how they came.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from blocks.archive import Archive, Listed
from blocks.instances import SealedWriter
from blocks.part10 import FileMeta, read_meta
from infra.receiver.head import named
from policies.movement import Level
from rapha.errors import PeerError
from tasks.shared.moving import Ended, by_get

HEAD = 1 << 14  # bytes of a data set in which its own UIDs are looked for


class Fetching:
    """The retrieval of one study, request by request. What came whole is sealed, durable, and there for the next request too."""

    def __init__(self, folder: Path, recipient: X25519PublicKey, endpoint: str, study: str) -> None:
        self.endpoint, self.study = endpoint, study
        self._folder, self._recipient = folder, recipient
        self._received: dict[str, dict[str, dict[str, Any]]] = {}  # SOP instance -> digest -> what is told of it

    @property
    def received(self) -> list[dict[str, Any]]:
        """What came so far, in the order of arrival."""
        return [entry for contents in self._received.values() for entry in contents.values()]

    @property
    def files(self) -> set[Path]:
        return {Path(one["path"]) for one in self.received}

    def ask(self, archive: Archive, level: Level, wanted: Sequence[Listed]) -> Ended:
        """One request: of the series of the wanted instances, or of themselves. Raises `PeerError` of the archive, study-disk."""
        return by_get(archive, self.study, self._keep)(level, wanted)

    def settle(self) -> None:
        """Forgets what is no longer where it was written: its owner moved it aside."""
        for uid, contents in list(self._received.items()):
            there = {sha256: entry for sha256, entry in contents.items() if Path(entry["path"]).exists()}
            self._received[uid] = there
            if not there:
                del self._received[uid]

    def _keep(self, sop_class: str, sop_uid: str, blocks: Iterable[bytes]) -> None:
        """Seals one instance. It counts under the name that the file itself bears, whatever it was asked for as."""
        try:
            writer = SealedWriter(self._folder, self._recipient)
        except OSError:
            raise _disk() from None
        try:
            meta, sha256 = _copied(blocks, writer)
            same = self._received.setdefault(meta.sop_instance, {})
            if sha256 in same:
                return  # the same again is one instance
            sealed = writer.finish()
        except OSError:
            raise _disk() from None
        finally:
            writer.discard()
        entry = {"sop_uid": meta.sop_instance, "sop_class": meta.sop_class, "sha256": sha256, "size": sealed.size}
        same[sha256] = {**entry, "path": str(sealed.path), "conflict": bool(same)}


def _copied(blocks: Iterable[bytes], writer: SealedWriter) -> tuple[FileMeta, str]:
    """(the file's own names, the digest of its data set). Raises `PeerError` pacs-not-dicom, pacs-misnamed; `OSError`."""
    head, meta, total = bytearray(), None, hashlib.sha256()
    for block in blocks:
        writer.write(block)
        if meta is None or len(head) < meta.length + HEAD:
            head += block
        if meta is not None:
            total.update(block)
            continue
        meta = read_meta(bytes(head))
        if meta is not None:
            total.update(memoryview(head)[meta.length :])
    if meta is None:
        raise PeerError("pacs-not-dicom", "the archive sent an object that is not a DICOM file", peer="pacs")
    inside = named(bytes(head[meta.length :]), meta.transfer_syntax)
    if inside.get("sop_instance", meta.sop_instance) != meta.sop_instance:
        raise PeerError("pacs-misnamed", "the archive sent an object under another UID than its own", peer="pacs")
    return meta, "sha256:" + total.hexdigest()


def _disk() -> PeerError:
    return PeerError("study-disk", "a fetched instance cannot be written to disk", peer="study")
