"""Model packages: what is loaded is what was allowed, to the byte; and the two that come with the node are what they say."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blocks.models import FILES, load_models, load_package, site_list
from infra.models.radiology import train as radiology
from infra.models.slides import train as slides
from policies.model import read_model
from rapha.canonical import canonical, digest
from rapha.errors import ConfigurationError, Refusal
from tests.fixtures.studies import RADIOLOGY, SLIDE_PACKAGE, declaration


def package(folder: Path, source: Path = RADIOLOGY) -> Path:
    place = folder / source.name
    place.mkdir()
    for name in FILES:
        shutil.copy(source / name, place / name)
    return place


def site(folder: Path, value: object) -> Path:
    path = folder / "models.json"
    path.write_text(json.dumps(value))
    return path


def load_codes(path: Path) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as refused:
        load_models(path)
    return refused.value.codes


@pytest.mark.parametrize("folder", [RADIOLOGY, SLIDE_PACKAGE])
def test_the_packages_that_come_with_the_node_are_whole_and_small(folder: Path) -> None:
    found = load_package(folder)
    assert found.weights.stat().st_size < 1 << 20
    assert found.model.accuracy.found >= 0.95 and found.model.accuracy.false_per_image <= 0.05
    declared = json.loads((folder / "declaration.json").read_bytes())
    said = json.loads((folder / "model.json").read_bytes())
    assert {**said, "accuracy": 0, "code": 0, "weights": 0} == {**declared, "accuracy": 0, "code": 0, "weights": 0}


def test_the_distance_is_the_one_that_the_scripts_measure_by() -> None:
    assert load_package(RADIOLOGY).model.accuracy.distance == radiology.DISTANCE
    assert load_package(SLIDE_PACKAGE).model.accuracy.distance == slides.DISTANCE


def test_a_package_has_one_digest_and_its_source_one_form(tmp_path: Path) -> None:
    here, there = load_package(RADIOLOGY), load_package(package(tmp_path))
    assert (here.digest, here.source) == (there.digest, there.source)


@pytest.mark.parametrize(
    ("name", "code"), [("analyse.py", "model-code"), ("weights.safetensors", "model-weights"), ("model.json", "json-malformed")]
)
def test_a_changed_byte_in_any_file_is_refused(tmp_path: Path, name: str, code: str) -> None:
    place = package(tmp_path)
    (place / name).write_bytes((place / name).read_bytes() + b"#")
    with pytest.raises(Refusal) as refused:
        load_package(place)
    assert refused.value.codes == (code,)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    place = package(tmp_path)
    (place / name).unlink()
    with pytest.raises(Refusal) as refused:
        load_package(place)
    assert refused.value.codes == ("model-unreadable",)


def test_the_sites_list_lets_in_what_it_names(tmp_path: Path) -> None:
    package(tmp_path), package(tmp_path, SLIDE_PACKAGE)
    listed = {"models": [{"folder": f.name, "digest": load_package(f).digest} for f in (RADIOLOGY, SLIDE_PACKAGE)]}
    assert [one.model.name for one in load_models(site(tmp_path, listed))] == ["lesion-radiology", "nest-slides"]
    assert site_list([RADIOLOGY])["models"][0]["digest"] == listed["models"][0]["digest"]


def test_a_package_of_another_digest_is_not_let_in(tmp_path: Path) -> None:
    place = package(tmp_path)
    allowed = load_package(place).digest
    model = json.loads((place / "model.json").read_bytes())
    model["manufacturer"] = "somebody else"
    (place / "model.json").write_text(json.dumps(model))
    assert load_package(place).digest != allowed
    assert load_codes(site(tmp_path, {"models": [{"folder": "radiology", "digest": allowed}]})) == ("models-other",)


GOOD = {"folder": "radiology", "digest": load_package(RADIOLOGY).digest}


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ({"models": []}, "models-none"),
        ({}, "models-malformed"),
        ([], "models-malformed"),
        ({"models": [GOOD], "more": 1}, "models-malformed"),
        ({"models": [{**GOOD, "more": "x"}]}, "models-malformed"),
        ({"models": [{**GOOD, "digest": GOOD["digest"][:20]}]}, "models-malformed"),
        ({"models": [GOOD, GOOD]}, "models-twice"),
        ({"models": [{**GOOD, "folder": "elsewhere"}]}, "model-unreadable"),
    ],
)
def test_a_wrong_list_is_a_code(tmp_path: Path, value: object, code: str) -> None:
    package(tmp_path)
    assert load_codes(site(tmp_path, value)) == (code,)


def test_no_list_is_a_code(tmp_path: Path) -> None:
    assert load_codes(tmp_path / "none.json") == ("models-missing",)


def changed(path: str, value: Any) -> bytes:
    model = declaration()
    at = model
    *before, last = path.split(".")
    for name in before:
        at = at[int(name)] if name.isdigit() else at[name]
    at[last] = value
    return canonical(model)


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("format", 2, "model-malformed"),
        ("format", "1", "model-malformed"),
        ("name", "Lesion", "model-malformed"),
        ("name", "../x", "model-malformed"),
        ("version", "1.0\n", "model-malformed"),
        ("manufacturer", "a^b", "model-malformed"),
        ("manufacturer", "", "model-malformed"),
        ("weights", "sha256:abc", "model-malformed"),
        ("extra", 1, "model-malformed"),
        ("seconds", 0, "model-malformed"),
        ("inputs.modalities", ["ct"], "model-malformed"),
        ("inputs.sop_classes", ["1.2.x"], "model-malformed"),
        ("findings.most", 100_000, "model-malformed"),
        ("findings.kinds", [], "model-schema"),
        ("findings.kinds.0.shapes", ["square"], "model-malformed"),
        ("findings.kinds.0.shapes", [], "model-schema"),
        ("findings.kinds.0.measurements", ["area"], "model-schema"),
        ("findings.kinds.0.critical_from", 2, "model-malformed"),
        ("findings.kinds.0.code.value", "1" * 17, "model-malformed"),
        ("findings.measurements.0.low", 5000.0, "model-schema"),
        ("accuracy.found", 1.5, "model-malformed"),
    ],
)
def test_one_wrong_thing_in_a_declaration_is_a_code(path: str, value: Any, code: str) -> None:
    with pytest.raises(Refusal) as refused:
        read_model(changed(path, value))
    assert refused.value.codes == (code,)


def test_the_weights_are_those_of_the_files_digest() -> None:
    for folder in (RADIOLOGY, SLIDE_PACKAGE):
        said = declaration(folder)
        assert said["weights"] == digest((folder / "weights.safetensors").read_bytes())
        assert said["code"] == digest((folder / "analyse.py").read_bytes())
