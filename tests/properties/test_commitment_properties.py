"""An archive's reports of storage commitment, however they come: the last one that names an object decides, also after a kill."""

import secrets
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from blocks.receiver import _commitment
from infra.receiver.alarms import Alarms
from infra.receiver.session import ReceiverSession
from infra.receiver.store import Store
from policies.commitment import standing
from tests.properties.test_reading_properties_receiver import opened_store

OURS, CLASS, OTHER = "2.25.7", "1.2.840.10008.5.1.4.1.1.88.34", "1.2.840.10008.5.1.4.1.1.2"
SAYS = ("commits", "other class", "fails", "both", "another object")
STEPS = st.lists(
    st.one_of(st.tuples(st.sampled_from(["t1", "t2", "t3"]), st.sampled_from(SAYS)), st.just(("", "restart"))), max_size=10
)
ASKED = ["t1", "t2"]  # of t3 somebody else asked


def reported(store: Store, transaction: str, said: str) -> None:
    kept = {"commits": {OURS: CLASS}, "both": {OURS: CLASS}, "other class": {OURS: OTHER}, "another object": {"2.25.8": CLASS}}
    failed = {OURS: 0x0112} if said in ("fails", "both") else {}
    store.committed(transaction, kept.get(said, {}), failed)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
@example([("t1", "commits"), ("t2", "fails")])
@example([("t2", "fails"), ("t1", "commits"), ("", "restart")])
@example([("t1", "commits"), ("t2", "fails"), ("t1", "commits"), ("", "restart")])
def test_the_last_report_that_names_the_object_decides(steps: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory(prefix="rapha-") as name:
        place, key = Path(name), secrets.token_bytes(32)
        store, last = opened_store(place, key), dict[str, str]()
        for transaction, said in steps:
            if said == "restart":
                store = opened_store(place, key)
            else:
                reported(store, transaction, said)
                last.pop(transaction, None)
                last[transaction] = said
        alarms = Alarms(place / "alarms.json")
        told: dict[str, Any] = ReceiverSession(store, alarms).do_commitments({"transactions": ASKED}, [])
        naming = [said for transaction, said in last.items() if transaction in ASKED and said != "another object"]
        expected = "unknown" if not naming else "committed" if naming[-1] == "commits" else "failed"
        assert standing([_commitment(one) for one in told["reports"]], CLASS, OURS) == expected


def test_a_report_from_before_classes_were_written_down_is_no_proof() -> None:
    old = {"transaction": "t1", "kept": [OURS], "failed": {}, "number": 1}
    assert standing([_commitment(old)], CLASS, OURS) == "failed"
