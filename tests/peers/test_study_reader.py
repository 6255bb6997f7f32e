"""The study reader as a process, on really sealed files: what it says, what it hands over, what it never does."""

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels.utils import pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian
from wsidicom import WsiDicom

from blocks.instances import SealedWriter
from blocks.study import SealedFile
from infra.hospital.reading_cohort import identifiers, make_study
from policies.applicability import SLIDE
from rapha.errors import PeerError, RaphaError, Refusal
from tests.fixtures.studies import facts
from tests.fixtures.study_running import Hospital, files_of, loading, make_hospital

COMPRESSED = (
    "JPEG2000.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "JPEG-LL.dcm",
    "JPGExtended.dcm",
    "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_rle_2frame.dcm",
    "MR_small_RLE.dcm",
    "emri_small_jpeg_2k_lossless.dcm",
    "emri_small_jpeg_ls_lossless.dcm",
    "emri_small_RLE.dcm",
    "color3d_jpeg_baseline.dcm",
    "examples_jpeg2k.dcm",
)
NATIVE = ("MR_small.dcm", "MR_small_bigendian.dcm", "CT_small.dcm", "emri_small.dcm", "SC_rgb_16bit.dcm", "MR_small_implicit.dcm")


@pytest.fixture(scope="module")
def hospital() -> Iterator[Hospital]:
    made = make_hospital(sandboxes=False)
    yield made
    made.close()


def packaged(name: str) -> bytes:
    path = get_testdata_file(name, download=False)
    assert path is not None, f"{name} is not in pydicom's package"
    return Path(str(path)).read_bytes()


def refused(files: list[SealedFile], hospital: Hospital) -> tuple[str, ...]:
    with hospital.study() as reader, pytest.raises(Refusal) as error:
        reader.open(files)
    return error.value.codes


def test_a_study_is_told_by_facts_without_a_word_of_its_patient(hospital: Hospital) -> None:
    study = make_study("ct", 1, 1)
    with hospital.opened(files_of(study)) as (_, instances):
        assert [one.sop_uid for one in instances] == [str(one.SOPInstanceUID) for one in study]
        first = instances[0].facts
        assert (first.modality, first.frames, first.rows, first.columns) == ("CT", 1, 256, 256)
        assert all(one.facts.same and not one.facts.fault for one in instances)
        said = repr([one.facts for one in instances])
    assert not [needle for needle in identifiers(study) if needle in said]


def test_another_content_than_arrived_is_seen(hospital: Hospital) -> None:
    files = hospital.seal(files_of(make_study("ct", 1, 0)[:1]))
    other = SealedFile(files[0].path, "sha256:" + "0" * 64)
    with hospital.study() as reader:
        (one,) = reader.open([other])
        assert one.facts.same is False
        with pytest.raises(Refusal) as error:
            reader.attach([os.dup(0)], [0])
        assert error.value.codes == ("study-request-odd",)
        with pytest.raises(Refusal) as error, loading(reader, [0]):
            pass
        assert error.value.codes == ("study-not-readable",)


def test_a_changed_sealed_file_is_refused(hospital: Hospital) -> None:
    (file,) = hospital.seal(files_of(make_study("ct", 2, 0)[:1]))
    raw = bytearray(file.path.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.path.write_bytes(raw)
    assert refused([file], hospital) == ("sealed-tampered",)


def test_a_file_sealed_to_another_key_is_refused(hospital: Hospital) -> None:
    writer = SealedWriter(hospital.sealed, X25519PrivateKey.generate().public_key())
    writer.write(packaged("CT_small.dcm"))
    assert refused([SealedFile(writer.finish().path, "sha256:" + "0" * 64)], hospital) == ("sealed-not-for-this-key",)


def test_only_files_of_its_own_folders_are_opened(hospital: Hospital, tmp_path: Path) -> None:
    (file,) = hospital.seal([packaged("CT_small.dcm")])
    outside = tmp_path / "outside.sealed"
    outside.write_bytes(file.path.read_bytes())
    link = hospital.sealed / "link.sealed"
    link.symlink_to(outside)
    for path in (outside, link, hospital.sealed / ".." / "study.pem"):
        assert refused([SealedFile(path, file.sha256)], hospital) == ("study-path-outside",)
    assert refused([SealedFile(hospital.sealed / "none.sealed", file.sha256)], hospital) == ("study-file-missing",)


def test_what_is_no_dicom_is_refused(hospital: Hospital) -> None:
    writer = SealedWriter(hospital.sealed, hospital.private.public_key())
    writer.write(b"%PDF-1.7" * 100)
    assert refused([SealedFile(writer.finish().path, "sha256:" + "0" * 64)], hospital) == ("record-malformed",)


@pytest.mark.parametrize("name", [*NATIVE, *COMPRESSED])
def test_every_packaged_transfer_syntax_is_read_as_pydicom_reads_it(hospital: Hospital, name: str) -> None:
    raw = packaged(name)
    with hospital.opened([raw]) as (reader, (one,)):
        assert (one.facts.fault, one.facts.same) == ("", True)
        with loading(reader, [0]) as loader:
            for frame in range(min(one.facts.frames, 3)):
                wanted = pixel_array(io.BytesIO(raw), index=frame)
                assert np.array_equal(loader.read(0, frame=frame).array, wanted)
            assert loader.read(0, frame=0, region=(3, 5, 20, 10)).array.shape[:2] == (10, 20)
            if 1 < one.facts.frames < 20:
                assert loader.read(0).array.shape[0] == one.facts.frames


def test_pixels_of_a_broken_compressed_frame_are_a_code_and_the_process_lives(hospital: Hospital) -> None:
    dataset = dcmread(io.BytesIO(packaged("MR_small_jp2klossless.dcm")))
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[:60] + bytes(200)])
    dataset["PixelData"].is_undefined_length = True
    raw = io.BytesIO()
    dataset.save_as(raw)
    with hospital.opened([raw.getvalue(), packaged("MR_small_jp2klossless.dcm")]) as (reader, _):
        with loading(reader, [0, 1]) as loader:
            with pytest.raises(RaphaError) as error:
                loader.read(0)
            assert error.value.codes == ("loader-record-malformed",)
            assert loader.read(1).array.shape == (64, 64)
            assert reader.counts().malformed == 1
        handed = reader.detach()
        assert (handed[0].failed, handed[0].frames, handed[1].failed, handed[1].frames) == (True, 0, False, 1)


