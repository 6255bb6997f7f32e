"""The schema of DICOM audit messages (PS3.15 A.5.1.1, RELAX NG compact) retyped as tables, and XML as it is read and written.

XML is read without a document type: no entities but the five of XML, no name spaces, no processing instructions. What is written
is escaped so that reading gives the same characters back; what XML 1.0 cannot hold is refused.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from xml.parsers import expat

from rapha.errors import Refusal

MAX_XML = 1 << 20
MAX_NODES = 1 << 16
MAX_DEPTH = 16
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0 section 2.2
_DATE_TIME = re.compile(r"-?\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)?")
# Whatever some reader takes for the end of a line is written as a reference: a message is one line, in a name too.
_TEXT = {"&": "&amp;", "<": "&lt;", ">": "&gt;", **{end: f"&#{ord(end)};" for end in "\r\n\x85\u2028\u2029"}}
_VALUE = {**_TEXT, '"': "&quot;", "\t": "&#9;"}
Check = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Node:
    """An element: its name, attributes, elements in order, and the text directly in it."""

    name: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    children: tuple["Node", ...] = ()
    text: str = ""


@dataclass(frozen=True, slots=True)
class Element:
    """What may be in an element: attribute -> (must it be there, its type); (name -> element, least, most) in order; its text."""

    attributes: Mapping[str, tuple[bool, Check]] = field(default_factory=dict)
    children: tuple[tuple[Mapping[str, "Element"], int, int | None], ...] = ()
    text: Check | None = None


def written(node: Node) -> bytes:
    """The document, in UTF-8, on one line. `Refusal` audit-text for characters that XML has not."""
    return b'<?xml version="1.0" encoding="UTF-8"?>' + _written(node).encode()


def representable(text: str) -> bool:
    return _NOT_XML.search(text) is None


def replaced(text: str) -> str:
    """The text with U+FFFD for each character that XML has not."""
    return _NOT_XML.sub("\ufffd", text)


def read(raw: bytes) -> Node:
    """The document's root. `Refusal` audit-xml: too large, not well-formed, or with a document type."""
    if len(raw) > MAX_XML:
        raise Refusal(["audit-xml"], "an audit message is larger than any")
    reader = _Reader()
    try:
        reader.parser.Parse(raw, True)
    except (expat.ExpatError, ValueError, LookupError):
        raise Refusal(["audit-xml"], "an audit message is not well-formed XML") from None
    return reader.root()


def problems(node: Node, element: Element | None = None, path: str = "AuditMessage") -> list[str]:
    """Where the tree differs from the schema: paths of names, never a value; empty for a valid message."""
    element = element or MESSAGE
    found = [] if path != "AuditMessage" or node.name == "AuditMessage" else ["the root is not AuditMessage"]
    found += [f"{path}/@{name} is not in the schema" for name in node.attributes if name not in element.attributes]
    for name, (required, check) in element.attributes.items():
        value = node.attributes.get(name)
        if value is None:
            found += [f"{path}/@{name} is missing"] if required else []
        elif not check(value):
            found.append(f"{path}/@{name} is not of its type")
    if element.text is None and node.text.strip(" \t\r\n"):
        found.append(f"{path} holds text")
    elif element.text is not None and not element.text(node.text):
        found.append(f"{path} is not of its type")
    return found + _children_problems(node, element, path)


def _children_problems(node: Node, element: Element, path: str) -> list[str]:
    found, rest = [], list(node.children)
    for choices, least, most in element.children:
        count = 0
        while rest and rest[0].name in choices and (most is None or count < most):
            child = rest.pop(0)
            found += problems(child, choices[child.name], f"{path}/{child.name}")
            count += 1
        if count < least:
            found.append(f"{path}/{'|'.join(choices)} is missing")
    return found + [f"{path}/{child.name} has no place here" for child in rest[:1]]


def _written(node: Node) -> str:
    attributes = "".join(f' {name}="{_escaped(value, _VALUE)}"' for name, value in node.attributes.items())
    inner = _escaped(node.text, _TEXT) + "".join(_written(child) for child in node.children)
    return f"<{node.name}{attributes}>{inner}</{node.name}>" if inner else f"<{node.name}{attributes}/>"


def _escaped(text: str, table: Mapping[str, str]) -> str:
    if not representable(text):
        raise Refusal(["audit-text"], "a text holds a character that XML has not")
    return "".join(table.get(c, c) for c in text)


