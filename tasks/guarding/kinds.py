"""What a run of bytes is, by its first bytes, its marks inside, or its name: so that a refusal can say it.

Nothing passes because it is not recognised here; only a declared, fully parsed file passes. Marks that are searched for
anywhere are eight bytes or longer, since shorter ones occur by chance in a large file of weights.
"""

import re

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "zip"),
    (b"PK\x05\x06", "zip"),
    (b"\x1f\x8b", "compressed"),
    (b"BZh", "compressed"),
    (b"\xfd7zXZ\x00", "compressed"),
    (b"\x28\xb5\x2f\xfd", "compressed"),
    (b"7z\xbc\xaf\x27\x1c", "compressed"),
    (b"Rar!\x1a\x07", "compressed"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x00\x00\x00\x0cjP  ", "image"),
    (b"\xff\x4f\xff\x51", "image"),
    (b"GIF8", "image"),
    (b"II*\x00", "image"),
    (b"MM\x00*", "image"),
    (b"BM", "image"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"\x93NUMPY", "numpy"),
    (b"PAR1", "database"),
    (b"ARROW1", "database"),
    (b"Obj\x01", "database"),
    (b"SQLite format 3\x00", "database"),
    (b"GGUF", "gguf"),
    (b"%PDF", "pdf"),
    (b"\x7fELF", "executable"),
    (b"#!", "executable"),
    (b"MZ", "executable"),
    (b"##fileformat=VCF", "vcf"),
    (b"(dp", "pickle"),
    (b"(lp", "pickle"),
    (b"ctorch", "pickle"),
    (b"cnumpy", "pickle"),
    (b"cbuiltins", "pickle"),
    (b"c__builtin__", "pickle"),
    (b"ccopy_reg", "pickle"),
)
_ANYWHERE: tuple[tuple[bytes, str], ...] = (
    (b"\x00" * 16 + b"DICM", "dicom"),
    (b"DICM\x02\x00\x00\x00UL", "dicom"),
    (b'"resourceType"', "fhir"),
    (b"<HealthData", "apple-health"),
    (b"HKQuantityTypeIdentifier", "apple-health"),
    (b"##fileformat=VCF", "vcf"),
    (b"#CHROM\tPOS\tID", "vcf"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\x89HDF\r\n\x1a\n", "hdf5"),
    (b"SQLite format 3\x00", "database"),
)
_SUFFIXES = {
    "dicom": "dcm dicom ima",
    "fhir": "fhir",
    "vcf": "vcf bcf",
    "csv": "csv tsv tab",
    "ndjson": "ndjson jsonl",
    "pickle": "pkl pickle pt pth ckpt joblib dill",
    "zip": "zip whl jar npz xlsx docx keras",
    "tar": "tar tgz",
    "compressed": "gz bz2 xz zst 7z rar lz4",
    "png": "png",
    "jpeg": "jpg jpeg",
    "image": "gif bmp tif tiff jp2 webp",
    "onnx": "onnx",
    "hdf5": "h5 hdf5 hdf",
    "numpy": "npy",
    "database": "db sqlite sqlite3 parquet arrow feather avro",
    "gguf": "gguf ggml",
    "markup": "html htm svg xml",
    "pdf": "pdf",
    "nifti": "nii",
}
_KIND_OF_SUFFIX = {suffix: kind for kind, suffixes in _SUFFIXES.items() for suffix in suffixes.split()}


def recognise_name(name: str) -> set[str]:
    """The kinds that the file's suffixes claim."""
    return {_KIND_OF_SUFFIX[part] for part in name.lower().split(".")[1:] if part in _KIND_OF_SUFFIX}


def recognise(content: bytes) -> set[str]:
    """The kinds that `content` shows; empty for what is only safetensors or a JSON object of numbers."""
    kinds = {kind for mark, kind in _ANYWHERE if mark in content}
    if content[128:132] == b"DICM":
        kinds.add("dicom")
    if content[-22:-18] == b"PK\x05\x06":
        kinds.add("zip")
    return kinds if _opens_as_safetensors(content) else kinds | _kinds_by_start(content) | _text_kinds(content)


def _opens_as_safetensors(content: bytes) -> bool:
    """A header length that fits and a brace: its first bytes are a number, and a number can look like any short mark."""
    return content[8:9] == b"{" and int.from_bytes(content[:8], "little") <= len(content) - 8


def _kinds_by_start(content: bytes) -> set[str]:
    kinds = {kind for start, kind in _STARTS if content.startswith(start)}
    if _is_bare_dicom(content):
        kinds.add("dicom")
    if content[257:262] == b"ustar":
        kinds.add("tar")
    if content[344:348] in (b"n+1\x00", b"ni1\x00"):
        kinds.add("nifti")
    if _is_pickle(content):
        kinds.add("pickle")
    if content[:1] == b"\x08" and content[2:3] == b"\x12" and re.search(rb"pytorch|onnx|tf2onnx", content[:4096]):
        kinds.add("onnx")
    return kinds


def _is_bare_dicom(content: bytes) -> bool:
    """A data set without preamble: group 0002 or 0008, then a value representation or a short length (PS3.5 section 7.1)."""
    group, element, form = content[:2], content[2:4], content[4:8]
    if group not in (b"\x02\x00", b"\x08\x00") or element[1:2] != b"\x00" or len(form) < 4:
        return False
    return form[:2] in (b"UL", b"UI", b"CS", b"DA", b"SH", b"LO", b"OB") or (form[2:] == b"\x00\x00" and 0 < form[0] <= 64)


def _is_pickle(content: bytes) -> bool:
    """Protocols 2 to 5 open with PROTO and end with STOP."""
    return len(content) > 3 and content[0] == 0x80 and 2 <= content[1] <= 5 and content.rstrip(b"\x00")[-1:] == b"."


def _text_kinds(content: bytes) -> set[str]:
    text = _as_text(content[: 1 << 16])
    if text is None:
        return set()
    head = text.lstrip("\ufeff \t\r\n")
    if re.match(r"<(\?xml|!doctype|html|svg|[a-z]+[ >])", head, re.IGNORECASE):
        return {"markup"} | ({"apple-health"} if "HealthData" in head else set())
    kinds = {"fhir"} if '"resourceType"' in text else set()
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.lstrip("\ufeff ").startswith("{") for line in lines[:2]) and lines[0].rstrip().endswith("}"):
        kinds.add("ndjson")
    if head[:1] not in ("{", "[") and _is_table(lines):
        kinds.add("csv")
    if "##fileformat=VCF" in text:
        kinds.add("vcf")
    return kinds


def _as_text(content: bytes) -> str | None:
    for encoding in ("utf-16",) if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8", "utf-16-le", "utf-16-be"):
        try:
            text = content[: len(content) & ~1 if encoding != "utf-8" else None].decode(encoding)
        except UnicodeDecodeError:
            continue
        if text and sum((c.isprintable() and c.isascii()) or c in "\r\n\t\ufeff" for c in text) > 0.9 * len(text):
            return text
    return None


def _is_table(lines: list[str]) -> bool:
    """Two lines or more with the same number of the same separator."""
    rows = lines[:-1] if len(lines) > 32 else lines
    return len(rows) > 1 and any(len({row.count(mark) for row in rows}) == 1 and mark in rows[0] for mark in ",;\t|")