def test_a_file_that_goes_while_it_is_read_is_not_called_undecodable(hospital: Hospital) -> None:
    files = hospital.seal([packaged("CT_small.dcm")])
    with hospital.study() as reader:
        reader.open(files)
        files[0].path.unlink()
        with loading(reader, [0]) as loader, pytest.raises(PeerError) as error:
            loader.read(0)
        assert error.value.codes == ("loader-gone",)
        with pytest.raises(PeerError) as gone:
            reader.detach()
        assert gone.value.codes == ("study-file-missing",), "the model did not refuse to read it: the run failed"


def test_what_has_no_pixels_or_an_unknown_syntax_has_a_fault(hospital: Hospital) -> None:
    video = dcmread(io.BytesIO(packaged("MR_small_jp2klossless.dcm")))
    video.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.102"  # MPEG-4
    raw = io.BytesIO()
    video.save_as(raw)
    files = [packaged("rtplan.dcm"), raw.getvalue(), packaged("reportsi.dcm")]
    with hospital.opened(files) as (_, instances):
        assert [one.facts.fault for one in instances] == ["radiotherapy", "transfer-syntax", "structured-report"]


def test_a_deflated_data_set_is_not_inflated(hospital: Hospital) -> None:
    """A hundred megabytes of nothing in a file of a hundred kilobytes: its header stays closed."""
    dataset = dcmread(io.BytesIO(packaged("CT_small.dcm")))
    dataset.add_new(0x0040A160, "UT", " " * 100_000_000)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    raw = io.BytesIO()
    dataset.save_as(raw)
    assert len(raw.getvalue()) < 200_000
    before = peak_of(hospital.reader_pid)
    with hospital.opened([raw.getvalue()]) as (_, (one,)):
        assert (one.facts.fault, one.facts.same, one.sop_uid) == ("transfer-syntax", True, str(dataset.SOPInstanceUID))
    assert peak_of(hospital.reader_pid) - before < 50_000


