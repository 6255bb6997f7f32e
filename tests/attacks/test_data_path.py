# ruff: noqa: F811 - fixtures are imported by name
"""Attacks on the way from the archive to the trainer, with a real Orthanc and the reader as a process of its own."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from policies.retrieve import RetrieveLimits
from rapha.errors import PeerError, RaphaError, Refusal
from tasks.training.query import ManifestFacts
from tasks.training.retrieve import retrieve
from tests.fixtures.data_path import (  # noqa: F401
    JOB,
    Hospital,
    Wanted,
    begin,
    codes,
    hospital,
    loader,
    orthanc,
    own_hospital,
    shared,
)
from tests.fixtures.reading import cohort, make_image, running_reader, set_pixels


class Untouchable:
    """A reader that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was called")


@pytest.mark.parametrize(
    "outer", [{}, {"Modality": "MR"}, {"Modality": "*"}, {"Modality": "MR", "BodyPartExamined": "*"}, {"StudyDate": "????????"}]
)
def test_D01_a_broad_query_refuses_before_it_is_sent(outer: dict[str, str], tmp_path: Path) -> None:
    hospital = Hospital(None, tmp_path, ExitStack())  # type: ignore[arg-type]
    manifest = ManifestFacts(
        modalities=("MR",), body_parts=("BRAIN",), date_from="20240101", date_to="20241231", root=JOB, count=9,
        max_records=9, min_patients=8, burned_in_checked=False,
    )  # fmt: skip
    with pytest.raises(Refusal) as refused:
        hospital.query(Untouchable(), manifest, outer)  # type: ignore[arg-type]
    assert "query-outer-broad" in codes(refused)


def test_D02_a_job_beyond_the_manifest_refuses_before_it_is_sent(tmp_path: Path) -> None:
    class Wider(Wanted):
        class dataset(Wanted.dataset):
            body_parts = ("BRAIN", "CHEST")

    manifest = ManifestFacts(
        modalities=("MR",), body_parts=("BRAIN",), date_from="20240101", date_to="20241231", root=JOB, count=9,
        max_records=9, min_patients=8, burned_in_checked=False,
    )  # fmt: skip
    with pytest.raises(Refusal) as refused:
        Hospital(None, tmp_path, ExitStack()).query(Untouchable(), manifest, wanted=Wider)  # type: ignore[arg-type]
    assert "query-job-beyond-manifest" in codes(refused)


def test_D03_more_than_the_manifest_is_ignored_and_counted(hospital: Hospital) -> None:
    listed = cohort(8)
    extra = [make_image(1, 77), make_image(50, 1), make_image(51, 1, body_part="CHEST"), make_image(52, 1, day="20190101")]
    manifest = hospital.holds([*listed, *extra], listed=listed)
    _, staged = hospital.stage(manifest)
    assert (staged.evidence.listed, staged.evidence.received) == (8, 8)
    assert staged.evidence.received_root == manifest.root
    counts = hospital.query(hospital.reader(), manifest)[1].evidence
    assert (counts.ignored, counts.selected, counts.patients) == (2, 8, 8)


def test_D03_a_missing_record_refuses(hospital: Hospital) -> None:
    manifest = hospital.holds(cohort(9))
    hospital.archive.delete(hospital.ids[3])
    with pytest.raises(Refusal) as refused:
        hospital.query(hospital.reader(), manifest)
    assert codes(refused) == {"query-missing"}


def test_D03_changed_pixels_refuse(hospital: Hospital) -> None:
    datasets = cohort(9)
    manifest = hospital.holds(datasets)
    set_pixels(datasets[4], np.ones((32, 32), dtype=np.uint16))
    hospital.archive.delete(hospital.ids[4])
    hospital.archive.store(datasets[4])
    with pytest.raises(Refusal) as refused:
        hospital.stage(manifest)
    assert codes(refused) == {"retrieve-changed", "retrieve-root-differs"}


