"""Baselines: the library's function to the last bit, with real weights, behind our network's interface."""

import copy
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import neuralop.models
import pytest
import torch
from torch import Tensor

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import read_json
from finetune.adapt import adapt, from_scratch
from pretrain.config import PretrainConfig
from pretrain.model import DatasetScaling, Operator, OperatorConfig, load_operator_files, save_operator
from pretrain.model.baseline import Baseline, BaselineConfig
from pretrain.run import freeze
from tests.operators import make_operator
from tests.training import ROOT

SPACE, T_IN, T_OUT = (16, 12), 3, 2
FNO = {"n_modes": [8, 6], "hidden_channels": 6, "n_layers": 2}
UNO = {
    "hidden_channels": 6, "lifting_channels": 8, "projection_channels": 8, "n_layers": 3,
    "uno_out_channels": [6, 8, 6], "uno_n_modes": [[6, 6], [4, 4], [6, 6]],
    "uno_scalings": [[1.0, 1.0], [0.5, 0.5], [2, 2]], "horizontal_skips_map": {2: 0}, "channel_mlp_skip": "linear",
}  # fmt: skip
EVERY = [
    ("FNO", FNO), ("FNO", FNO | {"factorization": "CP", "rank": 0.3}), ("FNO", FNO | {"factorization": "TT"}),
    ("TFNO", FNO | {"rank": 0.3}), ("UNO", UNO),
]  # fmt: skip


def config(architecture: str, arguments: Mapping[str, Any], **shape: Any) -> BaselineConfig:
    shape = {"space": SPACE, "in_channels": 2, "out_channels": 2, "in_timesteps": T_IN} | shape
    given = {"library": "neuraloperator", "architecture": architecture, "arguments": arguments}
    return build(BaselineConfig, given | shape)


def make_baseline(architecture: str = "TFNO", seed: int = 0, **shape: Any) -> Baseline:
    torch.manual_seed(seed)
    return Baseline(config(architecture, UNO if architecture == "UNO" else FNO, **shape))


def make_baseline_operator(architecture: str = "TFNO") -> Operator:
    toy = DatasetScaling(
        name="toy", channels=("a", "b"), mean=(2.0,) * 2, std=(1.5,) * 2, change_rms=(0.5,) * 2, dt=0.1
    )
    network = make_baseline(architecture).config
    return Operator(
        OperatorConfig(
            network=network, channels=("a", "b"), datasets=(toy,), predict="change", normalisation="mean_std"
        )
    )


@pytest.mark.parametrize(("architecture", "arguments"), EVERY)
def test_function_and_gradients_are_the_librarys(architecture: str, arguments: Mapping[str, Any]) -> None:
    torch.manual_seed(3)
    ours = Baseline(config(architecture, arguments, out_channels=1, out_timesteps=T_OUT))
    torch.manual_seed(3)
    theirs = getattr(neuralop.models, architecture)(in_channels=T_IN * 2, out_channels=T_OUT, **arguments)
    history = torch.randn(2, *SPACE, T_IN, 2)
    frames = [history[..., t, c] for t in range(T_IN) for c in range(2)]

    y, expected = ours(history), theirs(torch.stack(frames, dim=1))
    assert y.shape == (2, *SPACE, T_OUT, 1)
    for t in range(T_OUT):
        assert torch.equal(y[..., t, 0], expected[:, t])

    y.square().sum().backward()
    expected.square().sum().backward()
    gradients = {name.removeprefix("model."): p.grad for name, p in ours.named_parameters()}
    weights = dict(theirs.named_parameters())
    assert any(p.is_complex() for p in weights.values())
    assert len(weights) == len(gradients)
    for name, p in weights.items():
        found = gradients[name.replace(".", "__") if p.is_complex() else name]
        assert found is not None
        assert not found.is_complex()
        wanted = torch.view_as_real(p.grad) if p.is_complex() else p.grad
        torch.testing.assert_close(found, wanted, msg=name)


def test_autocast_changes_nothing() -> None:
    network, history = make_baseline("FNO"), torch.randn(2, *SPACE, T_IN, 2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = network(history.bfloat16().float())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, network(history.bfloat16()))


def test_threads_do_not_disturb_one_another() -> None:
    network, history = make_baseline(), torch.randn(1, *SPACE, T_IN, 2)
    expected = network(history)
    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        for result in pool.map(network, [history] * 100):
            assert torch.equal(result, expected)


def test_it_is_copied_and_saved_like_any_module() -> None:
    network, history = make_baseline(), torch.randn(1, *SPACE, T_IN, 2)
    y = network(history)
    assert torch.equal(copy.deepcopy(network)(history), y)
    assert all(isinstance(value, Tensor) for value in network.state_dict().values())
    other = make_baseline(seed=1)
    assert not torch.equal(other(history), y)
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(history), y)


