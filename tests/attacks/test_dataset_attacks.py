"""D02, D04 to D09, D11, D13, D14: the dataset's paper, its pseudonyms, and what is left of a record's metadata."""

import base64
import hashlib
import io
import json

import pytest
from pydicom import dcmread

from infra.hospital.cohort import make_cohort
from infra.hospital.paper import OUTER_QUERY, make_records, site_limits
from policies.minimise import minimise, project_key, pseudonym
from policies.records import records_root, write_records
from rapha.errors import ConfigurationError, Refusal
from rapha.merkle import merkle_root
from tasks.training.manifest import manifest
from tests.fixtures.manifest import KEYS, TRUSTED, Before, an_attempt, declaration, document, files, records, sign_manifest

KEY = bytes(range(1, 33))


def refused(folder, raw=None, found=None, *, number=1, **job):
    with pytest.raises(Refusal) as caught:
        manifest(
            Before(),
            an_attempt(folder, number),
            declaration(**job),
            *files(folder, raw, found),
            TRUSTED,
            OUTER_QUERY,
            site_limits(),
        )
    return caught.value.codes


def covering(found, **changes):
    """A signed manifest over other records."""
    patients = len({record.patient for record in found})
    counts = {"record_set__root": records_root(found), "record_set__count": len(found), "record_set__patients": patients}
    return sign_manifest(document(**counts, **changes), KEYS)


def test_D02_a_job_for_another_dataset_refuses(tmp_path):
    assert refused(tmp_path, dataset__cohort="dataset-b") == ("cohort-differs",)


@pytest.mark.parametrize("name", ["../chest-dx", "chest-dx/../other", "/etc/passwd", "chest-dx\x00", "CHEST-DX", ".", ""])
def test_D02_a_dataset_name_is_a_name_and_never_a_path(name):
    with pytest.raises(ValueError, match=r"pattern|json-bad-text|NUL"):
        declaration(dataset__cohort=name)


def test_D02_a_link_to_another_records_file_refuses(tmp_path):
    _, path = files(tmp_path)
    (tmp_path / "other.jsonl").write_bytes(write_records(records(9)))
    path.unlink()
    path.symlink_to(tmp_path / "other.jsonl")
    with pytest.raises(Refusal) as caught:
        manifest(
            Before(), an_attempt(tmp_path), declaration(), tmp_path / "manifest.json", path, TRUSTED, OUTER_QUERY, site_limits()
        )
    assert caught.value.codes == ("records-count-differs", "records-root-differs")


@pytest.mark.parametrize("key", [b"", KEY[:16], bytes(32), b"changeme" * 4, base64.b64encode(KEY)])
def test_D04_a_key_that_is_absent_short_or_a_default_starts_nothing(key):
    with pytest.raises(ConfigurationError):
        project_key(key, "chest-lesion")


def test_D05_no_unkeyed_digest_of_an_identifier_appears():
    """Neither as pseudonym nor beside it: a dictionary of all numbers finds nobody."""
    cohort = make_cohort(8)
    text = write_records(make_records(cohort, KEY)).decode() + json.dumps(_minimised(cohort))
    for identifier in cohort.identifiers:
        for form in (identifier, identifier.lower(), identifier.upper(), identifier.lstrip("0")):
            for algorithm in ("md5", "sha1", "sha256", "sha512", "blake2b"):
                assert hashlib.new(algorithm, form.encode()).hexdigest()[:16] not in text


def test_D05_pseudonyms_need_the_hospitals_key():
    ours, theirs = (project_key(key, "chest-lesion") for key in (KEY, bytes(range(2, 34))))
    assert pseudonym(ours, "patient", "HX12345678") != pseudonym(theirs, "patient", "HX12345678")


def test_D06_one_patient_has_another_name_in_another_project():
    cohort = make_cohort(8)
    one, two = (make_records(cohort, KEY, project) for project in ("chest-lesion", "another"))
    assert not {r.patient for r in one} & {r.patient for r in two}
    assert not {r.record for r in one} & {r.record for r in two}


def test_D06_a_manifest_for_two_projects_refuses(tmp_path):
    assert refused(tmp_path, sign_manifest(document(projects=["chest-lesion", "another"]), KEYS)) == (
        "manifest-several-projects",
    )


def test_D07_a_patient_whose_number_is_written_in_several_ways_counts_once():
    cohort = make_cohort(16)
    written = {str(dcmread(io.BytesIO(image.file), stop_before_pixels=True).PatientID) for image in cohort.inside}
    assert len(written) > 16
    assert len({record.patient for record in make_records(cohort, KEY)}) == 16