def test_D03_a_record_of_another_patient_refuses(hospital: Hospital) -> None:
    datasets = cohort(9)
    manifest = hospital.holds(datasets)
    hospital.archive.delete(hospital.ids[4])
    datasets[4].PatientID = "HOSP-99999999"
    hospital.archive.store(datasets[4])
    with pytest.raises(Refusal) as refused:
        hospital.query(hospital.reader(), manifest)
    assert "query-changed" in codes(refused)


def test_D03_another_records_file_refuses(hospital: Hospital) -> None:
    manifest = hospital.holds(cohort(9))
    with pytest.raises(Refusal) as refused:
        hospital.query(hospital.reader(), replace(manifest, root="sha256:" + "0" * 64))
    assert codes(refused) == {"query-records-differ"}


def test_a_record_that_goes_between_query_and_retrieval_refuses(hospital: Hospital) -> None:
    manifest = hospital.holds(cohort(9))
    reader = hospital.reader()
    attempt, queried = hospital.query(reader, manifest)
    hospital.archive.delete(hospital.ids[2])
    with pytest.raises(Refusal) as refused:
        retrieve(queried, attempt, reader, False, RetrieveLimits())
    assert {"retrieve-set-changed", "retrieve-missing"} <= codes(refused)
    with pytest.raises(Refusal) as refused:
        reader.attach([socket.socketpair()[0].detach()])
    assert codes(refused) == {"reader-nothing-staged"}


@pytest.mark.parametrize(
    ("key", "code"),
    [(b"", "missing"), (b"short", "length"), (bytes(32), "weak"), (b"default!" * 4, "weak"), (b"x" * 33, "length")],
)
def test_D04_a_bad_hospital_key_does_not_start(key: bytes, code: str, tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").touch()
    with (
        pytest.raises(RuntimeError, match=f"pseudonym-key-{code}"),
        running_reader(tmp_path, "http://127.0.0.1:9/dicom-web", tmp_path / "records.jsonl", key=key),
    ):
        pass


def test_D06_another_project_has_other_pseudonyms(hospital: Hospital) -> None:
    hospital.holds(cohort(9))
    with hospital.reader() as reader:
        begin(reader, project="another-project")
        facts = reader.query()
    assert (facts.missing, facts.ignored, facts.selected) == (9, 9, 0)


def test_D07_ways_to_write_one_identifier_are_one_patient(hospital: Hospital) -> None:
    datasets = cohort(9)
    for dataset, variant in zip(datasets, ("hosp-00000001", " HOSP-00000001 ", "Hosp-00000001"), strict=False):
        dataset.PatientID = variant
    hospital.holds(datasets)
    with hospital.reader() as reader:
        begin(reader)
        assert reader.query().patients == 7


def test_D08_no_identifier_reaches_the_loader(hospital: Hospital) -> None:
    hospital.holds(cohort(9))
    _, lines = hospital.serve(lines=1)
    from rapha.protocol import DESCRIBE, NAMES, READ, Request

    lines[0].settimeout(2)
    for request in (Request(DESCRIBE), Request(NAMES, 0, 9), *(Request(READ, index) for index in range(9))):
        lines[0].sendall(request.pack())
    seen = b""
    while seen.count(b"RPR1") < 11 or seen[-1:] == b"}":
        try:
            seen += lines[0].recv(1 << 20)
        except TimeoutError:
            break
    assert seen.count(b"RPR1") == 11
    assert not [mark for mark in marks(range(1, 10)) if mark in seen]


@pytest.mark.parametrize(
    ("stored", "high_bit", "signed", "wanted"),
    [
        (np.arange(1024) | 0xA000, 11, 0, np.arange(1024)),
        (np.arange(1024) << 4 | 0x000A, 15, 0, np.arange(1024)),
        (np.arange(1024) + 0xC00, 11, 1, np.arange(1024) - 1024),
    ],
)
def test_D08_overlays_in_unused_bits_are_cleared(
    stored: np.ndarray, high_bit: int, signed: int, wanted: np.ndarray, hospital: Hospital
) -> None:
    datasets = cohort(9)
    for dataset in datasets:
        set_pixels(dataset, stored.astype(np.uint16).reshape(32, 32))
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, high_bit, signed
    hospital.holds(datasets)
    _, lines = hospital.serve()
    assert np.array_equal(loader(lines)[0].array.reshape(-1), wanted)


def test_D08_images_with_burned_in_text_refuse_unless_checked(hospital: Hospital) -> None:
    datasets = cohort(9)
    datasets[0].BurnedInAnnotation = "YES"
    datasets[1].ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    datasets[2].SOPClassUID = datasets[2].file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    manifest = hospital.holds(datasets)
    with pytest.raises(Refusal) as refused:
        hospital.stage(manifest)
    assert codes(refused) == {"retrieve-burned-in"}
    _, staged = hospital.stage(replace(manifest, burned_in_checked=True))
    assert staged.evidence.burned_in == 3


def spoil_syntax(dataset: Dataset) -> None:
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
    dataset["PixelData"].is_undefined_length = True
    dataset.PixelData = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0\x04\x00\x00\x00\xff\xd8\xff\xd9"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda dataset: setattr(dataset, "Rows", 33),
        lambda dataset: setattr(dataset, "BitsAllocated", 12),
        lambda dataset: delattr(dataset, "PixelData"),
        lambda dataset: delattr(dataset, "SamplesPerPixel"),
        lambda dataset: setattr(dataset, "NumberOfFrames", 100_000),
        spoil_syntax,
    ],
)
def test_an_object_that_cannot_be_decoded_refuses_the_job_and_the_reader_lives(
    spoil: Callable[[Dataset], None], hospital: Hospital
) -> None:
    datasets = cohort(9)
    spoil(datasets[3])
    manifest = hospital.holds(datasets)
    with pytest.raises(Refusal) as refused:
        hospital.stage(manifest)
    assert "retrieve-undecodable" in codes(refused)
    assert hospital.process is not None and hospital.process.poll() is None
    begin(hospital.reader())


