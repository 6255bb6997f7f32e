"""The accuracy that model.json states, measured again on made-up images that nobody has seen; chance does not reach it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infra.models.radiology import train as radiology
from infra.models.radiology.analyse import Spots
from infra.models.slides import train as slides
from infra.models.slides.analyse import Nests
from policies.model import read_model

Measure = Callable[..., tuple[float, float]]
MODELS = [
    pytest.param(radiology, Spots, {"scans": 40}, id="radiology"),
    pytest.param(slides, Nests, {"slides": 8}, id="slides"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("script", "kind", "size"), MODELS)
def test_it_finds_as_well_as_it_says(script: Any, kind: type[torch.nn.Module], size: dict[str, int]) -> None:
    network = kind()
    network.load_state_dict(load_file(script.HERE / "weights.safetensors"))
    stated = read_model((script.HERE / "model.json").read_bytes()).accuracy
    found, false = script.measure(network, seed=4711, **size)
    assert found >= stated.found - 0.05 and false <= stated.false_per_image + 0.05


@pytest.mark.parametrize(("script", "kind", "size"), MODELS)
def test_random_weights_do_not(script: Any, kind: type[torch.nn.Module], size: dict[str, int]) -> None:
    torch.manual_seed(1)
    found, false = script.measure(kind(), seed=4711, **{name: count // 2 for name, count in size.items()})
    assert found < 0.5 or false > 1


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("script", [radiology, slides], ids=["radiology", "slides"])
def test_the_committed_script_gives_the_committed_weights(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the machine that made them, to the byte; elsewhere, as good."""
    committed = load_file(script.HERE / "weights.safetensors")
    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr(script, "write_model", lambda *_, **measured: measured)
    script.main()
    made = load_file(tmp_path / "weights.safetensors")
    assert {name: value.shape for name, value in made.items()} == {name: value.shape for name, value in committed.items()}
    close = all(torch.allclose(made[name], committed[name], atol=1e-3) for name in made)
    network = (Spots if script is radiology else Nests)()
    network.load_state_dict(made)
    found, false = script.measure(network)
    assert close or (found >= 0.95 and false <= 0.05)