def peak_of(pid: int) -> int:
    """Peak resident memory in kilobytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def test_a_slide_is_read_by_levels_and_regions_as_from_clear_files(hospital: Hospital, tmp_path: Path) -> None:
    files = files_of(make_study("sm", 3, 1))
    for number, raw in enumerate(files):
        (tmp_path / f"{number}.dcm").write_bytes(raw)
    with hospital.opened(files) as (reader, instances), WsiDicom.open(tmp_path) as clear:
        facts = [one.facts for one in instances]
        assert [(one.levels, one.base, one.flavour) for one in facts] == [
            (3, 0, "VOLUME"), (1, 0, "VOLUME"), (1, 0, "VOLUME"), (1, 3, "LABEL"),
        ]  # fmt: skip
        with loading(reader, [0, 2]) as loader:
            assert loader.facts(0)["levels"] == [[1536, 1536, 0], [384, 384, -1], [96, 96, 1]]
            assert loader.facts(0)["spacing"] == [0.001, 0.001]
            for level, exponent, box in ((0, 0, (700, 900, 300, 200)), (1, 2, (150, 100, 234, 284)), (2, 4, (0, 0, 96, 96))):
                wanted = clear.read_region(box[:2], exponent, box[2:], as_array=True)
                found = loader.read(0, level=level, region=box).array
                apart = np.abs(found.astype(int) - wanted.astype(int))  # two decoders, two roundings of YBR to RGB
                assert apart.max() <= 8 and apart.mean() < 0.5
            for level, box in ((0, (1500, 0, 100, 10)), (3, (0, 0, 8, 8))):
                with pytest.raises(RaphaError) as error:
                    loader.read(0, level=level, region=box)
                assert error.value.codes == ("loader-out-of-range",)
        assert {index: handed.frames for index, handed in reader.detach().items()} == {0: 1, 2: 1}


def test_the_label_of_a_slide_is_never_handed_over(hospital: Hospital) -> None:
    with hospital.opened(files_of(make_study("sm", 3, 0))) as (reader, instances):
        assert instances[3].facts.sop_class == SLIDE and instances[3].facts.burned_in
        with pytest.raises(Refusal) as error, loading(reader, [3]):
            pass
        assert error.value.codes == ("study-not-readable",)


def test_levels_that_make_no_pyramid_are_a_fault_and_nothing_else_fails(hospital: Hospital) -> None:
    study = make_study("sm", 3, 0)[:3]
    del study[1].TotalPixelMatrixOriginSequence, study[1].SharedFunctionalGroupsSequence, study[1].OpticalPathSequence
    files = [*files_of([study[1]]), packaged("CT_small.dcm")]
    with hospital.opened(files) as (_, instances):
        assert [one.facts.fault for one in instances] == ["slide-unreadable", ""]


def test_a_study_of_many_instances_is_opened_in_pages(hospital: Hospital) -> None:
    (file,) = hospital.seal([packaged("CT_small.dcm")])
    with hospital.study() as reader:
        instances = reader.open([file] * 1001)
        assert [one.facts.index for one in instances] == list(range(1001))


def test_nothing_is_held_after_the_connection(hospital: Hospital) -> None:
    with hospital.opened([packaged("MR_small_jp2klossless.dcm")]) as (reader, _), loading(reader, [0]) as loader:
        loader.read(0)
        assert len(children_of(hospital.reader_pid)) == 1, "the decoder"
    with hospital.study() as reader:
        for _ in range(600):
            held = reader.call("holds")["holds"]
            if held == 0 and not children_of(hospital.reader_pid):
                return
        raise AssertionError("the study is still held")


def children_of(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in found for word in path.read_text().split()]


def test_the_decoder_has_neither_network_nor_the_hospitals_files(hospital: Hospital) -> None:
    with hospital.opened([packaged("MR_small_jp2klossless.dcm")]) as (reader, _), loading(reader, [0]) as loader:
        loader.read(0)
        (outer,) = children_of(hospital.reader_pid)
        inner = children_of(outer) or [outer]
        while deeper := children_of(inner[-1]):
            inner += deeper
        decoder = inner[-1]
        assert Path(f"/proc/{decoder}/ns/net").stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
        root = Path(f"/proc/{decoder}/root")
        assert not (root / str(hospital.folder).lstrip("/")).exists()
        ours = Path(__file__).resolve().parts[1]  # a project below /tmp shows its own runtime there, and nothing else
        assert not any((root / name).exists() for name in ("etc", "var", "home", "tmp") if name != ours)
        held = [str(path.readlink()) for path in Path(f"/proc/{decoder}/fd").iterdir()]
        assert sum(name.startswith("socket:") for name in held) == 1


def test_the_process_leaves_no_core(hospital: Hospital) -> None:
    limits = Path(f"/proc/{hospital.reader_pid}/limits").read_text()
    (core,) = [line.split() for line in limits.splitlines() if line.startswith("Max core file size")]
    assert core[4:6] == ["0", "0"]


def test_odd_requests_are_refused_by_code(hospital: Hospital) -> None:
    with hospital.study() as reader:
        for verb, fields in (
            ("open", {"first": True, "files": []}),
            ("open", {"first": True, "files": [{"path": "/x", "sha256": "abc"}]}),
            ("open", {"first": True, "files": [{"path": "/x", "sha256": "sha256:" + "0" * 64, "more": 1}]}),
            ("facts", {"start": -1}),
            ("facts", {"start": 0, "more": 1}),
        ):
            with pytest.raises((Refusal, PeerError)) as error:
                reader.call(verb, **fields)
            assert error.value.codes[0] in ("study-request-odd", "study-not-open")


def test_what_the_study_reader_calls_its_own_hash_is_the_data_sets(hospital: Hospital) -> None:
    raw = packaged("CT_small.dcm")
    with hospital.opened([raw]) as (_, (one,)):
        start = 128 + 4 + 12 + int.from_bytes(raw[140:144], "little")
        assert one.facts.sha256 == "sha256:" + hashlib.sha256(raw[start:]).hexdigest()
        assert one.facts.index == facts(0).index
