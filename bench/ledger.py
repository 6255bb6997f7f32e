"""A durable ledger entry against a durable SQLite row."""

import sqlite3
import tempfile
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.row import Row, beside
from blocks.ledger import Ledger

ENTRIES = 50
BODY = {"gate": "escrow", "verdict": "cleared", "subject": "sha256:" + "0" * 64, "codes": []}


def rows() -> list[Row]:
    """Appends, each flushed before it is answered; SQLite in WAL with synchronous=FULL, one transaction a row."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "ledger", Ed25519PrivateKey.generate(), "bench")
        database = sqlite3.connect(Path(folder) / "peer.db", isolation_level=None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE entry (body TEXT)")

        def ours() -> None:
            for _ in range(ENTRIES):
                ledger.append("bench", BODY)

        def peer() -> None:
            for _ in range(ENTRIES):
                database.execute("INSERT INTO entry VALUES (?)", (str(BODY),))

        row = beside("ledger: one durable entry", ours, peer, peer_name="durable SQLite row", per=ENTRIES)
        rates = f"entries/s: {1000 / row.ours:.0f} and {1000 / row.peer:.0f}"
        return [replace(row, note=f"{rates}; ours: chained, head signed (Ed25519), three flushes")]
