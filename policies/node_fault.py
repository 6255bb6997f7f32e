"""Whose fault it was that a study failed: its own, a peer's, or the node's. A node's fault costs no study a try."""

from collections.abc import Iterable
from typing import Literal

Scope = Literal["", "row", "node"]
# Codes, or their beginnings where a line ends with a hyphen: what every study would fail for that is begun now.
WHOLE_NODE = (
    "ledger-unwritable",
    "ledger-unreadable",
    "ledger-broken",
    "ledger-truncated",
    "audit-unwritable",
    "audit-unreadable",
    "audit-broken",
    "kept-unwritable",
    "models-",
    "model-unreadable",
    "trainer-command-missing",
    "key-unreadable",
)
# What this process's own files and descriptors said (a full disk, no descriptors left, a file that is not there for a moment).
OS_ERRORS = frozenset(
    {"oserror", "filenotfounderror", "fileexistserror", "permissionerror", "isadirectoryerror", "notadirectoryerror"}
)


def node_fault(codes: Iterable[str], *, setting: bool = False, bug: bool = False) -> Scope:
    """ "node": nothing can be read now; "row": a setting that this study needs is wrong, an endpoint's for instance; "": neither.

    setting: it was a wrong setting (`ConfigurationError`); bug: an exception of this process's that has no code of its own, whose
    codes are `bug-<type>`. The same word of another process is not the node's: it may be what the study's content did to it.
    """
    said = tuple(codes)
    if any(code == one or (one.endswith("-") and code.startswith(one)) for code in said for one in WHOLE_NODE):
        return "node"
    if bug and any(code.removeprefix("bug-") in OS_ERRORS for code in said):
        return "node"
    return "row" if setting or "capabilities-odd" in said else ""
