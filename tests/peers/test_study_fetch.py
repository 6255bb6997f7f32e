# ruff: noqa: F811 - a fixture is imported by name
"""C-GET and WADO-RS through the study reader, from a real Orthanc: sealed as it comes, the same bytes by both ways."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from blocks.archive import Archive, Listed
from blocks.endpoint import Endpoint
from blocks.instances import SealedReader
from blocks.receiver import Arrived
from blocks.study import SealedFile, StudyReader
from infra.hospital.reading_cohort import identifiers, make_study
from infra.peers.orthanc import Orthanc, running_orthanc
from rapha.errors import PeerError, Refusal
from tasks.attempt import Attempt
from tasks.reading.retrieve import brought
from tests.fixtures.study_running import files_of, make_hospital, study_reader
from tests.fixtures.ward import until
from tests.peers.test_misbehaving import attempt  # noqa: F401

PRIVATE = X25519PrivateKey.generate()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    names = {"us": {"AET": "RAPHA", "Host": "127.0.0.1", "Port": 1, "AllowGet": True}}
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), DicomModalities=names, DicomAlwaysAllowGet=True) as archive:
        yield archive


def endpoint(orthanc: Orthanc, how: str) -> Archive:
    web = orthanc.url if how == "WADO-RS" else None
    return Archive(
        Endpoint(
            name=how,
            host="127.0.0.1",
            port=orthanc.dicom_port,
            ae_title="ORTHANC",
            calling_ae_title="RAPHA",
            dicomweb_url=web,
            retrieve=how,  # type: ignore[arg-type]
        )
    )


def listed(study: Sequence[object]) -> list[Listed]:
    return [Listed(str(one.SOPInstanceUID), str(one.SOPClassUID), str(one.SeriesInstanceUID)) for one in study]  # type: ignore[attr-defined]


def whole(
    way: Archive, study: Sequence[Any], reader: StudyReader, attempt: Attempt, wanted: Sequence[Listed] = ()
) -> list[Arrived]:
    """By the stage's own code."""
    return brought(str(study[0].StudyInstanceUID), attempt, way, reader, None, wanted or listed(study))


@pytest.mark.parametrize("kind", ["ct", "sm"])
def test_both_ways_bring_the_same_sealed_content(orthanc: Orthanc, tmp_path: Path, attempt: Attempt, kind: str) -> None:
    study = make_study(kind, 21, 1)  # type: ignore[arg-type]
    orthanc.store_all(files_of(study))
    archives = {how: endpoint(orthanc, how) for how in ("C-GET", "WADO-RS")}
    with study_reader(tmp_path, archives, PRIVATE) as reader:
        came = {how: whole(way, study, reader, attempt) for how, way in archives.items()}
        for how, instances in came.items():
            assert {one.sop_uid for one in instances} == {str(one.SOPInstanceUID) for one in study}, how
            opened = reader.open([SealedFile(one.path, one.sha256) for one in instances])
            assert all(one.facts.same and not one.facts.fault for one in opened)
            assert [one.sop_uid for one in opened] == [one.sop_uid for one in instances]
        contents = [sorted((one.sop_uid, one.sha256) for one in instances) for instances in came.values()]
        assert contents[0] == contents[1]
        needles = [needle.encode() for needle in identifiers(study)]
        for path in (tmp_path / "store").iterdir():
            raw = path.read_bytes()
            assert not [needle for needle in needles if needle in raw] and path.suffix == ".sealed"
            with SealedReader(path, PRIVATE) as clear:
                assert str(study[0].PatientID).encode() in clear.read()
    until = time.monotonic() + 10
    while list((tmp_path / "store").iterdir()):  # with the connection goes what came for it
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["C-GET", "WADO-RS"])
def test_an_instance_that_the_archive_has_not_takes_no_other_along(
    orthanc: Orthanc, tmp_path: Path, attempt: Attempt, how: str
) -> None:
    study, way = make_study("ct", 22, 0), endpoint(orthanc, how)
    orthanc.store_all(files_of(study))
    gone = Listed("2.25.4711", str(study[0].SOPClassUID), str(study[0].SeriesInstanceUID))
    with study_reader(tmp_path, {how: way}) as reader:
        with pytest.raises(PeerError) as failed:
            whole(way, study, reader, attempt, [*listed(study), gone])
        assert failed.value.codes == ("archive-incomplete",) and f"1 of {len(study) + 1}" in failed.value.message
        kept = reader.fetched(how, str(study[0].StudyInstanceUID))
        assert {one.sop_uid for one in kept} == {str(one.SOPInstanceUID) for one in study}
    until(lambda: not list((tmp_path / "store").iterdir()), "with the connection goes what came for it", seconds=10)


def test_only_endpoints_of_the_profile_are_asked(orthanc: Orthanc, tmp_path: Path) -> None:
    move = Archive(Endpoint(name="m", host="127.0.0.1", port=1, ae_title="X", calling_ae_title="RAPHA", retrieve="C-MOVE"))
    with study_reader(tmp_path, {"m": move}) as reader:
        for name, code in (("elsewhere", "endpoint-unknown"), ("m", "study-fetch-by-move")):
            with pytest.raises(Refusal) as refused:
                reader.fetch(name, "2.25.1", "SERIES", [Listed("2.25.2", "1.2", "2.25.3")])
            assert refused.value.codes == (code,)


def test_the_process_asks_the_endpoints_of_its_profile(orthanc: Orthanc, tmp_path: Path) -> None:
    study = make_study("ct", 23, 1)
    orthanc.store_all(files_of(study))
    profile = tmp_path / "profile.yaml"
    keys = f"host: 127.0.0.1, port: {orthanc.dicom_port}, ae_title: ORTHANC, calling_ae_title: RAPHA, retrieve: C-GET"
    profile.write_text(f"pacs_endpoints:\n  primary: {{{keys}}}\n")
    hospital = make_hospital("--store", str(tmp_path / "store"), "--profile", str(profile), sandboxes=False)
    try:
        with hospital.study() as reader:
            assert reader.fetch("primary", str(study[0].StudyInstanceUID), "SERIES", listed(study)).status == 0
            came = reader.fetched("primary", str(study[0].StudyInstanceUID))
            opened = reader.open([SealedFile(one.path, one.sha256) for one in came])
            assert {one.sop_uid for one in opened} == {str(one.SOPInstanceUID) for one in study}
            assert all(one.facts.same for one in opened)
            with pytest.raises(Refusal) as refused:
                reader.fetch("elsewhere", "2.25.1", "IMAGE", [Listed("2.25.2", "1.2", "2.25.3")])
            assert refused.value.codes == ("study-no-endpoint",)
    finally:
        hospital.close()
