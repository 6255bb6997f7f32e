"""Which failures are security alerts."""

import pytest

from policies.alerts import NODE_AUTHENTICATION, OBJECT_CHANGED, alert_type
from policies.audit_codes import EVENT_TYPES


@pytest.mark.parametrize(
    ("codes", "kind"),
    [
        (["tls-name-differs"], NODE_AUTHENTICATION),
        (["archive-incomplete", "sealed-tampered"], OBJECT_CHANGED),
        (["report-conflict"], OBJECT_CHANGED),
        (["report-conflicting"], ""),
        (["dimse-unreachable"], ""),
        (["attls-x"], ""),
        ([], ""),
    ],
)
def test_what_an_intruder_would_cause_is_an_alert(codes: list[str], kind: str) -> None:
    assert alert_type(codes) == kind
    assert kind == "" or kind in EVENT_TYPES
