"""Audit messages as syslog (PS3.15 A.6): RFC 5424 messages, framed by RFC 5425's octet counting. Sending is not done here."""

import re

from rapha.errors import Refusal

FACILITY = 10  # security/authorization (RFC 5424 table 1), as PS3.15 A.6 asks
MESSAGE_ID = "DICOM+RFC3881"
MUST_TAKE = 32768  # octets that every receiver of audit messages must take (PS3.15 A.6.1)
MAX_FRAME = 1 << 21
_SEVERITY = {0: 5, 4: 4, 8: 3, 12: 2}  # outcome -> notice, warning, error, critical
_BOM = b"\xef\xbb\xbf"
_LIMITS = {"hostname": 255, "application": 48, "process": 128}


def framed(xml: bytes, *, at: str, outcome: int, hostname: str, application: str = "rapha", process: str = "-") -> bytes:
    """MSG-LEN SP SYSLOG-MSG (RFC 5425 section 4.3) of one audit message.

    at: the event's time in UTC as `policies.audit_message.date_time` writes it. Header fields are cut to what RFC 5424 section 6
    gives them, and what is not printable ASCII in them becomes `?`. `Refusal` syslog-outcome, syslog-size.
    """
    if outcome not in _SEVERITY:
        raise Refusal(["syslog-outcome"], "an audit message's outcome is 0, 4, 8 or 12")
    names = {"hostname": hostname, "application": application, "process": process}
    header = " ".join(_field(value, _LIMITS[name]) for name, value in names.items())
    priority = FACILITY * 8 + _SEVERITY[outcome]
    message = f"<{priority}>1 {at} {header} {MESSAGE_ID} - ".encode("ascii") + _BOM + xml
    if len(message) > MAX_FRAME:
        raise Refusal(["syslog-size"], "an audit message is larger than any")
    return str(len(message)).encode() + b" " + message


def unframed(stream: bytes) -> tuple[list[bytes], bytes]:
    """(the XML of every whole frame, what is left over for the next call). `Refusal` syslog-frame."""
    found: list[bytes] = []
    while head := re.match(rb"[1-9][0-9]{0,7} ", stream):
        length = int(head[0])
        if length > MAX_FRAME:
            raise Refusal(["syslog-frame"], "a syslog frame is larger than any")
        frame = stream[head.end() : head.end() + length]
        if len(frame) < length:
            return found, stream
        found.append(_content(frame))
        stream = stream[head.end() + length :]
    if stream and not re.fullmatch(rb"[1-9][0-9]{0,7}", stream):
        raise Refusal(["syslog-frame"], "a syslog frame does not begin with its length")
    return found, stream


def _content(frame: bytes) -> bytes:
    match = re.match(rb"<\d{1,3}>1 (?:\S+ ){5}- ", frame)
    if match is None:
        raise Refusal(["syslog-frame"], "a frame is not an audit message in syslog")
    return frame[match.end() :].removeprefix(_BOM)


def _field(value: str, limit: int) -> str:
    return "".join(c if "!" <= c <= "~" else "?" for c in value)[:limit] or "-"
