"""C-GET and WADO-RS on behalf of a flow: what the archive sends is sealed as it comes, and counted by its own names.

The sealed files are of the same form as the receiver's, so that whatever reads them needs not know how they came.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from blocks.archive import Archive, Listed
from blocks.instances import SealedWriter
from blocks.part10 import FileMeta, read_meta
from infra.receiver.head import named
from rapha.errors import PeerError

HEAD = 1 << 14  # bytes of a data set in which its own UIDs are looked for


@dataclass
class Fetching:
    """One retrieval. received: what is sealed and durable, in the order of arrival; a failure removes what it wrote."""

    folder: Path
    recipient: X25519PublicKey
    received: list[dict[str, Any]] = field(default_factory=list)

    def run(self, archive: Archive, study: str, wanted: Sequence[Listed]) -> list[dict[str, Any]]:
        """The wanted instances of a study. Raises `PeerError` of the archive, study-disk."""
        try:
            archive.get(study, wanted, self._keep)
        except BaseException:
            for one in self.received:
                Path(one["path"]).unlink(missing_ok=True)
            raise
        return self.received

    def _keep(self, sop_class: str, sop_uid: str, blocks: Iterable[bytes]) -> None:
        """Seals one instance. It counts under the name that the file itself bears, whatever it was asked for as."""
        try:
            writer = SealedWriter(self.folder, self.recipient)
        except OSError:
            raise _disk() from None
        try:
            meta, sha256 = _copied(blocks, writer)
            same = [one for one in self.received if one["sop_uid"] == meta.sop_instance]
            if any(one["sha256"] == sha256 for one in same):
                return  # the same again is one instance
            sealed = writer.finish()
        except OSError:
            raise _disk() from None
        finally:
            writer.discard()
        entry = {"sop_uid": meta.sop_instance, "sop_class": meta.sop_class, "sha256": sha256, "size": sealed.size}
        self.received.append({**entry, "path": str(sealed.path), "conflict": bool(same)})


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
