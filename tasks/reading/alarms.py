"""Alarms: what the receiver turned away at our door becomes a security alert in the audit trail (PS3.15 A.5.3.11).

At least once: the receiver lets go of an alarm after it stands in the trail, so that a worker which dies in between writes it
again, under the same name.
"""

from blocks.audit import Act, AuditTrail
from blocks.receiver import Alarm, Receiver
from policies.alerts import RESTRICTED_FUNCTION, alert_type
from policies.audit_message import date_time


def alarms(receiver: Receiver, trail: AuditTrail, person: str) -> int:
    """Writes all that are due; how many. Raises `PeerError` receiver-…, audit-unwritable: the rest stays with the receiver."""
    found = receiver.alarms()
    for one in found:
        trail.record("alert", _act(one, person), outcome=8, reason=_reason(one))
        receiver.alarm_written(one)
    return len(found)


def _act(one: Alarm, person: str) -> Act:
    return Act(
        person=person,
        type=alert_type([one.code]) or RESTRICTED_FUNCTION,
        source=" ".join(one.titles) or one.address or "several",
        source_host=one.address,
        subject=f"urn:rapha:receiver:{one.name}",
    )


def _reason(one: Alarm) -> str:
    """The code, how often, and between which times (UTC)."""
    return f"{one.code} {one.count} {date_time(one.first * 1000)} {date_time(one.last * 1000)}"
