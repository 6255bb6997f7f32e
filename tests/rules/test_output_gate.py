"""The output gate on facts and on small folders: what clears, and each code from one change."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from policies.output import OUTPUT_CHECKS, OutputLimits, metric_bits, output_gate
from policies.required import REQUIRED_CHECKS
from tasks.guarding.inspection import leak_budget
from tasks.guarding.metrics import round_metric
from tasks.guarding.tensors import Tensor, rounded
from tests.fixtures.outputs import arrays, declared, evidence, judged, write_outputs


def test_a_good_folder_clears_and_is_rewritten(tmp_path: Path) -> None:
    codes, seen = judged(write_outputs(tmp_path))
    assert codes == ()
    back = load(seen.files["weights.safetensors"])
    assert {n: a.shape for n, a in back.items()} == {n: a.shape for n, a in arrays().items()}
    assert all(np.allclose(back[n], a, rtol=2**-10) for n, a in arrays().items())
    assert json.loads(seen.files["metrics.json"]) == {"validation-accuracy": 0.877, "loss": 0.432}


def test_the_checks_are_those_that_the_door_requires() -> None:
    assert {c.name for c in OUTPUT_CHECKS} == REQUIRED_CHECKS["output"]


def test_the_released_bytes_keep_only_the_sites_mantissa_bits(tmp_path: Path) -> None:
    _, seen = judged(write_outputs(tmp_path), limits=OutputLimits(mantissa_bits=7))
    for array in load(seen.files["weights.safetensors"]).values():
        assert not np.any(array.view(np.uint32) & np.uint32((1 << 16) - 1))


@pytest.mark.parametrize("bits", [0, 3, 7, 10, 23])
def test_rounding_twice_changes_nothing_and_is_the_nearest(bits: int) -> None:
    values = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    limits = OutputLimits(mantissa_bits=bits)
    once = rounded(Tensor("t", "F32", (5000,), values.view(np.uint32)), limits)
    assert np.array_equal(rounded(once, limits).bits, once.bits)
    assert np.max(np.abs(once.bits.view(np.float32) - values) / np.abs(values)) <= 2.0 ** -(bits + 1)


def test_negative_zero_and_subnormals_become_zero_and_the_largest_stays_finite() -> None:
    values = np.array([-0.0, 1e-40, -1e-40, 3.4028235e38, -3.4028235e38], dtype=np.float32)
    out = rounded(Tensor("t", "F32", (5,), values.view(np.uint32)), OutputLimits()).bits
    assert list(out[:3]) == [0, 0, 0]
    assert np.all(np.isfinite(out.view(np.float32)))


def test_the_leak_budget_is_counted_from_the_declaration() -> None:
    budget = leak_budget(declared(), OutputLimits(mantissa_bits=10))
    assert budget.weights_mantissa == 16 * 10
    assert budget.weights_range == 16 * 9
    assert budget.metrics == metric_bits(0, 1, 3) + metric_bits(0, 100, 3)
    assert 10 <= metric_bits(0, 1, 3) <= 16


def test_a_smaller_leak_allowance_refuses(tmp_path: Path) -> None:
    codes, _ = judged(write_outputs(tmp_path), limits=OutputLimits(max_leak_bits=100))
    assert codes == ("output-leak-budget",)


def test_the_manifests_bounds_bind(tmp_path: Path) -> None:
    folder = write_outputs(tmp_path)
    assert judged(folder, granted_bytes=10)[0] == ("output-over-manifest",)
    assert judged(folder, granted_metrics=1)[0] == ("metrics-too-many",)


def test_metrics_round_to_their_digits_inside_their_range() -> None:
    metric = declared().outputs.metrics[0]
    assert round_metric(0.123456, metric) == 0.123
    assert round_metric(1e-15, metric) == 0.0
    assert round_metric(0.9999, metric) == 1.0


def test_evidence_judged_by_other_numbers_is_refused(tmp_path: Path) -> None:
    _, seen = judged(write_outputs(tmp_path))
    codes = output_gate(OutputLimits(mantissa_bits=5)).judge(evidence(seen, OutputLimits())).codes
    assert codes == ("limits-differ",)


def test_structure_scope_cannot_stand_for_a_run(tmp_path: Path) -> None:
    folder = write_outputs(tmp_path)
    assert judged(folder, scope="structure", attempt=1)[0] == ("output-before-training",)
    assert judged(folder, scope="structure", attempt=0)[0] == ()
    assert judged(folder, after="cut")[0] == ("output-before-training",)


def test_half_precision_formats_round_trip(tmp_path: Path) -> None:
    tensors = [{"name": "h", "shape": [64], "dtype": "F16"}]
    values = np.random.default_rng(0).standard_normal(64).astype(np.float16)
    folder = write_outputs(tmp_path, weights=save({"h": values}), numbers=b"{}")
    codes, seen = judged(folder, declared(outputs={"tensors": tensors, "metrics": []}))
    assert codes == ()
    assert np.array_equal(load(seen.files["weights.safetensors"])["h"], values)
