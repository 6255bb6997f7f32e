"""There is something to learn in the cohort, and only learning finds it."""

import json
import os
import runpy
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from infra.hospital.cohort import make_cohort
from infra.workload.bundle import METRICS, SOURCE, TENSORS, THRESHOLD
from tests.fixtures.cohort import clear_records, served_cohort


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(metrics, weights, seconds) of the demo's own trainer on the demo's own cohort."""
    out = tmp_path_factory.mktemp("out")
    with served_cohort(make_cohort()) as fd, pytest.MonkeyPatch.context() as patch:
        for name, value in {"LOADER_FDS": fd, "OUT": out, "EPOCHS": 10, "BATCH_SIZE": 16, "SEED": 7}.items():
            patch.setenv(f"RAPHA_{name}", str(value))
        patch.delenv("RAPHA_BASE_WEIGHTS", raising=False)
        started = time.monotonic()
        runpy.run_path(os.fspath(SOURCE / "train.py"), run_name="__main__")
        seconds = time.monotonic() - started
    return json.loads((out / "metrics.json").read_text()), load_file(out / "weights.safetensors"), seconds


def test_the_network_passes_the_threshold_in_time(trained):
    metrics, _, seconds = trained
    assert metrics["accuracy"] >= THRESHOLD
    assert seconds < 25


@pytest.mark.parametrize("guess", ["majority-accuracy", "mean-intensity-accuracy", "untrained-accuracy"])
def test_what_has_not_learnt_fails_the_threshold(trained, guess):
    assert trained[0][guess] < THRESHOLD - 0.1


def test_writes_exactly_what_the_declaration_names(trained):
    metrics, weights, _ = trained
    assert set(metrics) == set(METRICS) and all(0 <= value <= 1 for value in metrics.values())
    assert {name: array.shape for name, array in weights.items()} == TENSORS
    assert all(array.dtype == np.float32 for array in weights.values())


@pytest.mark.parametrize("measure", [np.mean, np.std, np.median, np.max, np.min, lambda a: np.percentile(a, 99)])
def test_no_single_number_of_an_image_gives_it_away(measure):
    """Even the best threshold on all images, test included, stays under the bar."""
    records = clear_records(make_cohort())
    values = np.array([measure(r["array"].astype(float)) for r in records])
    labels = np.array([r["label"] for r in records])
    right = [((values > cut) == labels).mean() for cut in values]
    assert max(max(r, 1 - r) for r in right) < THRESHOLD - 0.1


def test_each_patient_has_both_classes_and_pseudonyms_join_what_was_written_in_several_ways():
    records = clear_records(make_cohort(12))
    by_patient: dict[str, list[int]] = {}
    for record in records:
        by_patient.setdefault(record["patient"], []).append(record["label"])
    assert len(by_patient) == 12
    assert all(sorted(labels) == [0, 0, 1, 1] for labels in by_patient.values())
