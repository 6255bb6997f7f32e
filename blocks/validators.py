"""Two validators that are not ours: dciodvfy (dicom3tools) and PixelMed's DicomSRValidator, each a process with a time-out.

A report goes in over a file in memory (`memfd`): no clear copy of it lies on a disk. What they say quotes values of the report,
so nothing of it is passed on but counts. The study reader asks a process in which the second is kept warm (infra/validator), and
what that says is judged by `verdict`, as here.
"""

import os
import re
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rapha.errors import PeerError
from rapha.files import in_memory

IOD, TEMPLATE = "dciodvfy", "DicomSRValidator"
SECONDS = 120.0
# The template validator's style sheet is larger than Java's limits for untrusted ones; it is Debian's own file.
_LIMITS = tuple(f"-Djdk.xml.xpath{name}Limit=0" for name in ("TotalOp", "ExprOp", "ExprGrp"))
# Java's own style sheet processor takes 45 MB and half a second for each finding and each image of a report and keeps them to the
# end; Saxon says the same words of the same report in a fiftieth of the time (docs/adr/0011).
SAXON = Path("/usr/share/java/Saxon-HE.jar")
# Each keeps a processor busy for seconds: with many studies in flight the others wait here, outside their own time.
_ROOM = threading.BoundedSemaphore(len(os.sched_getaffinity(0)))
_READ = re.compile(rb"^Root Template Validation Complete", re.M)
_ENDED = {IOD: re.compile(rb""), TEMPLATE: re.compile(rb"^IOD validation complete", re.M)}


class Check(Protocol):
    """How a report is put before one of the two: `check`, or a process that is kept warm for it."""

    def __call__(self, tool: str, report: bytes, *, seconds: float = SECONDS) -> "Checked": ...


@dataclass(frozen=True, slots=True)
class Checked:
    """errors, warnings: lines of each kind."""

    tool: str
    errors: int
    warnings: int


def check(tool: str, report: bytes, *, seconds: float = SECONDS) -> Checked:
    """Runs one of the two. Raises `PeerError` validator-missing, validator-timeout, validator-failed (it gave no verdict)."""
    path = installed(tool)
    with _ROOM, in_memory(report) as (fd, place):
        process = subprocess.Popen(
            [path, str(place)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(fd,),
            start_new_session=True,  # one of them is a script: what it starts is ended with it
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "JAVA_TOOL_OPTIONS": " ".join(java_options())},
        )
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise PeerError("validator-timeout", f"{tool} did not end within {seconds:.0f} s", peer="validator") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return verdict(tool, out + b"\n" + err, process.returncode)


def installed(tool: str) -> str:
    """Where the program is. Raises `PeerError(validator-missing)`."""
    path = shutil.which(tool)
    if path is None:
        said = f"{tool} is not installed (Debian: dicom3tools, pixelmed-apps, libsaxonhe-java)"
        raise PeerError("validator-missing", said, peer="validator")
    return path


def java_options() -> list[str]:
    """Of the Java machine that runs the template validator, in a process of its own or kept warm."""
    own = "com.sun.org.apache.xerces.internal.jaxp"
    saxon = [
        f"-Xbootclasspath/a:{SAXON}",
        "-Djavax.xml.transform.TransformerFactory=net.sf.saxon.TransformerFactoryImpl",
        # Debian's Saxon brings jars along that offer parsers of their own.
        *(f"-Djavax.xml.parsers.{name}Factory={own}.{name}FactoryImpl" for name in ("DocumentBuilder", "SAXParser")),
    ]
    return [*_LIMITS, "-XX:TieredStopAtLevel=1", *(saxon if SAXON.is_file() else [])]


def verdict(tool: str, said: bytes, status: int = 0) -> Checked:
    """What the tool's words and exit status mean. Raises `PeerError(validator-failed)` where they are no verdict.

    The template validator ends well with a file that is no report, or is one after no template: that is an error of the file.
    """
    errors, warnings = (len(re.findall(rb"^%b\b" % kind, said, re.M)) for kind in (b"Error", b"Warning"))
    # dciodvfy names the IOD that it found; without that line it read nothing.
    ended = _ENDED[tool].search(said) and (tool != IOD or re.search(rb"^([A-Za-z0-9]+SR|Segmentation)$", said, re.M))
    if not ended or (status != 0 and not errors):
        raise PeerError("validator-failed", f"{tool} gave no verdict (status {status})", peer="validator")
    unread = tool == TEMPLATE and not _READ.search(said)
    return Checked(tool, errors + unread, warnings)
