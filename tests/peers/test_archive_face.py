"""One face over several protocols: a real Orthanc by C-GET and by WADO-RS; C-STORE and STOW-RS; TLS; what fails, by name."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from blocks.archive import Archive, Listed, attributes_digest
from blocks.dimse.services import ToStore
from blocks.endpoint import Endpoint, TlsSettings
from blocks.part10 import content_digest
from infra.peers.orthanc import Orthanc, free_port, running_orthanc
from rapha.errors import ConfigurationError, PeerError
from tests.fixtures.certificates import Authority, authority

NAMES = (
    "CT_small.dcm",
    "JPGLosslessP14SV1_1s_1f_8b.dcm",
    "JPEG2000.dcm",
    "SC_rgb_jpeg_dcmtk.dcm",
    "MR_small.dcm",
    "reportsi.dcm",
)
FILES = [Path(str(get_testdata_file(name))) for name in NAMES]
ALLOWED = {"DicomAlwaysAllowGet": True, "DicomModalities": {"RAPHA": ["RAPHA", "127.0.0.1", 1]}, "DicomCheckCalledAet": True}


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc"), **ALLOWED) as archive:
        archive.store_all(FILES)
        yield archive


def endpoint(orthanc: Orthanc, **changes: object) -> Endpoint:
    facts: dict[str, object] = {"name": "primary", "host": "127.0.0.1", "port": orthanc.dicom_port, "ae_title": "ORTHANC"}
    facts |= {"calling_ae_title": "RAPHA", "connect_seconds": 5.0, "idle_seconds": 20.0}
    return Endpoint(**{**facts, **changes})  # type: ignore[arg-type]


def both(orthanc: Orthanc) -> list[Archive]:
    return [
        Archive(endpoint(orthanc, retrieve="C-GET")),
        Archive(endpoint(orthanc, port=0, dicomweb_url=orthanc.url)),
    ]


def study_of(path: Path) -> str:
    return str(dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def test_it_answers(orthanc: Orthanc) -> None:
    for archive in both(orthanc):
        archive.echo()


def test_both_protocols_find_the_same_studies(orthanc: Orthanc) -> None:
    found = [sorted(a["0020000D"]["Value"][0] for a in archive.find_studies({})) for archive in both(orthanc)]
    assert found[0] == found[1] == sorted({study_of(path) for path in FILES})


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_both_protocols_give_what_was_stored(orthanc: Orthanc, path: Path) -> None:
    for archive in both(orthanc):
        (listed,) = [one for one in archive.list_study(study_of(path)) if one.sop_uid == dcmread(path).SOPInstanceUID]
        got: list[bytes] = []
        archive.get(study_of(path), [listed], lambda _class, _uid, blocks, got=got: got.append(b"".join(blocks)))
        assert [attributes_digest(file) for file in got] == [attributes_digest(path.read_bytes())]
        if archive.method == "WADO-RS":  # over DIMSE an archive encodes lengths and padding anew
            assert [content_digest(file) for file in got] == [content_digest(path.read_bytes())]
        assert archive.read_back(study_of(path), listed) == attributes_digest(path.read_bytes())


def test_what_is_not_there_is_not_read_back(orthanc: Orthanc) -> None:
    study = study_of(FILES[0])
    (one,) = both(orthanc)[0].list_study(study)
    assert both(orthanc)[0].read_back(study, Listed("1.2.3.4", one.sop_class, one.series_uid)) is None


@pytest.mark.parametrize("web", [False, True])
def test_an_object_is_stored_and_again_is_no_second(orthanc: Orthanc, tmp_path: Path, web: bool) -> None:
    dataset = dcmread(FILES[0])
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.{100 + web}"
    dataset.save_as(tmp_path / "new.dcm")
    one = ToStore(tmp_path / "new.dcm", dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.file_meta.TransferSyntaxUID)
    archive = both(orthanc)[web]
    for _ in range(2):
        assert archive.store(dataset.StudyInstanceUID, [one])[one.sop_instance] in ("stored", "known")
    listed = Listed(one.sop_instance, one.sop_class, str(dataset.SeriesInstanceUID))
    assert archive.read_back(dataset.StudyInstanceUID, listed) == attributes_digest((tmp_path / "new.dcm").read_bytes())
    assert len([x for x in archive.list_study(dataset.StudyInstanceUID) if x.sop_uid == one.sop_instance]) == 1


def code(archive: Archive) -> str:
    with pytest.raises(PeerError) as failed:
        archive.echo()
    return failed.value.codes[0]


def test_what_keeps_us_out_has_a_name(orthanc: Orthanc) -> None:
    assert code(Archive(endpoint(orthanc, port=free_port()))) == "dimse-unreachable"
    assert code(Archive(endpoint(orthanc, ae_title="OTHER"))) == "dimse-rejected"
    stranger = Archive(endpoint(orthanc, calling_ae_title="STRANGER"))
    with pytest.raises(PeerError) as failed:
        stranger.find_studies({})
    assert failed.value.codes == ("dimse-hung-up",)
    with pytest.raises(ConfigurationError):
        Archive(endpoint(orthanc, port=0))


def test_no_error_quotes_a_uid(orthanc: Orthanc) -> None:
    with pytest.raises(PeerError) as failed:
        Archive(endpoint(orthanc)).commit([("1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.5")], "2.25.9", seconds=0.2)
    assert "1.2.3.4.5" not in json.dumps([failed.value.message, *failed.value.codes])


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def secure(ours: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that wants TLS with a client certificate of the same authority."""
    certificate, key = ours.issue("127.0.0.1")
    tls = {"DicomTlsEnabled": True, "DicomTlsCertificate": str(certificate), "DicomTlsPrivateKey": str(key)}
    tls |= {"DicomTlsTrustedCertificates": str(ours.bundle), "DicomTlsRemoteCertificateRequired": True}
    with running_orthanc(tmp_path_factory.mktemp("secure"), **ALLOWED, **tls) as archive:
        archive.store(FILES[0])
        yield archive