def test_D09_pseudonyms_are_whole(hospital: Hospital) -> None:
    hospital.holds(cohort(9))
    _, lines = hospital.serve()
    names = loader(lines).records[:]
    assert len({name.record for name in names}) == 9
    assert all(len(name.record) == len(name.patient) == 64 for name in names)


def test_D10_what_is_read_ahead_is_counted_and_the_cap_holds(hospital: Hospital) -> None:
    hospital.holds(cohort(9))
    reader, lines = hospital.serve(cap=6)
    reading = loader(lines, batch_size=1, indices=range(6), epochs=2)
    batches = iter(reading)
    next(batches)
    time.sleep(0.3)
    ahead = reader.counts()
    assert 1 < ahead.unique <= 6
    assert len(list(batches)) == 11
    assert (reader.counts().unique, reader.counts().handed) == (6, 12)
    with pytest.raises(RaphaError) as refused:
        reading[7]
    assert codes(refused) == {"loader-cap-reached"}
    assert len(reading.patients(range(9))) == 9
    assert reader.finish().unique == 6


def test_D11_reading_again_or_in_parts_does_not_raise_the_count(hospital: Hospital) -> None:
    hospital.holds(cohort(9))
    reader, lines = hospital.serve()
    reading = loader(lines)
    for _ in range(3):
        reading[2]
        reading.read(2, region=(0, 0, 4, 4))
        reading.read(2, frame=0)
    with pytest.raises(RaphaError):
        reading.read(2, region=(30, 30, 4, 4))
    finish = reader.finish()
    assert (finish.unique, finish.handed, finish.total) == (1, 9, 9)
    again = hospital.serve()[0].finish()
    assert again.unique == 0 and again.commitment != finish.commitment


