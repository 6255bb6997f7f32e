"""The embedded archive against dicomweb-client, our own client, and Orthanc's answers to the same questions."""

import io
import socket
import subprocess
import sys

import numpy as np
import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import dcmread

from blocks.pacs import DicomWeb
from blocks.part10 import content_digest
from infra.hospital.cohort import make_cohort, write_cohort
from tests.fixtures.orthanc import running_orthanc

FIELDS = ("00080018", "0020000D", "0020000E", "00100020", "00080060", "00080020", "00180015")


@pytest.fixture(scope="module")
def cohort():
    return make_cohort(10)


@pytest.fixture(scope="module")
def url(cohort, tmp_path_factory):
    root = tmp_path_factory.mktemp("dicom")
    write_cohort(cohort, root)
    with served(root) as base:
        yield base


class served:
    """The archive as a process on a free port."""

    def __init__(self, root, *more, **kwargs):
        argv = [sys.executable, "-m", "infra.hospital", "--root", str(root), *(more or ("--port", "0"))]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **kwargs)

    def __enter__(self):
        port = self.process.stdout.readline().split()[1]
        assert self.process.stdout.readline() == "ready\n"
        return f"http://127.0.0.1:{port}/dicom-web"

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def client(url):
    return DICOMwebClient(url)


def uids(answers):
    return {answer["00080018"]["Value"][0] for answer in answers}


def test_finds_the_cohort_and_no_stranger(client, cohort):
    keys = {"Modality": "DX", "BodyPartExamined": "CHEST", "StudyDate": "20240101-20241231"}
    assert uids(client.search_for_instances(search_filters=keys)) == {image.uid for image in cohort.inside}
    assert len(client.search_for_instances(search_filters={"StudyDate": "-20200101"})) == 2
    assert len(client.search_for_studies(search_filters={"ModalitiesInStudy": "CR"})) == 2


def test_pages_are_disjoint_and_whole(client, cohort):
    pages = [client.search_for_instances(limit=7, offset=at) for at in range(0, 70, 7)]
    assert [len(page) for page in pages] == [7, 7, 7, 7, 7, 7, 4, 0, 0, 0]
    assert set().union(*map(uids, pages)) == {image.uid for image in cohort.images}


@pytest.mark.parametrize("name", ["山田^太郎", "yamada*", "YAMADA^TAROU", "*山田*"])
def test_names_match_in_every_script_and_case(client, name):
    found = client.search_for_studies(search_filters={"PatientName": name}, fields=["PatientName"])
    assert {answer["00100010"]["Value"][0]["Ideographic"] for answer in found} == {"山田^太郎"}


def test_cyrillic_and_latin_names_come_back_whole(client):
    found = client.search_for_studies(fields=["PatientName"])
    names = {answer["00100010"]["Value"][0]["Alphabetic"] for answer in found}
    assert any("Люксембургова" in name or "Достоевцев" in name or "Чернышевич" in name for name in names)
    assert any(set(name) & set("üÅñèé") for name in names)


def test_keys_that_match_nothing_or_mean_nothing(client, url):
    assert client.search_for_studies(search_filters={"StudyInstanceUID": "1.2.3"}) == []
    assert requests.get(url + "/studies?Nonsense=1", timeout=10).status_code == 400
    assert requests.get(url + "/studies/1.2.3", timeout=10).status_code == 404


def test_series_and_instances_of_a_study(client):
    study = client.search_for_studies(limit=1)[0]["0020000D"]["Value"][0]
    (series,) = client.search_for_series(study)
    held = client.search_for_instances(study, series["0020000E"]["Value"][0])
    assert len(held) == 2 and len(client.search_for_instances(study)) == 2


def test_what_is_retrieved_is_what_was_stored_to_the_byte(url, cohort):
    archive = DicomWeb(url)
    found = set()
    for study in {answer["0020000D"]["Value"][0] for answer in archive.list_instances({}, FIELDS)}:
        with archive.retrieve(study) as parts:
            found |= {content_digest(b"".join(part.body)) for part in parts}
    assert found == {content_digest(image.file) for image in cohort.images}


