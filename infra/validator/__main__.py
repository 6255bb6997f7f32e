"""`python -m infra.validator DESCRIPTOR LIBJVM`: answers over the UNIX socket that it was started with, one report at a time.

    first     {"ok": true}, once the style sheet is compiled
    request   {"verb": "validate"} with two descriptors: the report, and an empty file in memory for what is said of it
    answer    {"ok": true}

Whatever goes wrong on the way ends the process, and that is the answer: no state of a half-read report meets the next one.
"""

import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import Any

import jpype

from blocks.channel import receive, send
from blocks.validators import java_options
from infra.reader.hardening import harden

JAR = "/usr/share/java/pixelmed.jar"
CLASS, FACTORY = "com.pixelmed.validate.DicomSRValidator", "javax.xml.transform.TransformerFactory"
HEAP_MB = 512  # a report of 500 findings needs 80 (docs/adr/0011)
# One small collector; nothing on the disk (performance counters, error files, dumps); no way in for a debugger.
BOUNDS = ("-XX:+UseSerialGC", f"-Xmx{HEAP_MB}m", "-XX:MaxMetaspaceSize=192m", "-XX:CompressedClassSpaceSize=64m",
          "-XX:ReservedCodeCacheSize=64m", "-XX:+ExitOnOutOfMemoryError", "-XX:-UsePerfData", "-XX:ErrorFile=/dev/null",
          "-XX:-CreateCoredumpOnCrash", "-XX:+DisableAttachMechanism", "-XX:-UseContainerSupport", "-Xrs")  # fmt: skip
LIMITS = (("AS", (HEAP_MB << 20) + (2 << 30)), ("FSIZE", 256 << 20), ("NOFILE", 128))
Validate = Callable[[str], object]


def main(descriptor: int, library: str) -> int:
    """Serves until the other side closes."""
    harden("validator")
    for name, most in LIMITS:
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    with socket.socket(fileno=descriptor) as line:
        jpype.startJVM(library, *java_options(), *BOUNDS, classpath=[JAR], convertStrings=False)
        validate = _validator()
        send(line, {"ok": True})
        while (request := receive(line)) is not None:
            send(line, _answer(validate, *request))
    return 0


def _validator() -> Validate:
    """Its style sheets compiled, for any number of reports.

    The validator has two passes: the first lists the content items that a template names, the second reads the list as a document
    and says which items were not. Saxon keeps the documents of a transformer, so the second would hold each report against the
    first one's list: it gets a new transformer for each report.
    """
    kind = jpype.JClass(CLASS)
    made, factory, source = kind(), jpype.JClass(FACTORY).newInstance(), jpype.JClass("javax.xml.transform.stream.StreamSource")
    second, resolver = (kind.class_.getDeclaredField(name) for name in ("transformerPass2", "ourURIResolver"))
    for one in (second, resolver):
        one.setAccessible(True)
    factory.setURIResolver(resolver.get(made))
    compiled = factory.newTemplates(source(kind.class_.getResourceAsStream("CheckSRContentItemsUsed.xsl")))

    def validate(path: str) -> object:
        transformer = compiled.newTransformer()
        transformer.setURIResolver(resolver.get(made))
        second.set(made, transformer)
        return made.validate(path)

    return validate


def _answer(validate: Validate, message: dict[str, Any], fds: list[int]) -> dict[str, Any]:
    """What the validator says of the file `fds[0]`, written into `fds[1]`."""
    if message != {"verb": "validate"} or len(fds) != 2:
        raise ValueError("no request of the study reader's")
    report, place = fds
    said = str(validate(f"/proc/self/fd/{report}"))
    os.close(report)
    with os.fdopen(place, "wb") as file:
        file.write(said.encode("utf-8", "replace"))
    return {"ok": True}


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2]))
