"""The stage analyse with everything real: sealed studies, the study reader, sandboxes, both models, and models that lie."""

import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, RLELossless
from safetensors.torch import load_file, save

from blocks.launcher import Launcher
from blocks.models import ModelPackage, load_package
from blocks.study import OpenedInstance, StudyReader
from infra.hospital.reading_cohort import Kind, identifiers, make_study, truth
from infra.models.radiology.train import DISTANCE
from infra.models.slides.train import DISTANCE as SLIDE_DISTANCE
from rapha.errors import PeerError, Refusal
from tasks.reading.analyse import AnalyseLimits, Analysis, _spec, analyse
from tests.fixtures.studies import RADIOLOGY, SLIDE_PACKAGE, facts
from tests.fixtures.study_running import (
    Hospital,
    bare_limits,
    copied,
    files_of,
    full_limits,
    make_hospital,
    model_that,
)

MODELS = (load_package(RADIOLOGY), load_package(SLIDE_PACKAGE))


@pytest.fixture(scope="module")
def hospital() -> Iterator[Hospital]:
    made = make_hospital()
    yield made
    made.close()


def nothing(name: str, handed: int, total: int) -> None:
    """No progress is wanted."""


def run(
    hospital: Hospital, study: Sequence[Dataset], models: Sequence[ModelPackage], limits: AnalyseLimits, progress: Any = nothing
) -> Analysis:
    with hospital.opened(files_of(study)) as (reader, instances):
        return analysed(reader, instances, hospital, models, limits, progress)


def analysed(
    reader: StudyReader,
    instances: Sequence[OpenedInstance],
    hospital: Hospital,
    models: Sequence[ModelPackage],
    limits: AnalyseLimits,
    progress: Any = nothing,
) -> Analysis:
    return analyse(reader, [one.facts for one in instances], hospital.launcher, models, limits, progress)


def missed(study: Sequence[Dataset], analysis: Analysis, distance: float) -> tuple[int, int]:
    """(planted lesions without a finding within `distance`, findings without a planted lesion)."""
    planted = [(index, spot) for index, one in enumerate(study) for spot in truth(study)[str(one.SOPInstanceUID)]]
    found = [(one.index, *one.points[0]) for result in analysis.results for one in result.findings]
    near = [[at == index and np.hypot(x - spot.x, y - spot.y) <= distance for at, x, y in found] for index, spot in planted]
    lost = sum(not any(row) for row in near)
    extra = sum(not any(row[k] for row in near) for k in range(len(found)))
    return lost, extra


@pytest.mark.parametrize(("kind", "distance"), [("ct", DISTANCE), ("dx", DISTANCE * 384 / 256), ("sm", SLIDE_DISTANCE)])
def test_planted_lesions_are_found_where_they_are(hospital: Hospital, kind: Kind, distance: float) -> None:
    study = make_study(kind, 11, 2)
    told: list[tuple[str, int, int]] = []
    analysis = run(hospital, study, MODELS, full_limits(), lambda *counts: told.append(counts))
    assert missed(study, analysis, distance) == (0, 0)
    assert analysis.analysed | set(analysis.left_out) == set(range(len(study))) and analysis.critical >= 1
    assert not analysis.analysed & set(analysis.left_out)
    if kind == "sm":
        assert (analysis.analysed, analysis.left_out) == ({0, 2}, {1: "level-not-needed", 3: "slide-label"})
    counts = [handed for _, handed, _ in told]
    assert counts == sorted(counts) and counts[-1] == len(analysis.analysed)


def test_a_study_in_jpeg_2000_gives_the_same_findings(hospital: Hospital) -> None:
    study, packed = make_study("ct", 11, 2), make_study("ct", 11, 2)
    for number, one in enumerate(packed):
        one.compress(JPEG2000Lossless if number % 2 else RLELossless, generate_instance_uid=False)
    plain, other = (run(hospital, instances, MODELS, full_limits()) for instances in (study, packed))
    assert plain.findings >= 2 and plain.analysed == other.analysed
    assert [one.findings for one in plain.results] == [one.findings for one in other.results]


@pytest.mark.parametrize("kind", ["ct", "sm"])
def test_blanks_give_no_finding_and_are_analysed_all_the_same(hospital: Hospital, kind: Kind) -> None:
    analysis = run(hospital, make_study(kind, 12, 0), MODELS, full_limits())
    assert analysis.findings == 0 and analysis.analysed


def random_weights(folder: Path, package: Path) -> ModelPackage:
    torch.manual_seed(1)
    learnt = load_file(package / "weights.safetensors")
    weights = save({name: torch.randn_like(value) * value.std() for name, value in learnt.items()})
    return load_package(copied(folder, weights=weights))