def test_D08_nothing_planted_in_a_real_file_survives_minimisation():
    """Text, private attributes, nested sequences, UIDs, dates, names in three character sets, pixels as text."""
    cohort = make_cohort(16)
    text = json.dumps(_minimised(cohort), ensure_ascii=False)
    assert len(cohort.identifiers) > 16 * 10
    for identifier in cohort.identifiers:
        for form in (
            identifier,
            identifier[::-1],
            identifier.encode().hex(),
            base64.b64encode(identifier.encode()).decode().rstrip("="),
        ):
            assert form.casefold() not in text.casefold()


def test_D08_overlays_documents_and_reports_do_not_pass():
    dataset = {
        "60003000": {"vr": "OW", "InlineBinary": "UGxhbnRlZA=="},
        "00420011": {"vr": "OB", "InlineBinary": "JVBERi0="},
        "0040A730": {"vr": "SQ", "Value": [{"0040A160": {"vr": "UT", "Value": ["seen by Dr Planted"]}}]},
        "00081140": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2.3.4.5.6.7.8"]}}]},
        "00081140".replace("1140", "0018"): {"vr": "UI", "Value": ["1.2.3.4.5.6.7.9"]},
        "00041500": {"vr": "CS", "Value": ["PLANTED", "FILE"]},
    }
    kept = minimise(dataset, project_key(KEY, "p"))
    assert list(kept) == ["00080018"] and len(kept["00080018"]["Value"][0]) == 64


def test_D09_names_are_whole_digests_and_do_not_collide():
    key = project_key(KEY, "chest-lesion")
    names = {pseudonym(key, "patient", f"{n}") for n in range(20_000)}
    assert len(names) == 20_000 and {len(name) for name in names} == {64}


@pytest.mark.parametrize("form", ["twice", "reordered"])
def test_D11_records_doubled_or_reordered_after_signing_refuse(tmp_path, form):
    _, path = files(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[-1]] if form == "twice" else lines[::-1]))
    with pytest.raises(Refusal) as caught:
        manifest(
            Before(), an_attempt(tmp_path), declaration(), tmp_path / "manifest.json", path, TRUSTED, OUTER_QUERY, site_limits()
        )
    assert caught.value.codes == ("records-duplicate",)


def test_D13_putting_the_older_manifest_back_refuses(tmp_path):
    """Somebody has said no: version 2 is without them. The signed version 1 is still a good signature, and no way back."""
    fewer = records(9)
    newer = covering(fewer, version_number=2, manifest_id="chest-dx-2")
    manifest(Before(), an_attempt(tmp_path), declaration(), *files(tmp_path, newer, fewer), TRUSTED, OUTER_QUERY, site_limits())
    assert refused(tmp_path, sign_manifest(document(manifest_id="chest-dx-0"), KEYS), records(), number=2) == (
        "manifest-version-older",
    )


def test_D13_taking_somebody_out_needs_a_new_version(tmp_path):
    manifest(Before(), an_attempt(tmp_path), declaration(), *files(tmp_path), TRUSTED, OUTER_QUERY, site_limits())
    fewer = records(9)
    assert refused(tmp_path, None, fewer, number=2) == ("records-count-differs", "records-root-differs")
    assert refused(tmp_path, covering(fewer), fewer, number=3) == ("manifest-version-reused",)


def test_D13_opt_outs_that_were_applied_long_ago_refuse(tmp_path):
    stale = document()["consent"]["opt_outs_applied_at"] - 40 * 86400
    assert refused(tmp_path, sign_manifest(document(consent__opt_outs_applied_at=stale), KEYS)) == ("opt-outs-stale",)


@pytest.mark.parametrize("patients", range(1, 8))
def test_D14_a_cohort_of_one_to_seven_people_refuses(tmp_path, patients):
    few = records(patients, each=12)
    assert refused(tmp_path, covering(few, limits__min_patients=1), few) == ("cohort-too-small",)


@pytest.mark.parametrize("cap", [1, 7])
def test_D14_a_job_that_buys_so_few_records_refuses(tmp_path, cap):
    assert refused(tmp_path, budget__max_records=cap) == ("job-too-few-records",)


def test_D14_the_empty_cohort_has_no_manifest():
    assert merkle_root([]) == records_root([])
    with pytest.raises(Refusal):
        sign_manifest(document(record_set__count=0), KEYS)


def _minimised(cohort):
    key = project_key(KEY, "chest-lesion")
    return [minimise(dcmread(io.BytesIO(image.file)).to_json_dict(), key) for image in cohort.images]
