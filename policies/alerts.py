"""Which failures are security alerts (PS3.15 A.5.3.11), and of which type: what an intruder or a broken peer would cause."""

from collections.abc import Iterable

NODE_AUTHENTICATION = "110126"
OBJECT_CHANGED = "110135"  # Object Security Attributes Changed: bytes are not those that were promised
# Codes, or their beginnings where a line ends with a hyphen.
CAUSES = {
    "tls-": NODE_AUTHENTICATION,
    "mail-certificate": NODE_AUTHENTICATION,
    "mail-no-starttls": NODE_AUTHENTICATION,
    "sealed-": OBJECT_CHANGED,
    "report-conflict": OBJECT_CHANGED,
    "arrival-conflict": OBJECT_CHANGED,
    "instance-named-otherwise": OBJECT_CHANGED,
    "ledger-": OBJECT_CHANGED,
}


def alert_type(codes: Iterable[str]) -> str:
    """The event type of the alert that these codes are, or "" where they are none."""
    for code in sorted(codes):
        for cause, kind in CAUSES.items():
            if code == cause or (cause.endswith("-") and code.startswith(cause)):
                return kind
    return ""
