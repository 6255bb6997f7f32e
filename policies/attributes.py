"""The attributes of an image that may leave the hospital's side in clear: a closed table, numbers and defined terms only.

Each row was looked up in PS3.6 and is absent from PS3.15 Table E.1-1 (Basic Application Level Confidentiality Profile), so no
option of that profile asks for it to be removed, replaced or cleaned. A number has a range, a multiplicity and six significant
digits at most; a code has its list of terms (PS3.3 C.7 and C.8, PS3.16 Annex L): text of eight characters or more, other than a
term of the standard, has no attribute to travel in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Allowed:
    """One allow-listed attribute. Codes: `terms`. Numbers: `low` to `high`, both included. `most` values at most."""

    keyword: str
    vr: str
    terms: frozenset[str] = field(default_factory=frozenset)
    low: float = 0
    high: float = 0
    most: int = 1


def _code(keyword: str, terms: str, *, most: int = 1, vr: str = "CS") -> Allowed:
    return Allowed(keyword, vr, frozenset(terms.split()), most=most)


def _number(keyword: str, vr: str, low: float, high: float, most: int = 1) -> Allowed:
    return Allowed(keyword, vr, low=low, high=high, most=most)


def _parts(terms: str) -> frozenset[str]:
    return frozenset(terms.split())


MODALITIES = _parts(
    "ANN AR ASMT AU BDUS BI BMD CFM CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FA FID GM HC HD IO IOL IVOCT IVUS KER "
    "KO LEN LS M3D MG MR NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT "
    "RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC"
)
BODY_PARTS = _parts(
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE AORTA ARM AXILLA BACK BLADDER BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF CAROTID "
    "CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE "
    "CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FEMUR FINGER FOOT FOREARM GALLBLADDER HAND HEAD HEADNECK "
    "HEART HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUNG MANDIBLE MAXILLA "
    "MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PARATHYROID PAROTID PATELLA "
    "PELVIS PENIS PHARYNX PROSTATE RADIUS RADIUSULNA RECTUM RIB SACRUM SCALP SCAPULA SCLERA SCROTUM SHOULDER SINUS SIJOINT SKULL "
    "SPINE SPLEEN STERNUM STOMACH TESTIS THIGH THUMB THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA "
    "URETER URETHRA UTERUS VAGINA VULVA WHOLEBODY WRIST ZYGOMA"
)
STORAGE = "1.2.840.10008.5.1.4.1.1."
SOP_CLASSES = frozenset(
    STORAGE + tail
    for tail in _parts(
        "1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 2 2.1 2.2 3.1 4 4.1 4.2 4.3 4.4 6.1 6.2 6.3 7 7.1 7.2 7.3 7.4 12.1 12.1.1 12.2 12.2.1 "
        "13.1.1 13.1.2 13.1.3 13.1.4 13.1.5 14.1 14.2 20 30 66.4 77.1.1 77.1.1.1 77.1.2 77.1.2.1 77.1.4 77.1.4.1 77.1.5.1 "
        "77.1.5.2 77.1.5.4 77.1.5.5 77.1.5.6 77.1.5.7 77.1.5.8 77.1.6 77.1.7 128 130 481.1 481.2"
    )
)

ALLOWED: Mapping[str, Allowed] = {
    "00080008": _code(
        "ImageType",
        "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER REFORMATTED VOLUME LABEL OVERVIEW THUMBNAIL NONE RESAMPLED M P R I "
        "M_SE OTHER PROJECTION REPROJECTION MPR MIP MINIP AVERAGE",
        most=8,
    ),
    "00080016": Allowed("SOPClassUID", "UI", SOP_CLASSES),
    "00080060": Allowed("Modality", "CS", MODALITIES),
    "00080064": _code("ConversionType", "DV DI DF WSD SD SI DRW SYN"),
    "00180015": Allowed("BodyPartExamined", "CS", BODY_PARTS),
    "00180020": _code("ScanningSequence", "SE IR GR EP RM", most=4),
    "00180021": _code("SequenceVariant", "SK MTC SS TRSS SP MP OSP TOF NONE", most=4),
    "00180023": _code("MRAcquisitionType", "1D 2D 3D"),
    "00180050": _number("SliceThickness", "DS", 0, 1000),
    "00180060": _number("KVP", "DS", 0, 1000),
    "00180080": _number("RepetitionTime", "DS", 0, 99_999),
    "00180081": _number("EchoTime", "DS", 0, 99_999),
    "00180082": _number("InversionTime", "DS", 0, 99_999),
    "00180087": _number("MagneticFieldStrength", "DS", 0, 30),
    "00180088": _number("SpacingBetweenSlices", "DS", 0, 1000),
    "00180091": _number("EchoTrainLength", "IS", 0, 9999),
    "00181063": _number("FrameTime", "DS", 0, 99_999),
    "00181100": _number("ReconstructionDiameter", "DS", 0, 9999),
    "00181110": _number("DistanceSourceToDetector", "DS", 0, 9999),
    "00181111": _number("DistanceSourceToPatient", "DS", 0, 9999),
    "00181120": _number("GantryDetectorTilt", "DS", -90, 90),
    "00181150": _number("ExposureTime", "IS", 0, 99_999),
    "00181151": _number("XRayTubeCurrent", "IS", 0, 9999),
    "00181152": _number("Exposure", "IS", 0, 9999),
    "00181164": _number("ImagerPixelSpacing", "DS", 0, 100, 2),
    "00181314": _number("FlipAngle", "DS", 0, 360),
    "00182010": _number("NominalScannedPixelSpacing", "DS", 0, 100, 2),
    "00185100": _code("PatientPosition", "HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL"),
    "00185101": _code(
        "ViewPosition", "AP PA LL RL RLD LLD RLO LLO RAO LAO RPO LPO LATERAL LAT OBL CC MLO ML LM LMO XCCL XCCM XCC FB SIO ISO"
    ),
    "00200013": _number("InstanceNumber", "IS", 0, 99_999),
    "00200032": _number("ImagePositionPatient", "DS", -9999, 9999, 3),
    "00200037": _number("ImageOrientationPatient", "DS", -1, 1, 6),
    "00200060": _code("Laterality", "R L B U"),
    "00200062": _code("ImageLaterality", "R L B U"),
    "00201041": _number("SliceLocation", "DS", -9999, 9999),
    "00280002": _number("SamplesPerPixel", "US", 1, 4),
    "00280004": _code(
        "PhotometricInterpretation",
        "MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_ICT YBR_RCT XYB YBR_PARTIAL_420 YBR_PARTIAL_422",
    ),
    "00280006": _number("PlanarConfiguration", "US", 0, 1),
    "00280008": _number("NumberOfFrames", "IS", 1, 99_999),
    "00280010": _number("Rows", "US", 1, 65_535),
    "00280011": _number("Columns", "US", 1, 65_535),
    "00280030": _number("PixelSpacing", "DS", 0, 100, 2),
    "00280034": _number("PixelAspectRatio", "IS", 1, 9999, 2),
    "00280100": _number("BitsAllocated", "US", 1, 64),
    "00280101": _number("BitsStored", "US", 1, 64),
    "00280102": _number("HighBit", "US", 0, 63),
    "00280103": _number("PixelRepresentation", "US", 0, 1),
    "00280301": _code("BurnedInAnnotation", "YES NO"),
    "00281040": _code("PixelIntensityRelationship", "LIN LOG"),
    "00281041": _number("PixelIntensityRelationshipSign", "SS", -1, 1),
    "00281050": _number("WindowCenter", "DS", -99_999, 99_999, 4),
    "00281051": _number("WindowWidth", "DS", 0, 99_999, 4),
    "00281052": _number("RescaleIntercept", "DS", -99_999, 99_999),
    "00281053": _number("RescaleSlope", "DS", -9999, 9999),
    "00281056": _code("VOILUTFunction", "LINEAR LINEAR_EXACT SIGMOID"),
    "00282110": _code("LossyImageCompression", "00 01"),
    "00282112": _number("LossyImageCompressionRatio", "DS", 0, 9999, 4),
    "00480006": _number("TotalPixelMatrixColumns", "UL", 1, 999_999),
    "00480007": _number("TotalPixelMatrixRows", "UL", 1, 999_999),
    "20500020": _code("PresentationLUTShape", "IDENTITY INVERSE"),
}
