"""The fast network is the plain one, at any rank, grid, number of channels and length of history."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pretrain.model import Dpot, NetworkConfig, PlainDpot
from pretrain.model.config import ACTIVATIONS
from pretrain.model.dpot import resize

SPACES = [(24,), (16, 24), (8, 8, 16)]


def config(space: tuple[int, ...], **options: object) -> NetworkConfig:
    shape = {"patch_size": 4, "in_channels": 3, "out_channels": 3, "in_timesteps": 4, "out_timesteps": 2}
    return NetworkConfig(space=space, **shape | {"width": 32, "depth": 2, "heads": 2, "head_width": 8} | options)


def pair(config: NetworkConfig, dtype: torch.dtype) -> tuple[PlainDpot, Dpot]:
    """Both networks with the same weights, far enough from their initial values for every path to matter."""
    torch.manual_seed(0)
    plain = PlainDpot(config)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    fast = Dpot(config)
    fast.load_state_dict(plain.state_dict())
    return plain.to(dtype), fast.to(dtype)


def history(config: NetworkConfig, dtype: torch.dtype = torch.float32, batch: int = 2) -> Tensor:
    return torch.randn(batch, *config.space, config.in_timesteps, config.in_channels, dtype=dtype)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def errors(config: NetworkConfig, dtype: torch.dtype) -> dict[str, float]:
    """Relative difference of outputs, class logits, and all gradients."""
    networks, x = pair(config, dtype), history(config, dtype)
    results = []
    for network in networks:
        inputs = x.clone().requires_grad_()
        y, logits = network(inputs), network.class_logits(inputs)
        generator = torch.Generator().manual_seed(1)
        cotangent = torch.randn(y.shape, generator=generator, dtype=dtype)
        ((y * cotangent).sum() + logits.square().sum()).backward()
        gradients = {name: p.grad for name, p in network.named_parameters()}
        results.append({"y": y, "logits": logits, "x": inputs.grad, **gradients})
    expected, found = results
    assert expected.keys() == found.keys()
    return {name: relative(found[name], expected[name]) for name in expected}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    "options",
    [{}, {"normalize": True, "modes": 2}, {"time_aggregation": "mlp", "activation": "tanh", "mlp_ratio": 2.5}],
    ids=["published", "normalised_truncated", "mlp_tanh"],
)
@pytest.mark.parametrize("space", SPACES)
def test_outputs_and_all_gradients_are_those_of_the_plain_network(
    space: tuple[int, ...], options: dict, dtype: torch.dtype, bound: float
) -> None:
    found = errors(config(space, **options), dtype)
    assert max(found.values()) < bound, max(found, key=found.__getitem__)


@given(
    space=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    patch=st.sampled_from([1, 2, 3]),
    channels=st.integers(1, 5),
    frames=st.integers(1, 4),
    modes=st.integers(1, 6),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
)
@settings(max_examples=40, deadline=None)
def test_any_shape(space: list[int], patch: int, channels: int, frames: int, modes: int, activation: str) -> None:
    options = {"in_channels": channels, "out_channels": channels, "in_timesteps": frames, "activation": activation}
    shape = config(tuple(n * patch for n in space), patch_size=patch, modes=modes, depth=1, **options)
    plain, fast = pair(shape, torch.float64)
    x = history(shape, torch.float64)
    assert relative(fast(x), plain(x)) < 1e-12


def test_four_axes_with_one_point_along_the_first_are_three() -> None:
    """No plain network has four axes; with a grid of one point the first is no axis at all."""
    three = config((4, 4, 8), patch_size=1, modes=3, activation="gelu")
    four = config((1, 4, 4, 8), patch_size=1, modes=3, activation="gelu", stem_width=three.stem)
    torch.manual_seed(0)
    small, large = Dpot(three).double(), Dpot(four).double()
    weights = {}
    for name, value in small.state_dict().items():
        shape = large.state_dict()[name].shape
        if name == "patch_embed.proj.0.weight":  # a weight for the new coordinate, which is zero everywhere
            value = torch.cat([value[:, :3], torch.ones_like(value[:, :1]), value[:, 3:]], dim=1)
        weights[name] = value.reshape(shape)
    large.load_state_dict(weights)
    x = history(three, torch.float64)
    assert relative(large(x[:, None])[:, 0], small(x)) < 1e-12


def test_initial_weights_are_those_of_the_plain_network() -> None:
    for space in SPACES:
        torch.manual_seed(3)
        plain = PlainDpot(config(space)).state_dict()
        torch.manual_seed(3)
        fast = Dpot(config(space)).state_dict()
        assert list(plain) == list(fast)
        assert all(torch.equal(plain[name], fast[name]) for name in plain)


@pytest.mark.parametrize("option", [{"mode_truncation": "symmetric"}, {"conditions": 2}, {"resize_position": True}])
def test_the_plain_network_refuses_what_was_not_published(option: dict) -> None:
    with pytest.raises(ValueError, match="without"):
        PlainDpot(config((16, 16), **option))


def test_folded_products_give_the_same_function() -> None:
    shape = config((16, 24), modes=3)
    network, x = pair(shape, torch.float32)[1], history(shape)
    with torch.inference_mode():
        assert torch.equal(network(x, folded=network.fold()), network(x))


def test_symmetric_truncation_keeps_what_a_band_limited_field_is_made_of() -> None:
    """A wave that travels against the first axis is a negative frequency: dropped as published, kept by the option."""
    x, y = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    wave = torch.cos(2 * torch.pi * (y - x) / 8)[..., None]
    for truncation, kept in [("one_sided", False), ("symmetric", True)]:
        shape = config((8, 8), patch_size=1, modes=2, mode_truncation=truncation)
        transform = Dpot(shape).fold().transform
        again = transform.inverse(transform.forward(wave))
        assert (relative(again, wave) < 1e-5) is kept


def test_conditions_change_nothing_before_they_are_trained() -> None:
    shape = config((16, 16))
    torch.manual_seed(0)
    plain = Dpot(shape)
    conditioned = Dpot(shape.model_copy(update={"conditions": 3}))
    left = conditioned.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[0] for name in left.missing_keys} == {"condition", "blocks"}
    x, told = history(shape), torch.randn(2, 3)
    y = conditioned(x, told)
    assert torch.equal(y, plain(x))
    y.square().sum().backward()
    modulation = conditioned.blocks[0].modulation
    assert modulation.weight.grad.abs().max() > 0
    with torch.no_grad():
        modulation.weight.normal_()
    assert not torch.allclose(conditioned(x, told), y)


def test_missing_or_surplus_conditions_are_refused() -> None:
    with pytest.raises(ValueError, match="0 conditions"):
        Dpot(config((16, 16), conditions=3))(history(config((16, 16))))
    with pytest.raises(ValueError, match="expects 0"):
        Dpot(config((16, 16)))(history(config((16, 16))), torch.zeros(2, 3))


def test_the_position_table_follows_the_grid() -> None:
    shape = config((16, 16), resize_position=True)
    network = Dpot(shape)
    other = config((24, 8), resize_position=True)
    y = network(history(other))
    assert y.shape == (2, 24, 8, 2, 3)
    # The same as a network of the other grid whose table is the resized one.
    twin = Dpot(other)
    twin.load_state_dict({**network.state_dict(), "pos_embed": resize(network.pos_embed.detach(), (6, 2))})
    x = history(other)
    assert relative(network(x), twin(x)) < 1e-6
    with pytest.raises(ValueError, match="history has shape"):
        network(torch.zeros(1, 18, 16, 4, 3))
    with pytest.raises(ValueError, match="history has shape"):
        Dpot(config((16, 16)))(x)


def test_resizing_a_table_is_the_librarys_interpolation() -> None:
    table = torch.randn(1, 5, 4, 6)
    expected = torch.nn.functional.interpolate(table, size=(7, 3), mode="bilinear", align_corners=False)
    assert torch.allclose(resize(table, (7, 3)), expected, atol=1e-6)


def test_edge_of_chaos_is_an_initial_value_only() -> None:
    shape = config((16, 16))
    torch.manual_seed(0)
    published = Dpot(shape).state_dict()
    torch.manual_seed(0)
    edge = Dpot(shape.model_copy(update={"initialisation": "edge_of_chaos"})).state_dict()
    changed = {name for name in published if not torch.equal(published[name], edge[name])}
    assert changed == {f"blocks.{n}.filter.{w}" for n in range(2) for w in ("w1", "b1", "w2", "b2")}