class _Reader:
    """Builds the tree from expat's calls; a document type ends it before any entity is declared."""

    def __init__(self) -> None:
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.StartDoctypeDeclHandler = self._refused
        self.parser.ProcessingInstructionHandler = self._refused
        self._open: list[tuple[str, dict[str, str], list[Node], list[str]]] = [("", {}, [], [])]
        self._nodes = 0

    def root(self) -> Node:
        return self._open[0][2][0]

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES or len(self._open) > MAX_DEPTH:
            raise Refusal(["audit-xml"], "an audit message has more or deeper elements than any")
        self._open.append((name, attributes, [], []))

    def _end(self, _: str) -> None:
        name, attributes, children, text = self._open.pop()
        self._open[-1][2].append(Node(name, attributes, tuple(children), "".join(text)))

    def _characters(self, text: str) -> None:
        self._open[-1][3].append(text)

    def _refused(self, *_: object) -> None:
        raise Refusal(["audit-xml"], "an audit message has no document type and no processing instruction")


def _one_of(*values: str) -> Check:
    return lambda text: text in values


def _token(text: str) -> bool:
    return True  # XML Schema 2: every text is the lexical form of some token


def _date_time(text: str) -> bool:
    if not _DATE_TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(re.sub(r"\.\d+", "", text))
    except ValueError:
        return False
    return True


def _base64(text: str) -> bool:
    try:
        base64.b64decode(re.sub(r"[ \t\r\n]", "", text), validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _integer(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]+", text.strip(" \t\r\n")) is not None


def _numbers(last: int) -> Check:
    return _one_of(*(str(n) for n in range(1, last + 1)))


_boolean = _one_of("true", "false", "1", "0")
_CODE = {
    "csd-code": (True, _token),
    "codeSystemName": (True, _token),
    "displayName": (False, _token),
    "originalText": (True, _token),
}
_coded = Element(_CODE)
_UID = Element({"UID": (True, _token)})
_DESCRIPTION = Element(
    children=(
        ({"MPPS": _UID}, 0, None),
        ({"Accession": Element({"Number": (True, _token)})}, 0, None),
        (
            {
                "SOPClass": Element(
                    {"UID": (False, _token), "NumberOfInstances": (True, _integer)}, children=(({"Instance": _UID}, 0, None),)
                )
            },
            0,
            None,
        ),
        ({"ParticipantObjectContainsStudy": Element(children=(({"StudyIDs": _UID}, 0, None),))}, 0, 1),
        ({"Encrypted": Element(text=_boolean)}, 0, 1),
        ({"Anonymized": Element(text=_boolean)}, 0, 1),
    )
)
_EVENT = Element(
    {
        "EventActionCode": (False, _one_of("C", "R", "U", "D", "E")),
        "EventDateTime": (True, _date_time),
        "EventOutcomeIndicator": (True, _one_of("0", "4", "8", "12")),
    },
    (
        ({"EventID": _coded}, 1, 1),
        ({"EventTypeCode": _coded}, 0, None),
        ({"EventOutcomeDescription": Element(text=_token)}, 0, 1),
    ),
)
_PARTICIPANT = Element(
    {
        "UserID": (True, _token),
        "AlternativeUserID": (False, _token),
        "UserName": (False, _token),
        "UserIsRequestor": (True, _boolean),
        "NetworkAccessPointID": (False, _token),
        "NetworkAccessPointTypeCode": (False, _numbers(5)),
    },
    (
        ({"RoleIDCode": _coded}, 0, None),
        ({"MediaIdentifier": Element(children=(({"MediaType": _coded}, 1, 1),))}, 0, 1),
    ),
)
_SOURCE = Element(
    {"AuditEnterpriseSiteID": (False, _token), "AuditSourceID": (True, _token)},
    (
        (
            {
                "AuditSourceTypeCode": Element(
                    {**{name: (False, check) for name, (_, check) in _CODE.items()}, "csd-code": (True, _token)}
                )
            },
            0,
            None,
        ),
    ),
)
_OBJECT = Element(
    {
        "ParticipantObjectID": (True, _token),
        "ParticipantObjectTypeCode": (False, _numbers(4)),
        "ParticipantObjectTypeCodeRole": (False, _numbers(26)),
        "ParticipantObjectDataLifeCycle": (False, _numbers(15)),
        "ParticipantObjectSensitivity": (False, _token),
    },
    (
        ({"ParticipantObjectIDTypeCode": _coded}, 1, 1),
        ({"ParticipantObjectName": Element(text=_token), "ParticipantObjectQuery": Element(text=_base64)}, 1, 1),
        ({"ParticipantObjectDetail": Element({"type": (True, _token), "value": (True, _base64)})}, 0, None),
        ({"ParticipantObjectDescription": _DESCRIPTION}, 0, None),
    ),
)
MESSAGE = Element(
    children=(
        ({"EventIdentification": _EVENT}, 1, 1),
        ({"ActiveParticipant": _PARTICIPANT}, 1, None),
        ({"AuditSourceIdentification": _SOURCE}, 1, 1),
        ({"ParticipantObjectIdentification": _OBJECT}, 0, None),
    )
)