@pytest.mark.parametrize("architecture", ["FNO", "TFNO", "UNO"])
def test_an_operator_with_a_baseline_is_saved_and_loaded(architecture: str, tmp_path: Path) -> None:
    operator = make_baseline_operator(architecture)
    save_operator(operator, tmp_path)
    loaded = load_operator_files(tmp_path)
    assert loaded.config == operator.config
    x, row = torch.randn(2, *SPACE, T_IN, 2), torch.zeros(2, dtype=torch.int64)
    assert torch.equal(loaded(x, row), operator(x, row))
    assert not torch.equal(from_scratch(operator, seed=9)(x, row), operator(x, row))


def test_an_operator_that_names_no_library_is_ours(tmp_path: Path) -> None:
    operator = make_operator()
    save_operator(operator, tmp_path)
    assert "library" not in read_json(tmp_path / "model.json")["network"]
    assert load_operator_files(tmp_path).config == operator.config


def test_an_error_in_a_saved_network_speaks_of_its_kind_alone() -> None:
    for operator, key in ((make_operator(), "widht"), (make_baseline_operator(), "librry")):
        content = operator.config.model_dump(mode="json")
        content["network"][key] = 1
        with pytest.raises(ConfigError, match=rf"key: network\.{key}: unknown key; did you mean '\w+'\?$"):
            build(OperatorConfig, content)


@pytest.mark.parametrize(("model", "message"), [
    ({"arguments": FNO | {"n_layer": 3}}, "n_layer is no argument of TFNO; did you mean 'n_layers'"),
    ({"arguments": {"n_modes": [8, 8]}}, "TFNO needs hidden_channels"),
    ({"arguments": FNO | {"in_channels": 3}}, "in_channels follows from the data"),
    ({"arguments": FNO | {"non_linearity": "relu"}}, "non_linearity of TFNO is code"),
    ({"arguments": FNO | {"factorization": "Tuckr"}}, "(?s)TFNO cannot be made of them.*Tuckr"),
    ({"architecture": "UNO", "arguments": {"hidden_channels": 8}}, "uno_out_channels can not be None"),
    ({"architecture": "UNet"}, r"model\.architecture.*'FNO', 'TFNO' or 'UNO'"),
    ({"architectur": "FNO"}, r"model\.architectur: unknown key; did you mean 'architecture'"),
    ({"size": "Ti"}, r"model\.size: unknown key"),
])  # fmt: skip
def test_a_wrong_model_is_named_when_the_configuration_is_read(model: dict[str, Any], message: str) -> None:
    given = {"library": "neuraloperator", "architecture": "TFNO", "arguments": FNO} | model
    job = {"name": "x", "output": "x", "data": {"datasets": [{"config": "x.yaml"}]}, "training": {"steps": 1}}
    with pytest.raises(ConfigError, match=message):
        build(PretrainConfig, job | {"model": given})


@pytest.mark.parametrize(("arguments", "found"), [
    ({"n_modes": [8]}, "dimensions"),
    ({"resolution_scaling_factor": 0.5}, r"a field of \(1, 2, 4, 3\)"),
    ({"complex_data": True}, "complex"),
])  # fmt: skip
def test_an_architecture_that_leaves_the_grid_is_refused(arguments: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)does not map fields on the grid.*{found}"):
        Baseline(config("FNO", FNO | arguments))


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neuralop.models", None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[baselines\]'"):
        make_baseline()


def test_without_a_baseline_the_library_is_not_imported() -> None:
    code = "import sys, pretrain.job; print(sorted(sys.modules.keys() & {'neuralop', 'wandb'}))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_parts_of_a_baseline_can_be_frozen() -> None:
    operator = make_baseline_operator()
    freeze(operator, ("model.projection", "fno_blocks__convs__1"))
    trained = {name.split(".")[0] for name, p in operator.network.named_parameters() if p.requires_grad}
    assert trained == {"model"} | {f"fno_blocks__convs__1__weight__factors__factor_{i}" for i in range(4)} | {
        "fno_blocks__convs__1__weight__core"
    }
    with pytest.raises(ConfigError, match="fno_blocks__convs__0"):
        freeze(operator, ("lifting",))


def test_adapting_keeps_the_weights_or_refuses() -> None:
    old = make_baseline_operator()
    data = [old.config.datasets[0].model_copy(update={"name": "new"})]
    new = adapt(old, data, ("a", "b"), (24, 16), {})
    for name, value in new.network.state_dict().items():
        assert torch.equal(value, old.network.state_dict()[name]), name
    assert [d.name for d in new.config.datasets] == ["new"]
    x = torch.randn(1, 24, 16, T_IN, 2)
    assert new(x, torch.zeros(1, dtype=torch.int64)).shape == (1, 24, 16, 1, 2)

    for channels, start_from in ((("a", "c"), {}), (("b", "a"), {}), (("a",), {}), (("a", "b"), {"a": "b"})):
        with pytest.raises(ConfigError, match="only DPOT networks are adapted to other channels"):
            adapt(old, data, channels, SPACE, start_from)
    with pytest.raises(ConfigError, match="does not map fields on the grid"):
        adapt(old, data, ("a", "b"), (16, 16, 16), {})
    with pytest.raises(ConfigError, match="only DPOT networks"):
        adapt(old, data, ("a", "b"), SPACE, {}, condition=True)
