"""Which failures are security alerts (PS3.15 A.5.3.11), and of which type: what an intruder or a broken peer would cause."""

from collections.abc import Iterable

NODE_AUTHENTICATION = "110126"
HARDWARE = "110130"  # Hardware Configuration: of CID 403 the nearest to a machine that has run out of something
RESTRICTED_FUNCTION = "110132"
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
    "receiver-calling-title": NODE_AUTHENTICATION,
    "receiver-called-title": NODE_AUTHENTICATION,
    "receiver-object-unexpected": RESTRICTED_FUNCTION,
    "receiver-object-named-otherwise": OBJECT_CHANGED,
    "receiver-out-of-resources": HARDWARE,
}


def alert_type(codes: Iterable[str]) -> str:
    """The event type of the alert that these codes are, or "" where they are none."""
    for code in sorted(codes):
        for cause, kind in CAUSES.items():
            if code == cause or (cause.endswith("-") and code.startswith(cause)):
                return kind
    return ""
