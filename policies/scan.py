"""The compliance scan's judgement: facts about a workload's files in, codes with counts out. Pure.

Three ways for a file to pass: it is listed with its digest in the RECORD of a known wheel; it is Python that keeps to the
allow-list of `policies.python_source`; it is inert (JSON, plain text, safetensors). Everything else refuses, what the scan does
not know included.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from policies.gate import Reason
from policies.python_source import shadows

Form = Literal["python", "json", "text", "safetensors", "elf", "known", "unknown"]
_NETWORK_SYMBOLS = frozenset(
    [
        "accept",
        "accept4",
        "bind",
        "connect",
        "freeaddrinfo",
        "gai_strerror",
        "getaddrinfo",
        "gethostbyname",
        "gethostbyname_r",
        "getpeername",
        "getsockopt",
        "inet_ntop",
        "inet_pton",
        "listen",
        "recv",
        "recvfrom",
        "recvmmsg",
        "recvmsg",
        "res_query",
        "send",
        "sendmmsg",
        "sendmsg",
        "sendto",
        "setsockopt",
        "socket",
        "socketpair",
        "SSL_connect",
        "curl_easy_perform",
        "curl_easy_init",
    ]
)


def _job(wrong: str, todo: str) -> Reason:
    return Reason("job", wrong, todo)


_NO_SPECIAL = "Ship regular files only."
_REBUILD = "Rebuild the image with umoci, skopeo or buildah for linux/amd64 and declare the digest of its manifest."

REASONS: dict[str, Reason] = {
    "archive-malformed": _job("The archive cannot be read to its end.", "Pack the workload again as an uncompressed tar."),
    "archive-trailing-bytes": _job(
        "Bytes follow the end of the archive.", "Pack the workload again; nothing may follow the tar's end."
    ),
    "archive-too-large": _job("The workload holds more bytes or more files than this node unpacks.", "Ship less."),
    "archive-ratio": _job("A compressed layer grows beyond all measure.", "Rebuild the image without padding."),
    "path-unsafe": _job("A file's path is absolute, climbs, is too long or holds odd characters.", "Use plain relative paths."),
    "path-twice": _job("A path occurs twice, or differs from another by case alone.", "Give each file its own name."),
    "path-outside": _job(
        "The image holds a file outside /workload.", "Build the image from scratch, with all files below /workload."
    ),
    "file-link": _job("The workload holds a symbolic or hard link.", _NO_SPECIAL),
    "file-device": _job("The workload holds a device, a pipe, a socket or a sparse file.", _NO_SPECIAL),
    "file-set-id": _job("A file has a set-user-id, set-group-id or sticky bit, or extended attributes.", "Clear the mode bits."),
    "file-changed": _job("A file changed while it was read.", "Scan a folder at rest."),
    "type-unknown": _job(
        "The workload holds a file of a type that the scan does not know.", "Ship Python, JSON, text and safetensors."
    ),
    "type-pickle": _job("The workload holds a pickle, a torch archive or a joblib file.", "Ship weights as safetensors."),
    "type-archive": _job("The workload holds an archive inside the archive.", "Unpack it first."),
    "json-odd": _job("A JSON file is not strict JSON of at most 1 MiB.", "Repair the file."),
    "text-odd": _job("A text file is too large or not plain UTF-8.", "Leave it out."),
    "safetensors-odd": _job(
        "A safetensors file has gaps, text, unknown types or bytes beyond its tensors.", "Write it with safetensors."
    ),
    "elf-unknown": _job(
        "The workload holds machine code that is in no known wheel.", "Use a wheel from the node's table, or ask the node."
    ),
    "elf-network": _job("Machine code in the workload can open connections.", "Leave it out."),
    "elf-static": _job("Machine code in the workload is linked statically, so its calls cannot be seen.", "Leave it out."),
    "elf-go": _job("The workload holds a Go program.", "Leave it out."),
    "record-unknown": _job("The workload holds a wheel that is not in the node's table.", "Use a version from the node's table."),
    "wheel-file-changed": _job("A file of a known wheel differs from the wheel's RECORD.", "Install the wheel unchanged."),
    "python-unparsable": _job("A Python file does not parse as Python 3.11 in UTF-8.", "Repair the file."),
    "python-import-not-allowed": _job("A Python file imports a module that is not on the allow-list.", "Use the listed modules."),
    "python-network": _job("A Python file reaches for a network module.", "Remove it: data comes through RaphaDataLoader alone."),
    "python-async": _job("A Python file defines a coroutine.", "Write plain functions."),
    "python-loads-code": _job("A Python file loads code while it runs.", "Ship all code in the workload."),
    "python-pickle": _job("A Python file reads or writes pickles.", "Use safetensors and JSON."),
    "python-process": _job("A Python file reaches for processes, signals or the interpreter.", "Remove it."),
    "python-dynamic-code": _job("A Python file runs text as code.", "Write the code out."),
    "python-reaches-internals": _job(
        "A Python file reaches for internals by reflection or underscored names.", "Use public names."
    ),
    "python-star-import": _job("A Python file imports with a star.", "Name what is imported."),
    "python-rebinds-library": _job("A name is a library in one place and something else in another.", "Rename the variable."),
    "python-shadows-library": _job("A module of the workload has the name of a library.", "Rename the module."),
    "nothing-to-judge": _job(
        "The scan found no Python file of the workload's own.", "An empty result is no result: ship the code."
    ),
    "entry-point-missing": _job(
        "The declared entry point is not among the workload's own files.", "Declare a file that is there."
    ),
    "image-malformed": _job("The image layout, its manifest or its configuration is not as OCI 1.1 has it.", _REBUILD),
    "image-blob-differs": _job("A blob of the image has another digest or size than its descriptor says.", _REBUILD),
    "image-fetches-elsewhere": _job("A descriptor points to bytes elsewhere.", _REBUILD),
    "image-other-platform": _job("There is no image for linux/amd64.", _REBUILD),
    "image-ambiguous": _job("The index holds more than one image that could be meant.", _REBUILD),
    "image-other-digest": _job(
        "The image manifest for linux/amd64 is not the one declared.", "Declare the platform manifest's digest."
    ),
    "image-layer-format": _job("A layer is neither tar nor gzipped tar.", _REBUILD),
    "image-unknown-setting": _job("The image's configuration has a setting that this node does not know.", "Remove it."),
    "image-volume": _job("The image declares a volume.", "Remove VOLUME."),
    "image-exposed-port": _job("The image exposes a port.", "Remove EXPOSE."),
    "image-root-user": _job("The image asks to run as root.", "Remove USER, or name an ordinary one."),
    "image-environment": _job("The image sets an environment variable that is not on the allow-list.", "Remove ENV."),
    "image-entry-point": _job(
        "The image starts something else than the declared entry point.", "Set Entrypoint to python and that file."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ElfFact:
    """What an ELF file shows of itself: undefined dynamic symbols and whether it is dynamic or Go."""

    readable: bool
    dynamic: bool
    go: bool
    symbols: frozenset[str]
    strings: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFact:
    """One regular file. `codes`: what the reader of its form found (see `policies.python_source`)."""

    path: str
    size: int
    digest: str
    form: Form
    codes: tuple[str, ...] = ()
    elf: ElfFact | None = None


@dataclass(frozen=True, slots=True)
class Remark:
    """A code and the path that it concerns ("" for the whole)."""

    code: str
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The scan's result. `tree`: digest of the sorted paths and digests; `codes` empty only for a clean, complete scan."""

    files: int
    own: int
    known: int
    size: int
    tree: str
    wheels: str
    remarks: tuple[Remark, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(sorted({remark.code for remark in self.remarks}))

    @property
    def network(self) -> int:
        """How many remarks are of network-capable code."""
        return sum(remark.code in {"python-network", "elf-network", "elf-static", "elf-go"} for remark in self.remarks)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanLimits:
    """What is unpacked and read at most, in bytes and files; `ratio`: unpacked over packed for a compressed layer."""

    max_files: int = 60_000
    max_bytes: int = 4 << 30
    max_file_bytes: int = 2 << 30
    max_path: int = 512
    ratio: int = 64


def elf_codes(fact: ElfFact) -> tuple[str, ...]:
    """Any ELF outside a known wheel refuses; what it can do is said too."""
    codes = {"elf-unknown"}
    if fact.symbols & _NETWORK_SYMBOLS or fact.strings & _NETWORK_SYMBOLS:
        codes.add("elf-network")
    if not fact.readable or not fact.dynamic:
        codes.add("elf-static")
    if fact.go:
        codes.add("elf-go")
    return tuple(sorted(codes))


def judge_files(files: Iterable[FileFact], local: Iterable[str], entry_point: str | None) -> list[Remark]:
    """Every reason to refuse these files."""
    facts = list(files)
    remarks = [Remark(code, fact.path) for fact in facts for code in _file_codes(fact)]
    remarks += [Remark("python-shadows-library", name) for name in sorted(shadows(set(local)))]
    own = {fact.path for fact in facts if fact.form == "python"}
    if not own:
        remarks.append(Remark("nothing-to-judge"))
    if entry_point is not None and entry_point not in own:
        remarks.append(Remark("entry-point-missing"))
    return remarks


def _file_codes(fact: FileFact) -> tuple[str, ...]:
    if fact.form == "known":
        return ()
    if fact.form == "elf":
        return elf_codes(fact.elf) if fact.elf else ("elf-unknown",)
    if fact.form == "unknown":
        return fact.codes or ("type-unknown",)
    return fact.codes


def counted(remarks: Iterable[Remark]) -> Mapping[str, int]:
    """code -> how often."""
    out: dict[str, int] = {}
    for remark in remarks:
        out[remark.code] = out.get(remark.code, 0) + 1
    return dict(sorted(out.items()))