def settings(ours: Authority, **changes: object) -> TlsSettings:
    certificate, key = ours.issue("rapha.test")
    return TlsSettings(**{"ca_bundle": ours.bundle, "cert_file": certificate, "key_file": key, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("version", ["TLS_1_3", "TLS_1_2"])
def test_a_secure_endpoint_is_spoken_to_over_tls(secure: Orthanc, ours: Authority, version: str) -> None:
    archive = Archive(endpoint(secure, tls=settings(ours, version=version), retrieve="C-GET"))
    archive.echo()
    assert len(archive.list_study(study_of(FILES[0]))) == 1


def test_tls_that_is_not_right_is_named(secure: Orthanc, ours: Authority, tmp_path: Path) -> None:
    foreign = authority(tmp_path / "foreign", "Foreign Authority")
    stranger, key = foreign.issue("rapha.test")
    cases = {
        "tls-name-differs": settings(ours, server_name="pacs.elsewhere.test"),
        "tls-certificate-untrusted": settings(ours, ca_bundle=foreign.bundle),
        "dimse-aborted": settings(ours, cert_file=stranger, key_file=key),
    }
    assert {name: code(Archive(endpoint(secure, tls=tls))) for name, tls in cases.items()} == {name: name for name in cases}
    with pytest.raises(ConfigurationError):
        Archive(endpoint(secure, tls=settings(ours, cert_file=None))).echo()


def test_an_expired_archive_is_refused(ours: Authority, tmp_path: Path) -> None:
    certificate, key = ours.issue("127.0.0.1", expired=True)
    tls = {"DicomTlsEnabled": True, "DicomTlsCertificate": str(certificate), "DicomTlsPrivateKey": str(key)}
    with running_orthanc(tmp_path / "expired", **ALLOWED, **tls, DicomTlsTrustedCertificates=str(ours.bundle)) as archive:
        assert code(Archive(endpoint(archive, tls=settings(ours)))) == "tls-certificate-expired"


def test_a_replaced_certificate_is_used_without_a_restart(secure: Orthanc, ours: Authority, tmp_path: Path) -> None:
    foreign, good = authority(tmp_path / "other").issue("rapha.test"), ours.issue("rapha.test")
    cert, key = tmp_path / "own.pem", tmp_path / "own.key"
    cert.write_bytes(foreign[0].read_bytes()), key.write_bytes(foreign[1].read_bytes())
    archive = Archive(endpoint(secure, tls=settings(ours, cert_file=cert, key_file=key)))
    assert code(archive) == "dimse-aborted"
    cert.write_bytes(good[0].read_bytes()), key.write_bytes(good[1].read_bytes())
    archive.echo()
