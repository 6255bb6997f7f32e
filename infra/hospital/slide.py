"""A whole slide as DICOM has it (PS3.3 A.32.8): an instance a level, tiles in JPEG, and the label, which shows who it is of."""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage

TILE, FACTORS, SPACING = 256, (1, 4, 16), 0.001  # pixels; a level's shrinkage; mm a pixel at the finest level
_DIMENSION = "2.25.329800735698586629295641978511506172917"


def slide_instances(shared: Dataset, picture: NDArray[np.uint8], uid: Callable[[str], str]) -> list[Dataset]:
    """The levels, finest first, then the label. shared: patient, study, series and equipment; uid: a name -> a UID."""
    levels = [_level(shared, _shrunk(picture, factor), factor, number, uid) for number, factor in enumerate(FACTORS, start=1)]
    return [*levels, _label(shared, len(FACTORS) + 1, uid)]


def _shrunk(picture: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    size = (picture.shape[1] // factor, picture.shape[0] // factor)
    return picture if factor == 1 else np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _level(shared: Dataset, picture: NDArray[np.uint8], factor: int, number: int, uid: Callable[[str], str]) -> Dataset:
    rows, columns = picture.shape[:2]
    kind = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"] if factor == 1 else ["DERIVED", "PRIMARY", "VOLUME", "RESAMPLED"]
    dataset = _image(shared, kind, number, uid)
    padded = np.pad(picture, ((0, -rows % TILE), (0, -columns % TILE), (0, 0)), constant_values=243)
    tiles = [padded[y : y + TILE, x : x + TILE] for y in range(0, rows, TILE) for x in range(0, columns, TILE)]
    _matrix(dataset, rows, columns, SPACING * factor, TILE)
    _pixels(dataset, tiles)
    dataset.PyramidUID = uid("pyramid")
    return dataset


def _label(shared: Dataset, number: int, uid: Callable[[str], str]) -> Dataset:
    """The label's photograph: name and number of the patient in its pixels, as labels have them."""
    paper = Image.new("RGB", (TILE, TILE), "white")
    ImageDraw.Draw(paper).text((8, 100), f"{shared.PatientID}\n{shared.AccessionNumber}", fill="black")
    dataset = _image(shared, ["ORIGINAL", "PRIMARY", "LABEL", "NONE"], number, uid)
    _matrix(dataset, TILE, TILE, 0.1, TILE)
    _pixels(dataset, [np.asarray(paper)])
    dataset.BurnedInAnnotation, dataset.SpecimenLabelInImage = "YES", "YES"
    dataset.LabelText, dataset.BarcodeValue = shared.AccessionNumber, shared.AccessionNumber
    return dataset


def _image(shared: Dataset, kind: list[str], number: int, uid: Callable[[str], str]) -> Dataset:
    """Everything but the pixels: modules in the order of PS3.3 table A.32.8-1."""
    dataset = Dataset(dict(shared.items()))
    dataset.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    dataset.SOPInstanceUID, dataset.InstanceNumber = uid(f"instance {number}"), str(number)
    dataset.Modality, dataset.ImageType = "SM", kind
    dataset.PositionReferenceIndicator = "SLIDE_CORNER"
    dataset.AcquisitionDateTime = f"{shared.StudyDate}101112"
    dataset.AcquisitionContextSequence = Items([])
    dataset.ContainerIdentifier = shared.AccessionNumber
    dataset.IssuerOfTheContainerIdentifierSequence = Items([])
    dataset.ContainerTypeCodeSequence = Items([code("433466003", "SCT", "Microscope slide")])
    dataset.SpecimenDescriptionSequence = Items([_specimen(shared, uid)])
    dataset.VolumetricProperties, dataset.BurnedInAnnotation, dataset.SpecimenLabelInImage = "VOLUME", "NO", "NO"
    dataset.FocusMethod, dataset.ExtendedDepthOfField = "AUTO", "NO"
    dataset.DimensionOrganizationType = "TILED_FULL"
    dataset.DimensionOrganizationSequence = Items([Dataset()])
    dataset.DimensionOrganizationSequence[0].DimensionOrganizationUID = uid("dimensions")
    dataset.OpticalPathSequence = Items([_light()])
    dataset.NumberOfOpticalPaths = dataset.TotalPixelMatrixFocalPlanes = 1
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    dataset.file_meta = meta
    return dataset


def _matrix(dataset: Dataset, rows: int, columns: int, spacing: float, tile: int) -> None:
    dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns = rows, columns
    dataset.ImagedVolumeWidth, dataset.ImagedVolumeHeight, dataset.ImagedVolumeDepth = columns * spacing, rows * spacing, 0.001
    dataset.ImageOrientationSlide = ["0", "-1", "0", "-1", "0", "0"]
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "20", "40"
    dataset.TotalPixelMatrixOriginSequence = Items([origin])
    shared = Dataset()
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [f"{spacing:g}", f"{spacing:g}"], "0.001"
    shared.PixelMeasuresSequence = Items([measures])
    frame_type, path = Dataset(), Dataset()
    frame_type.FrameType, path.OpticalPathIdentifier = dataset.ImageType, "1"
    shared.WholeSlideMicroscopyImageFrameTypeSequence = Items([frame_type])
    shared.OpticalPathIdentificationSequence = Items([path])
    dataset.SharedFunctionalGroupsSequence = Items([shared])
    dataset.Rows = dataset.Columns = tile


def _pixels(dataset: Dataset, tiles: list[NDArray[np.uint8]]) -> None:
    frames = [_jpeg(tile) for tile in tiles]
    raw, packed = sum(tile.nbytes for tile in tiles), sum(map(len, frames))
    dataset.NumberOfFrames = str(len(tiles))
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", f"{raw / packed:.4g}"
    dataset.LossyImageCompressionMethod = "ISO_10918_1"
    dataset.add_new(0x7FE00010, "OB", encapsulate(frames))
    dataset["PixelData"].is_undefined_length = True


def _jpeg(tile: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "JPEG", quality=90, subsampling="4:2:2")
    return stream.getvalue()


def _specimen(shared: Dataset, uid: Callable[[str], str]) -> Dataset:
    specimen = Dataset()
    specimen.SpecimenIdentifier, specimen.SpecimenUID = shared.AccessionNumber, uid("specimen")
    specimen.IssuerOfTheSpecimenIdentifierSequence = Items([])
    specimen.SpecimenPreparationSequence = Items([])
    return specimen


def _light() -> Dataset:
    path = Dataset()
    path.OpticalPathIdentifier = "1"
    path.IlluminationTypeCodeSequence = Items([code("111744", "DCM", "Brightfield illumination")])
    path.IlluminationColorCodeSequence = Items([code("414298005", "SCT", "Full Spectrum")])
    path.ICCProfile = _profile()
    return path


def _profile() -> bytes:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # Bytes 24 to 35 of a profile are the time at which it was made (ICC.1 table 17): none, so that a seed gives one file.
    return profile[:24] + bytes(12) + profile[36:]


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One coded concept (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item
