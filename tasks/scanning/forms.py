"""What one file is, by its first bytes and then by its name, and what the reader of that form finds."""

import io
import struct
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from policies.python_source import MAX_SOURCE, judge_source
from policies.scan import ElfFact, FileFact, Form
from rapha.canonical import MAX_BYTES, parse
from rapha.errors import Refusal
from tasks.scanning.unpack import Written

MAX_TEXT = 256 * 1024
MAX_ELF = 256 << 20
MAX_HEADER = 4 << 20
_PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".pt2", ".sav"})
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"!<arch>")
_ITEM = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def read_form(folder: Path, path: str, written: Written, local: Set[str]) -> FileFact:
    """The fact about a file that no known wheel lists."""
    with (folder / path).open("rb") as stream:
        head = stream.read(512)
    form: Form = "unknown"
    codes: tuple[str, ...] = ()
    elf = None
    suffix = Path(path).suffix.lower()
    if head[:4] == b"\x7fELF":
        form, elf = "elf", _elf(folder / path, written.size)
    elif odd := _refused_by_magic(head, suffix):
        codes = (odd,)
    elif suffix in _READERS:
        form, read = _READERS[suffix]
        codes = read(folder / path, written.size, local)
    return FileFact(path=path, size=written.size, digest=written.digest, form=form, codes=codes, elf=elf)


def _refused_by_magic(head: bytes, suffix: str) -> str:
    if suffix in _PICKLES or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and len(head) > 1):
        return "type-pickle"
    if head.startswith(_ARCHIVES) or head[257:262] == b"ustar":
        return "type-archive"
    return ""


def _python(path: Path, size: int, local: Set[str]) -> tuple[str, ...]:
    return judge_source(path.read_bytes(), local) if size <= MAX_SOURCE else ("python-unparsable",)


def _json(path: Path, size: int, local: Set[str]) -> tuple[str, ...]:
    try:
        if size <= MAX_BYTES:
            parse(path.read_bytes())
            return ()
    except Refusal:
        pass
    return ("json-odd",)


def _text(path: Path, size: int, local: Set[str]) -> tuple[str, ...]:
    try:
        plain = size <= MAX_TEXT and all(c.isprintable() or c in "\n\r\t" for c in path.read_text("utf-8"))
    except UnicodeDecodeError:
        plain = False
    return () if plain else ("text-odd",)


def _weights(path: Path, size: int, local: Set[str]) -> tuple[str, ...]:
    return () if inert_weights(path) >= 0 else ("safetensors-odd",)


def inert_weights(path: Path) -> int:
    """Number of tensors of a safetensors file without gaps, overlaps, free text or a byte beyond its tensors; else -1."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                return -1
            header = parse(stream.read(length), limit=MAX_HEADER)
    except (struct.error, Refusal):
        return -1
    return _tensors(header, size - 8 - length)


def _tensors(header: Any, data: int) -> int:
    if not isinstance(header, dict) or not header:
        return -1
    if header.pop("__metadata__", {"format": "pt"}) != {"format": "pt"}:
        return -1
    spans = [_span(entry) for entry in header.values()]
    if any(span is None for span in spans):
        return -1
    at = 0
    for begin, end in sorted(span for span in spans if span is not None):
        if begin != at:
            return -1
        at = end
    return len(spans) if at == data else -1


def _span(entry: Any) -> tuple[int, int] | None:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"} or entry["dtype"] not in _ITEM:
        return None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _whole(shape) or not _whole(offsets) or len(offsets) != 2:
        return None
    count = _ITEM[entry["dtype"]]
    for n in shape:
        count *= n
    return (offsets[0], offsets[1]) if offsets[1] - offsets[0] == count else None


def _whole(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 16 and all(type(n) is int and n >= 0 for n in value)


def _elf(path: Path, size: int) -> ElfFact:
    if size > MAX_ELF:
        return ElfFact(readable=False, dynamic=False, go=False, symbols=frozenset(), strings=frozenset())
    raw = path.read_bytes()
    strings = frozenset(
        word.decode() for word in (b"getaddrinfo", b"connect", b"sendto", b"socket") if b"\0" + word + b"\0" in raw
    )
    go = b"Go build ID:" in raw or b"\0.gopclntab\0" in raw or b"\xff Go buildinf:" in raw
    try:
        elf = ELFFile(io.BytesIO(raw))
        dynamic = any(segment["p_type"] == "PT_DYNAMIC" for segment in elf.iter_segments())
        table: Any = elf.get_section_by_name(".dynsym")
        symbols = (
            frozenset(s.name for s in table.iter_symbols() if s.name and s["st_shndx"] == "SHN_UNDEF") if table else frozenset()
        )
    except (ELFError, ValueError, KeyError, struct.error, UnicodeError, AttributeError, IndexError):
        return ElfFact(readable=False, dynamic=False, go=go, symbols=frozenset(), strings=strings)
    return ElfFact(readable=table is not None, dynamic=dynamic, go=go, symbols=symbols, strings=strings)


_READERS: dict[str, tuple[Form, Callable[[Path, int, Set[str]], tuple[str, ...]]]] = {
    ".py": ("python", _python),
    ".json": ("json", _json),
    ".txt": ("text", _text),
    ".md": ("text", _text),
    ".safetensors": ("safetensors", _weights),
}
