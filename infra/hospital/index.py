"""What the archive holds, and how it answers a query (PS3.18 section 10.6.1.2, matching of PS3.4 C.2.2.2)."""

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset

STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"
BULK = 1024
_TAG = re.compile(r"[0-9A-Fa-f]{8}")


def _tags(text: str) -> list[str]:
    return text.split()


_STUDY_LEVEL = _tags(
    "00080005 00080020 00080030 00080050 00080061 00080090 00080201 00100010 00100020 00100030 00100040 0020000D 00200010"
)
_SERIES_LEVEL = _tags("00080060 0008103E 0020000E 00200011 00400244")
_INSTANCE_LEVEL = _tags("00080016 00080018 00200013 00280008 00280010 00280011 00280100")
LEVELS = {
    "studies": (STUDY, _STUDY_LEVEL),
    "series": (SERIES, [*_STUDY_LEVEL, *_SERIES_LEVEL]),
    "instances": (INSTANCE, [*_STUDY_LEVEL, *_SERIES_LEVEL, *_INSTANCE_LEVEL]),
}
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """One instance: where it is, its transfer syntax, its attributes in DICOM JSON, bulk data left out."""

    path: Path
    transfer_syntax: str
    attributes: Json

    def uid(self, tag: str) -> str:
        return str(self.attributes[tag]["Value"][0])


class Index:
    """The instances of some folders, in memory. Safe between threads."""

    def __init__(self, *folders: Path) -> None:
        self._lock = threading.Lock()
        self._stored: dict[str, Stored] = {}
        for path in sorted({path for folder in folders for path in folder.glob("*.dcm")}):
            self.add(path, dcmread(path))

    def add(self, path: Path, dataset: Dataset) -> None:
        attributes = dataset.to_json_dict(bulk_data_threshold=BULK, bulk_data_element_handler=lambda _: "")
        stored = Stored(path, str(dataset.file_meta.TransferSyntaxUID), attributes)
        with self._lock:
            self._stored[stored.uid(INSTANCE)] = stored

    def __contains__(self, uid: str) -> bool:
        return uid in self._stored

    def path(self, uid: str) -> Path:
        """Where an instance that is in here lies."""
        return self._stored[uid].path

    def under(self, study: str, series: str | None = None, instance: str | None = None) -> list[Stored]:
        """The instances of a study, a series or one instance, in the order of their UIDs."""
        wanted = [(STUDY, study), (SERIES, series), (INSTANCE, instance)]
        return [s for s in self._all() if all(uid is None or s.uid(tag) == uid for tag, uid in wanted)]

    def find(self, level: str, keys: Mapping[str, str], fields: Iterable[str]) -> Iterator[Json]:
        """Answers at a level, in the order of their UIDs: one for each study, series or instance with a matching instance."""
        unique, returned = LEVELS[level]
        seen: set[str] = set()
        for stored in sorted(self._all(), key=lambda s: s.uid(unique)):
            if stored.uid(unique) in seen or not self._matches(stored, keys):
                continue
            seen.add(stored.uid(unique))
            yield self._answer(stored, [*returned, *keys, *fields], level)

    def _all(self) -> list[Stored]:
        with self._lock:
            return [self._stored[uid] for uid in sorted(self._stored)]

    def _matches(self, stored: Stored, keys: Mapping[str, str]) -> bool:
        return all(matches(tag, wanted, self._values(stored, tag)) for tag, wanted in keys.items())

    def _values(self, stored: Stored, tag: str) -> list[Any]:
        if tag == "00080061":  # Modalities in Study is computed, not stored (PS3.4 C.3.4)
            study = stored.uid(STUDY)
            return sorted({str(s.attributes["00080060"]["Value"][0]) for s in self._all() if s.uid(STUDY) == study})
        return list(stored.attributes.get(tag, {}).get("Value", []))

    def _answer(self, stored: Stored, tags: Iterable[str], level: str) -> Json:
        chosen = set(stored.attributes) if "all" in tags else set(tags)
        answer = {
            tag: stored.attributes[tag] for tag in sorted(chosen) if tag in stored.attributes and not tag.startswith("7FE0")
        }
        if level == "studies" or "00080061" in chosen:
            answer["00080061"] = {"vr": "CS", "Value": self._values(stored, "00080061")}
        return answer


def tag_of(name: str) -> str | None:
    """`GGGGEEEE` of a keyword or a tag in hexadecimal; None for what is neither."""
    if _TAG.fullmatch(name):
        return name.upper()
    tag = tag_for_keyword(name)
    return None if tag is None else f"{tag:08X}"


def matches(tag: str, wanted: str, values: list[Any]) -> bool:
    """One key against an attribute's values: universal, range, list, wildcard or single value matching."""
    if wanted in ("", "*"):
        return True
    vr = dictionary_VR(tag) if keyword_for_tag(tag) else "UN"
    texts = [text for value in values for text in _texts(value)]
    if vr in ("DA", "TM", "DT") and "-" in wanted:
        first, _, last = wanted.partition("-")
        return any((not first or text >= first) and (not last or text[: len(last)] <= last) for text in texts)
    if vr == "PN":
        return any(fnmatchcase(text.casefold(), _pattern(wanted.casefold())) for text in texts)
    return any(fnmatchcase(text, _pattern(one)) for one in re.split(r"[,\\]", wanted) for text in texts)


def _pattern(wanted: str) -> str:
    return wanted.strip(" ").replace("[", "[[]")


def _texts(value: Any) -> list[str]:
    """The texts of a value; a person's name has one for each of its groups (PS3.5 section 6.2)."""
    if isinstance(value, dict):
        return [str(group) for group in value.values()]
    return [str(value).strip(" ")]
