"""What is left of a record's metadata when only what was allowed is kept, and the names that stand for its people.

Pseudonyms are HMAC-SHA256 under a key derived for one project from the hospital's key (HKDF, RFC 5869), all 64 hex digits of it:
the same person has another name in another project, and no dictionary of numbers gives the names without the key. What is not in
`policies.attributes.ALLOWED` is dropped: every sequence, every private attribute, all text, all dates, all other UIDs.
"""

import hmac
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from policies.attributes import ALLOWED, Allowed
from rapha.errors import ConfigurationError, Refusal

Kind = Literal["patient", "study", "accession", "record"]
IDENTIFIERS: Mapping[str, Kind] = {"00100020": "patient", "0020000D": "study", "00080050": "accession", "00080018": "record"}
KEY_BYTES = 32
__all__ = [
    "ALLOWED",
    "IDENTIFIERS",
    "Kind",
    "Minimised",
    "canonical_identifier",
    "minimise",
    "minimise_counted",
    "project_key",
    "pseudonym",
]
_TAG = re.compile(r"[0-9A-F]{8}")
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_DECIMAL = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_WHOLE = frozenset({"IS", "US", "SS", "UL"})


def project_key(hospital_key: bytes, project: str) -> bytes:
    """The 32-byte key of one project. Raises `ConfigurationError` pseudonym-key-… for a key of another length or a weak one."""
    if len(hospital_key) != KEY_BYTES:
        raise ConfigurationError(["pseudonym-key-length"], f"RAPHA_PHI_HMAC_KEY_BASE64 must hold {KEY_BYTES} bytes")
    if len(set(hospital_key)) < 8:
        raise ConfigurationError(["pseudonym-key-weak"], "RAPHA_PHI_HMAC_KEY_BASE64 is a pattern, not a random key")
    if not project:
        raise ConfigurationError(["pseudonym-project-missing"], "a pseudonym belongs to a project")
    info = b"rapha pseudonym v1\n" + project.encode()
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(hospital_key)


def pseudonym(key: bytes, kind: Kind, value: str) -> str:
    """64 hex digits that stand for `value` in the project of `key` (see `project_key`).

    Raises `Refusal` identifier-empty, identifier-malformed, identifier-kind.
    """
    if len(key) != KEY_BYTES:
        raise ConfigurationError(["pseudonym-key-length"], f"a project's key has {KEY_BYTES} bytes")
    message = kind.encode() + b"\n" + canonical_identifier(kind, value).encode()
    return hmac.new(key, message, "sha256").hexdigest()


def canonical_identifier(kind: Kind, value: str) -> str:
    """One form for all the ways in which one identifier is written.

    Numbers of people and requests: full-width forms become plain, blanks of every kind and letter case go, so do leading zeros
    and the issuer that HL7 v2 joins on with `^` (CX, section 2.A.14). The issuer is left out because one patient is often stored
    with and without it; two patients of different issuers with one number then count as one, which can only lower a cohort's
    count, never raise it. UIDs (PS3.5 section 9.1): only the padding goes.
    """
    if kind not in get_args(Kind):
        raise Refusal(["identifier-kind"], "there is no such kind of identifier")
    if kind in ("study", "record"):
        uid = value.strip(" \x00")
        if uid and not (_UID.fullmatch(uid) and len(uid) <= 64):
            raise Refusal(["identifier-malformed"], f"the UID of a {kind} is not a UID")
        return _not_empty(uid, kind)
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
    number = "".join(c for c in plain.split("^", 1)[0] if not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf"))
    return _not_empty(number.lstrip("0") or number[:1], kind)


def _not_empty(text: str, kind: str) -> str:
    if not text:
        raise Refusal(["identifier-empty"], f"a record has no identifier of its {kind}")
    return text


@dataclass(frozen=True, slots=True)
class Minimised:
    """`metadata`: DICOM JSON (PS3.18 F.2) of what may be kept; `dropped`: how many attributes went, by reason."""

    metadata: dict[str, Any]
    dropped: dict[str, int]


def minimise(dataset: Mapping[str, Any], key: bytes) -> dict[str, Any]:
    """The allow-listed attributes of one data set in DICOM JSON, and its four identifiers as pseudonyms (64 hex digits, VR LO).

    An identifier that is absent or empty is absent from the answer. Raises `Refusal` dicom-json-malformed.
    """
    return minimise_counted(dataset, key).metadata


def minimise_counted(dataset: Mapping[str, Any], key: bytes) -> Minimised:
    """`minimise`, with the count of what was dropped: not-allowed, private, sequence, identifier, term, range, malformed."""
    kept: dict[str, Any] = {}
    dropped: Counter[str] = Counter()
    for tag, attribute in _attributes(dataset).items():
        if tag in IDENTIFIERS:
            value, reason = _identifier(IDENTIFIERS[tag], attribute, key)
        elif tag in ALLOWED:
            value, reason = _allowed(ALLOWED[tag], attribute)
        else:
            value, reason = None, _why_not(tag, attribute)
        if value is None:
            dropped[reason] += 1
        else:
            kept[tag] = value
    return Minimised(dict(sorted(kept.items())), dict(sorted(dropped.items())))


def _attributes(dataset: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    if not isinstance(dataset, Mapping):
        raise _malformed()
    attributes: dict[str, Mapping[str, Any]] = {}
    for name, attribute in dataset.items():
        tag = str(name).upper()
        if not _TAG.fullmatch(tag) or tag in attributes or not isinstance(attribute, Mapping):
            raise _malformed()
        attributes[tag] = attribute
    return attributes


def _malformed() -> Refusal:
    return Refusal(["dicom-json-malformed"], "not a data set in DICOM JSON (PS3.18 section F.2)")


def _why_not(tag: str, attribute: Mapping[str, Any]) -> str:
    if int(tag[:4], 16) % 2:
        return "private"
    return "sequence" if attribute.get("vr") == "SQ" else "not-allowed"


def _identifier(kind: Kind, attribute: Mapping[str, Any], key: bytes) -> tuple[dict[str, Any] | None, str]:
    values = attribute.get("Value")
    if not isinstance(values, list) or len(values) != 1 or not isinstance(values[0], str):
        return None, "identifier"
    try:
        return {"vr": "LO", "Value": [pseudonym(key, kind, values[0])]}, ""
    except Refusal:
        return None, "identifier"


def _allowed(rule: Allowed, attribute: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
    values = attribute.get("Value")
    if attribute.get("vr") != rule.vr or not isinstance(values, list) or not 0 < len(values) <= rule.most:
        return None, "malformed"
    if rule.terms:
        if not all(isinstance(value, str) and value in rule.terms for value in values):
            return None, "term"
        return {"vr": rule.vr, "Value": list(values)}, ""
    numbers = [_number(value, rule.vr) for value in values]
    if not all(number is not None and rule.low <= number <= rule.high for number in numbers):
        return None, "range"
    return {"vr": rule.vr, "Value": numbers}, ""


def _number(value: object, vr: str) -> int | float | None:
    """A JSON number, or the decimal string that PS3.18 F.2.3 admits for DS and IS; at most six significant digits."""
    if isinstance(value, str):
        if len(value) > 16 or not _DECIMAL.fullmatch(value.strip(" ")):
            return None
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if abs(value) > 1e6 or not math.isfinite(value):
        return None
    if vr in _WHOLE:
        return int(value) if value == int(value) else None
    short = float(f"{value:.6g}")
    return int(short) if short == int(short) else short