def test_D13_a_withdrawn_record_is_never_read(hospital: Hospital) -> None:
    datasets = cohort(9, 2)
    manifest = hospital.holds(datasets, listed=datasets[2:])
    reader, staged = hospital.stage(manifest)
    assert (staged.evidence.listed, staged.evidence.extra) == (16, 0)
    pair = socket.socketpair()
    reader.attach([pair[0].detach()])
    assert len(loader([pair[1]]).records) == 16
    pair[1].close()


def test_D14_a_cohort_that_names_a_patient_by_its_size_refuses(hospital: Hospital) -> None:
    manifest = hospital.holds(cohort(7, 2))
    with pytest.raises(Refusal) as refused:
        hospital.query(hospital.reader(), manifest)
    assert codes(refused) == {"query-cohort-small"}


def test_C17_C18_nothing_in_clear_lies_anywhere_while_the_reader_serves(own_hospital: Hospital, tmp_path: Path) -> None:
    hospital = own_hospital
    datasets = cohort(9)
    plant = np.frombuffer(os.urandom(2048), dtype=np.uint16).reshape(32, 32)
    for dataset in datasets:
        set_pixels(dataset, plant)
    hospital.holds(datasets)
    started = time.time() - 1
    reader, lines = hospital.serve()
    batches = iter(loader(lines, batch_size=2))
    assert np.array_equal(next(batches).arrays[0], plant)
    sealed = list((tmp_path / "staging").rglob("*.sealed"))
    assert len(sealed) == 9
    wanted = [plant.tobytes()[:64], *marks(range(1, 10))]
    for path in [*sealed, *changed_since(started, Path("/dev/shm"), Path("/tmp"), tmp_path)]:
        assert not [mark for mark in wanted if mark in content(path)], path.name
    limits = Path(f"/proc/{hospital.process.pid}/limits").read_text().splitlines()
    assert [line.split()[4:6] for line in limits if line.startswith("Max core file size")] == [["0", "0"]]
    batches.close()
    assert reader.finish().destroyed is True
    assert list((tmp_path / "staging").iterdir()) == []
    hospital.process.kill()
    assert hospital.process.stdout.read() + hospital.process.stderr.read() == ""


def test_killing_the_flow_destroys_what_the_reader_holds(hospital: Hospital) -> None:
    hospital.holds(cohort(9))
    reader, lines = hospital.serve()
    staging = hospital.folder / "staging"
    assert list(staging.iterdir())
    reader.close()
    deadline = time.monotonic() + 5
    while list(staging.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(staging.iterdir()) == []
    with pytest.raises((PeerError, OSError)):
        loader(lines)


def test_what_a_killed_reader_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "staging" / "old"
    left.mkdir(parents=True)
    (left / "1.sealed").write_bytes(b"noise")
    (tmp_path / "records.jsonl").touch()
    with running_reader(tmp_path, "http://127.0.0.1:9/dicom-web", tmp_path / "records.jsonl"):
        assert not left.exists()


def marks(patients: Sequence[int]) -> list[bytes]:
    """Texts that name a made-up patient, as they would lie in memory or on a disk."""
    texts = [f"HOSP-{patient:08d}" for patient in patients] + [f"ACC-{patient:08d}" for patient in patients]
    texts += [f"1.2.826.0.1.3680043.10.999.{patient}.1" for patient in patients]
    texts += ["Quixotic", "Windmill", "Grünwald"]
    return [form for text in texts for form in (text.encode(), text.encode("utf-16-le"), text[::-1].encode())]


def changed_since(when: float, *folders: Path) -> list[Path]:
    """Files written since; the archive's own and other tests' folders are left out."""
    found = []
    for folder in folders:
        for root, below, names in os.walk(folder):
            below[:] = [name for name in below if not name.startswith(("orthanc", "pytest-"))]
            found += [Path(root) / name for name in names]
    return [path for path in found if path.is_file() and not path.is_symlink() and path.stat().st_mtime >= when]


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()[: 8 << 20]
    except OSError:
        return b""  # another test's file, gone already
