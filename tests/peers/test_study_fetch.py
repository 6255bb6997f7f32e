"""C-GET and WADO-RS through the study reader, from a real Orthanc: sealed as it comes, the same bytes by both ways."""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from blocks.archive import Archive, Listed
from blocks.endpoint import Endpoint
from blocks.instances import SealedReader
from blocks.study import SealedFile, StudyReader
from infra.daemon import serve
from infra.hospital.reading_cohort import identifiers, make_study
from infra.peers.orthanc import Orthanc, running_orthanc
from infra.study.opened import Opener
from infra.study.session import StudySession
from rapha.errors import ConfigurationError, PeerError, Refusal
from tests.fixtures.study_running import files_of, make_hospital

PRIVATE = X25519PrivateKey.generate()


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    names = {"us": {"AET": "RAPHA", "Host": "127.0.0.1", "Port": 1, "AllowGet": True}}
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), DicomModalities=names, DicomAlwaysAllowGet=True) as archive:
        yield archive


@contextmanager
def reading(folder: Path, archives: Mapping[str, Archive]) -> Iterator[StudyReader]:
    """The session on a real socket, served by a thread."""

    def archive(name: str) -> Archive:
        if name not in archives:
            raise ConfigurationError(["endpoint-unknown"], "no endpoint has this name")
        return archives[name]

    store, path = folder / "store", folder / "s"
    store.mkdir(exist_ok=True)
    ready = threading.Event()
    session = lambda: StudySession(Opener(PRIVATE, [store]), archive, store)  # noqa: E731
    threading.Thread(target=serve, args=(path, session), kwargs={"ready": ready.set}, daemon=True).start()
    assert ready.wait(30)
    with StudyReader(path) as reader:
        yield reader


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


@pytest.mark.parametrize("kind", ["ct", "sm"])
def test_both_ways_bring_the_same_sealed_content(orthanc: Orthanc, tmp_path: Path, kind: str) -> None:
    study = make_study(kind, 21, 1)  # type: ignore[arg-type]
    orthanc.store_all(files_of(study))
    archives = {how: endpoint(orthanc, how) for how in ("C-GET", "WADO-RS")}
    with reading(tmp_path, archives) as reader:
        came = {how: reader.fetch(how, str(study[0].StudyInstanceUID), listed(study)) for how in archives}
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


def test_an_instance_that_the_archive_has_not_leaves_nothing_behind(orthanc: Orthanc, tmp_path: Path) -> None:
    study = make_study("ct", 22, 0)
    orthanc.store_all(files_of(study))
    wanted = [*listed(study), Listed("2.25.4711", str(study[0].SOPClassUID), str(study[0].SeriesInstanceUID))]
    with reading(tmp_path, {"WADO-RS": endpoint(orthanc, "WADO-RS")}) as reader, pytest.raises(PeerError):
        reader.fetch("WADO-RS", str(study[0].StudyInstanceUID), wanted)
    assert list((tmp_path / "store").iterdir()) == []


def test_only_endpoints_of_the_profile_are_asked(orthanc: Orthanc, tmp_path: Path) -> None:
    move = Archive(Endpoint(name="m", host="127.0.0.1", port=1, ae_title="X", calling_ae_title="RAPHA", retrieve="C-MOVE"))
    with reading(tmp_path, {"m": move}) as reader:
        for name, code in (("elsewhere", "endpoint-unknown"), ("m", "study-fetch-by-move")):
            with pytest.raises(Refusal) as refused:
                reader.fetch(name, "2.25.1", [Listed("2.25.2", "1.2", "2.25.3")])
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
            came = reader.fetch("primary", str(study[0].StudyInstanceUID), listed(study))
            opened = reader.open([SealedFile(one.path, one.sha256) for one in came])
            assert {one.sop_uid for one in opened} == {str(one.SOPInstanceUID) for one in study}
            assert all(one.facts.same for one in opened)
            with pytest.raises(Refusal) as refused:
                reader.fetch("elsewhere", "2.25.1", [Listed("2.25.2", "1.2", "2.25.3")])
            assert refused.value.codes == ("study-no-endpoint",)
    finally:
        hospital.close()
