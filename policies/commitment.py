"""What an archive's reports of storage commitment say of one object (PS3.4 J.3.3). Pure.

A report may come late, for a request that somebody gave up waiting for. The newest that names the object decides: what was
failed later is not committed because it was before.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Literal, Protocol


class Reported(Protocol):
    """One report. number: in which order they came; classes: SOP instance -> SOP class of what it commits to."""

    @property
    def number(self) -> int: ...
    @property
    def classes(self) -> Mapping[str, str]: ...
    @property
    def failed(self) -> Collection[str]: ...


def standing(reports: Iterable[Reported], sop_class: str, sop_uid: str) -> Literal["committed", "failed", "unknown"]:
    """failed: also where it commits to an instance of this UID and of another class."""
    for one in sorted(reports, key=lambda report: report.number, reverse=True):
        if sop_uid in one.failed:
            return "failed"
        if sop_uid in one.classes:
            return "committed" if one.classes[sop_uid] == sop_class else "failed"
    return "unknown"
