"""Which images are likely to show text that names a patient: burned into the pixels, where no allow-list reaches.

The attribute Burned In Annotation (0028,0301) says YES or NO (PS3.3 C.7.6.1.1.5); where it says nothing, the kind of image
decides: screens, scanned paper, ultrasound, fluoroscopy and photographs carry text as a habit of their machines.
"""

RISKY_MODALITIES = frozenset(
    (
        "US",
        "SC",
        "OT",
        "XC",
        "ES",
        "GM",
        "IVUS",
        "BDUS",
        "XA",
        "RF",
        "DOC",
        "HC",
        "ECG",
        "EPS",
        "OP",
        "OPT",
        "PX",
        "RG",
        "SR",
        "VA",
        "",
    )
)
RISKY_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture and its multi-frame forms
    "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound
    "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound multi-frame
    "1.2.840.10008.5.1.4.1.1.77.1.1",  # Visible light endoscopy and photographs
    "1.2.840.10008.5.1.4.1.1.77.1.4",
    "1.2.840.10008.5.1.4.1.1.104",  # Encapsulated documents
)
RISKY_TYPES = frozenset(("SECONDARY", "SCREEN SAVE", "SCREENSHOT", "REPORT", "DOSE", "PROT", "OTHER"))


def burned_in_risk(*, annotation: str, modality: str, sop_class: str, image_type: tuple[str, ...], conversion: str) -> bool:
    """Whether an image must have been looked at before it may train anything. Absence is a risk, never a "no"."""
    if annotation == "NO":
        return False
    if annotation:  # YES, and whatever else a machine may have written there
        return True
    by_class = any(sop_class == risky or sop_class.startswith(risky + ".") for risky in RISKY_CLASSES)
    by_type = any(term.upper() in RISKY_TYPES for term in image_type)
    return modality in RISKY_MODALITIES or by_class or by_type or bool(conversion)
