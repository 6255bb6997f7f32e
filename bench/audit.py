"""A durable, sealed audit entry against a durable SQLite row with the same message in clear; alone and by sixteen threads."""

import secrets
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.row import Row, beside
from blocks.audit import Act, AuditTrail, Patient, Study
from blocks.audit_segments import Segments
from policies.audit_events import compose
from policies.audit_message import Source, build

ENTRIES, THREADS = 64, 16
SOURCE = Source("bench")
ACT = Act(
    person="reading@node", source="PACS", destination="RAPHA", patient=Patient("0042", "Doe^Jane"), studies=(Study("1.2.3"),)
)


def rows() -> list[Row]:
    """Messages built, sealed, chained and flushed before the answer; SQLite in WAL, synchronous=FULL, a transaction a row."""
    with tempfile.TemporaryDirectory() as folder:
        signer = Ed25519PrivateKey.generate()
        Segments.create(Path(folder) / "audit", signer)
        trail = AuditTrail(Path(folder) / "audit", secrets.token_bytes(32), signer, source=SOURCE)
        path = str(Path(folder) / "peer.db")
        setup = sqlite3.connect(path, isolation_level=None)
        setup.execute("PRAGMA journal_mode=WAL")
        setup.execute("CREATE TABLE entry (body BLOB)")

        def ours(count: int = ENTRIES) -> None:
            for _ in range(count):
                trail.record("transfer", ACT)

        def peer(count: int = ENTRIES) -> None:
            database = sqlite3.connect(path, isolation_level=None, timeout=60)
            database.execute("PRAGMA synchronous=FULL")
            for _ in range(count):
                xml = build(compose("transfer", ACT, at=0, outcome=0, source=SOURCE))
                database.execute("INSERT INTO entry VALUES (?)", (xml,))
            database.close()

        alone = beside("audit: one durable entry", ours, peer, peer_name="durable SQLite row, in clear", per=ENTRIES)
        shared = beside(
            f"audit: one durable entry, {THREADS} threads",
            lambda: _spread(ours),
            lambda: _spread(peer),
            peer_name="durable SQLite row, in clear",
            per=ENTRIES,
        )
        return [replace(row, note=f"entries/s: {1000 / row.ours:.0f} and {1000 / row.peer:.0f}") for row in (alone, shared)]


def _spread(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(ENTRIES // THREADS,)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
