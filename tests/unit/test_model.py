"""The network is the published function: golden tensors, published parameter counts, published names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from data_pipeline.base.errors import ConfigError
from pretrain.model import SIZES, Dpot, NetworkConfig, load_reference
from pretrain.model.config import ACTIVATIONS

GOLDEN = sorted((Path(__file__).parents[1] / "data" / "golden").glob("*.safetensors"))
PUBLISHED_COUNTS = {"Ti": 7_534_643, "S": 30_801_459, "M": 122_125_875, "L": 509_018_739, "H": 1_031_082_099}


def read(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118


def state_of(tensors: dict[str, torch.Tensor], prefix: str = "state.") -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp_min(1e-12)).item()


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_outputs_and_all_gradients_are_the_references(path: Path) -> None:
    config, tensors = read(path)
    network = load_reference(config, state_of(tensors))
    x = tensors["input"].requires_grad_()
    y = network(x)
    (y * tensors["cotangent"]).sum().backward()

    assert relative(y, tensors["output"]) < 1e-5
    assert relative(x.grad, tensors["input_grad"]) < 1e-5
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    expected = {k: v for k, v in state_of(tensors, "grad.").items() if v.abs().max() > 0}
    assert gradients.keys() >= expected.keys()
    for name, value in expected.items():
        assert relative(gradients[name], value) < 1e-5, name
    if "class_logits" in tensors:
        assert relative(network.class_logits(x), tensors["class_logits"]) < 1e-5


def test_golden_files_are_there() -> None:
    assert len(GOLDEN) == 3


@pytest.mark.parametrize("size", PUBLISHED_COUNTS)
def test_published_sizes_have_the_published_parameter_counts(size: str) -> None:
    with torch.device("meta"):
        network = Dpot(NetworkConfig(space=(128, 128), in_channels=4, out_channels=4, **SIZES[size]))
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED_COUNTS[size]


def test_no_parameter_is_complex() -> None:
    network = Dpot(NetworkConfig(space=(16, 16), in_channels=2, out_channels=2, **SIZES["nano"]))
    assert all(not p.is_complex() for p in network.parameters())


def test_data_parallel_prefix_is_understood() -> None:
    config, tensors = read(GOLDEN[0])
    prefixed = {f"module.{k}": v for k, v in state_of(tensors).items()}
    assert relative(load_reference(config, prefixed)(tensors["input"]), tensors["output"]) < 1e-5


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("space", [(16, 24), (8, 8, 16)])
def test_rectangular_grids_and_every_activation(activation: str, space: tuple[int, ...]) -> None:
    config = NetworkConfig(
        space=space, patch_size=4, in_channels=2, out_channels=2, in_timesteps=5, out_timesteps=3, width=32,
        depth=1, heads=2, normalize=True, activation=activation, time_aggregation="mlp",
    )  # fmt: skip
    assert Dpot(config)(torch.randn(2, *space, 5, 2)).shape == (2, *space, 3, 2)


def test_wrong_weights_are_named() -> None:
    config, tensors = read(GOLDEN[0])
    state = state_of(tensors)
    state["pos_embed"] = state["pos_embed"][:, :, :2]
    state["extra"] = state.pop("out_layer.0.bias")
    with pytest.raises(ConfigError, match=r"(?s)extra: not in the network.*out_layer.0.bias: missing.*pos_embed: f"):
        load_reference(config, state)


def test_wrong_arguments_are_named() -> None:
    config, tensors = read(GOLDEN[0])
    with pytest.raises(ConfigError, match="embed_dim"):
        load_reference({**config, "embd_dim": 3}, state_of(tensors))
    with pytest.raises(ConfigError, match="mixing_type"):
        load_reference({**config, "mixing_type": "attention"}, state_of(tensors))


def test_a_history_of_another_shape_is_refused() -> None:
    network = Dpot(NetworkConfig(space=(16, 16), in_channels=2, out_channels=2, **SIZES["nano"]))
    with pytest.raises(ValueError, match="history has shape"):
        network(torch.zeros(1, 16, 16, 9, 2))
