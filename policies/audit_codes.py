"""The codes of DICOM audit messages (PS3.15 A.5; PS3.16 CID 400 to 404), and which of them each message must hold."""

from collections.abc import Mapping
from dataclasses import dataclass

DCM, RFC3881 = "DCM", "RFC-3881"
OUTCOMES = (0, 4, 8, 12)  # success, minor, serious, major failure (PS3.15 A.5.1)
# CID 400, by the names that this project uses for them.
EVENTS: Mapping[str, tuple[str, str]] = {
    "application": ("110100", "Application Activity"),
    "audit-log": ("110101", "Audit Log Used"),
    "begin-transfer": ("110102", "Begin Transferring DICOM Instances"),
    "access": ("110103", "DICOM Instances Accessed"),
    "transfer": ("110104", "DICOM Instances Transferred"),
    "delete": ("110105", "DICOM Study Deleted"),
    "export": ("110106", "Export"),
    "import": ("110107", "Import"),
    "network-entry": ("110108", "Network Entry"),
    "order": ("110109", "Order Record"),
    "patient-record": ("110110", "Patient Record"),
    "procedure-record": ("110111", "Procedure Record"),
    "query": ("110112", "Query"),
    "alert": ("110113", "Security Alert"),
    "login": ("110114", "User Authentication"),
}
# CID 401 and 403 (the same codes).
EVENT_TYPES: Mapping[str, str] = {
    "110120": "Application Start",
    "110121": "Application Stop",
    "110122": "Login",
    "110123": "Logout",
    "110124": "Attach",
    "110125": "Detach",
    "110126": "Node Authentication",
    "110127": "Emergency Override Started",
    "110128": "Network Configuration",
    "110129": "Security Configuration",
    "110130": "Hardware Configuration",
    "110131": "Software Configuration",
    "110132": "Use of Restricted Function",
    "110133": "Audit Recording Stopped",
    "110134": "Audit Recording Started",
    "110135": "Object Security Attributes Changed",
    "110136": "Security Roles Changed",
    "110137": "User Security Attributes Changed",
    "110138": "Emergency Override Stopped",
    "110139": "Remote Service Operation Started",
    "110140": "Remote Service Operation Stopped",
    "110141": "Local Service Operation Started",
    "110142": "Local Service Operation Stopped",
    "110143": "Authentication Decision",
    "110144": "Authorization Decision",
    "110145": "Session start",
    "110146": "Session stop",
    "110147": "Access Control Decision",
}
# CID 402.
ROLES: Mapping[str, str] = {
    "110150": "Application",
    "110151": "Application Launcher",
    "110152": "Destination Role ID",
    "110153": "Source Role ID",
    "110154": "Destination Media",
    "110155": "Source Media",
}
APPLICATION, LAUNCHER, DESTINATION, SOURCE = "110150", "110151", "110152", "110153"
DESTINATION_MEDIA, SOURCE_MEDIA = "110154", "110155"
RESTRICTED_FUNCTION = "110132"
STUDY_UID, SOP_CLASS_UID, NODE_ID = "110180", "110181", "110182"  # CID 404
PATIENT_NUMBER, URI = "2", "12"  # PS3.15 A.5.1.2.4
AUDIT_LOG = "Security Audit Log"  # the ParticipantObjectName of PS3.15 A.5.3.2


@dataclass(frozen=True, slots=True)
class Rule:
    """What one message of PS3.15 A.5.3 must hold.

    roles: role -> (least, most) participants in it; participants, studies, patients: (least, most), None for no bound; types:
    the EventTypeCodes of which one must be there, empty for free; objects: whether there may be participant objects at all.
    """

    actions: str
    participants: tuple[int, int | None] = (1, 2)
    roles: tuple[tuple[str, int, int | None], ...] = ()
    studies: tuple[int, int | None] = (0, None)
    patients: tuple[int, int | None] = (0, None)
    types: frozenset[str] = frozenset()
    objects: bool = True


_MOVE = (2, None), ((SOURCE, 1, 1), (DESTINATION, 1, 1))
RULES: Mapping[str, Rule] = {
    "110100": Rule("E", (1, None), ((APPLICATION, 1, 1),), types=frozenset({"110120", "110121"}), objects=False),  # A.5.3.1
    "110101": Rule("R"),  # A.5.3.2
    "110102": Rule("E", *_MOVE, (1, None), (1, 1)),  # A.5.3.3
    "110103": Rule("CRUD", (1, 2), (), (1, None), (1, 1)),  # A.5.3.6
    "110104": Rule("CRU", *_MOVE, (1, None), (1, 1)),  # A.5.3.7
    "110105": Rule("D", (1, 2), (), (1, None), (1, 1)),  # A.5.3.8
    "110106": Rule("R", (1, None), ((SOURCE, 1, 2), (DESTINATION_MEDIA, 1, 1))),  # A.5.3.4
    "110107": Rule("C", (1, None), ((DESTINATION, 1, None), (SOURCE_MEDIA, 1, 1))),  # A.5.3.5
    "110108": Rule("E", (1, 1), types=frozenset({"110124", "110125"}), objects=False),  # A.5.3.9
    "110109": Rule("CRUD", patients=(1, 1)),  # A.5.3.13
    "110110": Rule("CRUD", patients=(1, None)),  # A.5.3.14
    "110111": Rule("CRUD", patients=(1, 1)),  # A.5.3.15
    "110112": Rule("E", *_MOVE),  # A.5.3.10
    "110113": Rule("E", (1, None), types=frozenset(EVENT_TYPES)),  # A.5.3.11
    "110114": Rule("E", types=frozenset({"110122", "110123"}), objects=False),  # A.5.3.12
}
