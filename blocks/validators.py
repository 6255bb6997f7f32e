"""Two validators that are not ours: dciodvfy (dicom3tools) and PixelMed's DicomSRValidator, each a process with a time-out.

A report goes in over a file in memory (`memfd`): no clear copy of it lies on a disk. What they say quotes values of the report,
so nothing of it is passed on but counts.
"""

import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rapha.errors import PeerError

IOD, TEMPLATE = "dciodvfy", "DicomSRValidator"
SECONDS = 120.0
# The template validator's style sheet is larger than Java's limits for untrusted ones; it is Debian's own file.
_JAVA = "-Djdk.xml.xpathTotalOpLimit=0 -Djdk.xml.xpathExprOpLimit=0 -Djdk.xml.xpathExprGrpLimit=0 -XX:TieredStopAtLevel=1"
# Each keeps a processor busy for seconds: with many studies in flight the others wait here, outside their own time.
_ROOM = threading.BoundedSemaphore(len(os.sched_getaffinity(0)))
_ENDED = {IOD: re.compile(rb""), TEMPLATE: re.compile(rb"^IOD validation complete", re.M)}


@dataclass(frozen=True, slots=True)
class Checked:
    """errors, warnings: lines of each kind."""

    tool: str
    errors: int
    warnings: int


def check(tool: str, report: bytes, *, seconds: float = SECONDS) -> Checked:
    """Runs one of the two. Raises `PeerError` validator-missing, validator-timeout, validator-failed (it gave no verdict)."""
    path = shutil.which(tool)
    if path is None:
        raise PeerError("validator-missing", f"{tool} is not installed (Debian: dicom3tools, pixelmed-apps)", peer="validator")
    with _ROOM, _in_memory(report) as (fd, place):
        try:
            done = subprocess.run(
                [path, place],
                capture_output=True,
                timeout=seconds,
                check=False,
                pass_fds=(fd,),
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "JAVA_TOOL_OPTIONS": _JAVA},
            )
        except subprocess.TimeoutExpired:
            raise PeerError("validator-timeout", f"{tool} did not end within {seconds:.0f} s", peer="validator") from None
    said = done.stdout + b"\n" + done.stderr
    errors, warnings = (len(re.findall(rb"^%b\b" % kind, said, re.M)) for kind in (b"Error", b"Warning"))
    # dciodvfy names the IOD that it found; without that line it read nothing.
    ended = _ENDED[tool].search(said) and (tool != IOD or re.search(rb"^[A-Za-z0-9]+SR$", said, re.M))
    if not ended or (done.returncode != 0 and not errors):
        raise PeerError("validator-failed", f"{tool} gave no verdict (status {done.returncode})", peer="validator")
    return Checked(tool, errors, warnings)


@contextmanager
def _in_memory(report: bytes) -> Iterator[tuple[int, str]]:
    fd = os.memfd_create("report")
    try:
        view = memoryview(report)
        while view:
            view = view[os.write(fd, view) :]
        yield fd, f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)