def test_dicomweb_client_reads_the_images(client, cohort):
    wanted = dcmread(io.BytesIO(cohort.images[0].file))
    (got,) = [d for d in client.retrieve_study(wanted.StudyInstanceUID) if d.SOPInstanceUID == wanted.SOPInstanceUID]
    assert np.array_equal(got.pixel_array, wanted.pixel_array)
    (one,) = [client.retrieve_instance(wanted.StudyInstanceUID, wanted.SeriesInstanceUID, wanted.SOPInstanceUID)]
    assert one.PatientName == wanted.PatientName


def test_metadata_refers_to_pixels_and_does_not_hold_them(client, url, cohort):
    wanted = dcmread(io.BytesIO(cohort.images[0].file))
    answer = client.retrieve_study_metadata(wanted.StudyInstanceUID)
    assert len(answer) == 2
    assert all(item["7FE00010"]["BulkDataURI"].startswith(url) for item in answer)


def test_it_does_not_transcode(url, cohort):
    study = dcmread(io.BytesIO(cohort.images[0].file)).StudyInstanceUID
    accept = 'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.90'
    assert requests.get(f"{url}/studies/{study}", headers={"Accept": accept}, timeout=10).status_code == 406


def test_store_then_find_then_retrieve(tmp_path, cohort):
    with served(tmp_path) as base:
        client = DICOMwebClient(base)
        datasets = [dcmread(io.BytesIO(image.file)) for image in cohort.images[:3]]
        client.store_instances(datasets)
        assert uids(client.search_for_instances()) == {d.SOPInstanceUID for d in datasets}
        datasets[0].ImageComments = "changed"
        with pytest.raises(requests.HTTPError, match="409"):
            client.store_instances([datasets[0]])
        with pytest.raises(requests.HTTPError, match="409"):
            client.store_instances([datasets[1]], study_instance_uid="1.2.3")
    assert sorted(len(path.name) for path in tmp_path.glob("*")) == [68, 68, 68]


@pytest.mark.parametrize("body", [b"", b"--x\r\n\r\nnot DICOM\r\n--x--", b"--x\r\nContent-Length: 99\r\n\r\nshort"])
def test_store_refuses_what_is_no_dicom(tmp_path, body):
    with served(tmp_path) as base:
        kind = 'multipart/related; type="application/dicom"; boundary=x'
        answer = requests.post(base + "/studies", data=body, headers={"Content-Type": kind}, timeout=10)
    assert answer.status_code in (400, 409) and not list(tmp_path.glob("*"))


def test_serves_on_a_socket_that_is_open_already(tmp_path, cohort):
    write_cohort(cohort, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fd, port = listener.fileno(), listener.getsockname()[1]
        with served(tmp_path, "--fd", str(fd), pass_fds=(fd,)):
            assert len(DicomWeb(f"http://127.0.0.1:{port}/dicom-web").list_instances({}, FIELDS)) == len(cohort.images)


def test_listens_on_loopback_only(tmp_path):
    argv = [sys.executable, "-m", "infra.hospital", "--root", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]
    assert "loopback" in subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False).stderr


def test_says_nothing_of_what_it_serves(tmp_path, cohort):
    write_cohort(cohort, tmp_path)
    archive = served(tmp_path, stderr=subprocess.PIPE)
    with archive as base:
        DICOMwebClient(base).search_for_studies(search_filters={"PatientID": cohort.inside[0].patient})
    assert archive.process.stdout.read() == "" and archive.process.stderr.read() == ""


def test_agrees_with_orthanc(url, cohort, tmp_path):
    """The same questions, the same instances, the same bytes after the file meta group."""
    with running_orthanc(tmp_path) as orthanc:
        for image in cohort.images:
            orthanc.call("POST", "/instances", image.file)
        ours, theirs = DicomWeb(url), DicomWeb(orthanc.url)
        for keys in (
            {"Modality": "DX"},
            {"BodyPartExamined": "HAND"},
            {"StudyDate": "20240101-20241231", "BodyPartExamined": "CHEST"},
        ):
            found = [uids(archive.list_instances(keys, FIELDS)) for archive in (ours, theirs)]
            assert found[0] == found[1] and found[0]
        study = dcmread(io.BytesIO(cohort.images[0].file)).StudyInstanceUID
        digests = []
        for archive in (ours, theirs):
            with archive.retrieve(study) as parts:
                digests.append({content_digest(b"".join(part.body)) for part in parts})
        assert digests[0] == digests[1]