def test_with_random_weights_the_same_model_finds_nothing_that_is_there(hospital: Hospital, tmp_path: Path) -> None:
    study = make_study("ct", 11, 2)
    try:
        analysis = run(hospital, study, [random_weights(tmp_path, RADIOLOGY)], full_limits())
    except Refusal as refusal:  # so many findings that none is believed
        assert refusal.codes == ("findings-count",)
    else:
        assert missed(study, analysis, DISTANCE) != (0, 0)


@pytest.fixture(scope="module")
def blank() -> list[Dataset]:
    return make_study("ct", 13, 0)[:2]


LIES = {
    "says that it read what it did not": ("say(ALL)", "analyse-unread"),
    "reads one of two": ("loader.read(0); say(ALL)", "analyse-unread"),
    "calls undecodable what decodes": (
        "read_all(); say([ALL[0], {'index': 1, 'status': 'not-applicable', 'reason': 'undecodable'}])",
        "analyse-not-undecodable",
    ),
    "leaves an instance out": ("read_all(); say(ALL[:1])", "findings-incomplete"),
    "writes nothing": ("read_all()", "analyse-odd-output"),
    "writes a second file": ("read_all(); say(ALL); Path('/out/more').write_text('x')", "analyse-odd-output"),
    "writes a link": ("read_all(); os.symlink('/etc/passwd', '/out/findings.json')", "analyse-odd-output"),
    "writes text": ("read_all(); Path('/out/findings.json').write_text('Doe^Jane')", "json-malformed"),
    "has a name of its own": ("NAMED['name'] = 'other'; read_all(); say(ALL)", "findings-model"),
    "smuggles a field": ("read_all(); say([{**one, 'note': 'Doe^Jane'} for one in ALL])", "findings-fields"),
    "fails": ("sys.exit('Doe^Jane')", "analyse-failed"),
    "fails after a right answer": ("read_all(); say(ALL); os._exit(3)", "analyse-failed"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_model_is_not_believed_that(hospital: Hospital, tmp_path: Path, blank: list[Dataset], lie: str) -> None:
    source, code = LIES[lie]
    with pytest.raises(Refusal) as refused:
        run(hospital, blank, [model_that(tmp_path, source)], bare_limits(tmp_path))
    assert code in refused.value.codes
    assert "Doe" not in str(refused.value) and refused.value.__cause__ is None


def test_an_honest_model_of_the_same_kind_is_believed(hospital: Hospital, tmp_path: Path, blank: list[Dataset]) -> None:
    analysis = run(hospital, blank, [model_that(tmp_path, "read_all(); say(ALL)")], bare_limits(tmp_path))
    assert (analysis.analysed, analysis.findings, analysis.left_out) == ({0, 1}, 0, {})


def test_a_model_that_does_not_end_is_ended(hospital: Hospital, tmp_path: Path, blank: list[Dataset]) -> None:
    endless = model_that(tmp_path, "import time\nwhile True: time.sleep(1)")
    with pytest.raises(Refusal) as refused:
        run(hospital, blank, [endless], bare_limits(tmp_path, seconds=2))
    assert "analyse-timeout" in refused.value.codes and "analyse-not-dead" not in refused.value.codes


def test_every_frame_of_a_multi_frame_image_must_be_read(hospital: Hospital, tmp_path: Path, blank: list[Dataset]) -> None:
    slices = np.stack([one.pixel_array for one in make_study("ct", 13, 0)])
    blank[0].NumberOfFrames = str(len(slices))
    blank[0].add_new(0x7FE00010, "OW", slices.tobytes())
    first = "loader.read(0, frame=0); loader.read(1); say(ALL)"
    each = "[loader.read(0, frame=frame) for frame in range(loader.facts(0)['frames'])]; loader.read(1); say(ALL)"
    with pytest.raises(Refusal) as refused:
        run(hospital, blank, [model_that(tmp_path, first)], bare_limits(tmp_path))
    assert refused.value.codes == ("analyse-unread",)
    assert run(hospital, blank, [model_that(tmp_path, each)], bare_limits(tmp_path)).analysed == {0, 1}


def test_weights_and_code_that_were_changed_after_they_were_loaded_do_not_run(
    hospital: Hospital, tmp_path: Path, blank: list[Dataset]
) -> None:
    package = model_that(tmp_path, "read_all(); say(ALL)")
    package.weights.write_bytes(b"other")
    with pytest.raises(Refusal) as refused:
        run(hospital, blank, [package], bare_limits(tmp_path))
    assert refused.value.codes == ("weights-digest",)
    with pytest.raises(Refusal) as refused:
        run(hospital, blank, [MODELS[0]], replace(bare_limits(tmp_path), script_digest="sha256:" + "0" * 64))
    assert refused.value.codes == ("launcher-digest",)


def test_a_model_that_ends_over_what_this_node_cannot_read_is_tried_again_and_not_refused(
    hospital: Hospital, tmp_path: Path, blank: list[Dataset]
) -> None:
    files = hospital.seal(files_of(blank))
    with hospital.study() as reader:
        instances = reader.open(files)
        files[1].path.unlink()
        with pytest.raises(PeerError) as failed:
            analysed(reader, instances, hospital, [model_that(tmp_path, "read_all(); say(ALL)")], bare_limits(tmp_path))
    assert failed.value.codes == ("study-file-missing",)


def test_other_bytes_than_arrived_are_not_analysed(hospital: Hospital, tmp_path: Path, blank: list[Dataset]) -> None:
    files = hospital.seal(files_of(blank))
    with hospital.study() as reader:
        instances = reader.open([replace(files[0], sha256=files[1].sha256), files[1]])
        with pytest.raises(Refusal) as refused:
            analysed(reader, instances, hospital, [model_that(tmp_path, "say(ALL)")], bare_limits(tmp_path))
    assert refused.value.codes == ("analyse-other-content",)


PRY = """
from pathlib import Path
found = [json.dumps(dict(os.environ)), json.dumps(sys.argv)]
for index in loader.indices:
    name, sample = loader.records[index], loader.read(index)
    found += [json.dumps(loader.facts(index)), repr(name), json.dumps([sample.record, sample.patient, sample.attributes])]
    found.append(sample.array.tobytes().decode("latin-1"))
for top in ("/workload", "/rapha", "/tmp", "/out", "/etc", "/proc/1", "/proc/self", "/dev/shm"):
    for path in Path(top).rglob("*") if "proc" not in top else Path(top).glob("*"):
        try:
            if path.is_file() and not {".venv", "pagemap", "mem", "weights.safetensors", "kmsg"} & set(path.parts):
                with path.open("rb") as stream:
                    found.append(str(path) + stream.read(1 << 20).decode("latin-1"))
        except OSError:
            pass
Path("/out/findings.json").write_text("\\n".join(found))
"""


@pytest.mark.parametrize("kind", ["dx", "sm"])
def test_no_identifier_is_in_the_sandbox(hospital: Hospital, tmp_path: Path, kind: Kind) -> None:
    study = make_study(kind, 14, 1)
    needles = identifiers(study)
    assert len(needles) >= 6
    source = PRY if kind == "dx" else PRY.replace("loader.read(index)", "loader.read(index, region=(0, 0, 64, 64))")
    package = model_that(tmp_path, source)
    limits = bare_limits(tmp_path, output_bytes=64 << 20)
    indexes = [0] if kind == "dx" else [0, 1, 2]
    with hospital.opened(files_of(study)) as (reader, _), Launcher(hospital.launcher, peer="launcher") as launcher:
        theirs, ours = socket.socketpair()
        reader.attach([theirs.detach()], indexes)
        launcher.launch("sha256:" + "1" * 64, 1, _spec(package, limits, tmp_path), limits.sandbox, [ours.fileno()])
        ours.close()
        while (now := launcher.wait(5)).state == "running":
            pass
        assert now.exit == "completed"
        launcher.collect(tmp_path / "out")
    seen = (tmp_path / "out" / "findings.json").read_text("latin-1")
    assert json.dumps("MONOCHROME2" if kind == "dx" else "YBR_FULL_422") in seen, "it did see the attributes"
    assert [needle for needle in needles if needle in seen] == []
    assert not any(part in seen for needle in needles for part in needle.split("^") if len(part) >= 5 and not part.isdigit())


def test_a_study_without_anything_to_read_starts_no_sandbox(tmp_path: Path) -> None:
    report = facts(0, modality="SR", sop_class="1.2.840.10008.5.1.4.1.1.88.34")
    nobody: Any = None
    analysis = analyse(nobody, [report], tmp_path / "none.sock", MODELS, full_limits(), nothing)
    assert (analysis.analysed, analysis.left_out, analysis.results) == (set(), {0: "structured-report"}, ())


def test_a_launcher_that_is_gone_is_a_failed_peer(hospital: Hospital, tmp_path: Path, blank: list[Dataset]) -> None:
    with hospital.opened(files_of(blank)) as (reader, instances), pytest.raises(PeerError) as error:
        analyse(reader, [one.facts for one in instances], tmp_path / "none.sock", MODELS, full_limits(), nothing)
    assert error.value.codes == ("launcher-unreachable",)
