"""Adapting a pretrained operator: what can be kept is kept bit for bit, and the mapping is the one asked for."""

import pytest
import torch

from data_pipeline.base.errors import ConfigError
from finetune.adapt import adapt, from_scratch, match_channels
from pretrain.run import freeze
from tests.operators import make_operator


def test_the_same_channels_in_another_order_give_the_same_function() -> None:
    old = make_operator(("a", "b", "c"))
    toy = old.config.datasets[0]
    order = [2, 0, 1]
    channels = [old.config.channels[i] for i in order]
    new = adapt(old, [toy.model_copy(update={"channels": tuple(channels)})], channels, (16, 16), {})
    x, row = torch.randn(2, 16, 16, 3, 3), torch.zeros(2, dtype=torch.int64)
    assert torch.allclose(new(x[..., order], row), old(x, row)[..., order], atol=1e-6)


def test_weights_that_do_not_depend_on_channels_are_kept_bit_for_bit() -> None:
    old = make_operator(("a", "b"))
    toy = old.config.datasets[0]
    scaling = {name: (1.0,) * 3 for name in ("mean", "std", "change_rms")}
    data = toy.model_copy(update={"name": "new", "channels": ("x", "y", "z"), **scaling})
    new = adapt(old, [data], ("x", "y", "z"), (16, 16), {})
    changed = {"patch_embed.proj.0.weight", "out_layer.4.weight", "out_layer.4.bias"}
    for name, value in new.network.state_dict().items():
        if name not in changed:
            assert torch.equal(value, old.network.state_dict()[name]), name
    assert new(torch.randn(1, 16, 16, 3, 3), torch.zeros(1, dtype=torch.int64)).shape == (1, 16, 16, 1, 3)


@pytest.mark.parametrize(("old_space", "new_space"), [((16,), (24,)), ((16, 16), (32, 24)), ((8, 8, 8), (16, 8, 4))])
def test_another_grid_keeps_a_constant_position_embedding(old_space: tuple, new_space: tuple) -> None:
    old = make_operator(space=old_space)
    torch.nn.init.constant_(old.network.pos_embed, 0.25)
    new = adapt(old, old.config.datasets, old.config.channels, new_space, {})
    assert new.network.pos_embed.shape[2:] == tuple(n // 4 for n in new_space)
    assert torch.allclose(new.network.pos_embed, torch.tensor(0.25))


def test_channels_are_matched_by_word_then_name_then_order() -> None:
    assert match_channels(("u", "b", "v"), ("a", "b", "c"), {"v": "a"}) == {"v": "a", "b": "b", "u": "c"}
    assert match_channels(("x", "y", "z"), ("a", "b"), {}) == {"x": "a", "y": "b", "z": "a"}
    with pytest.raises(ConfigError, match=r"adapt\.channels\.w"):
        match_channels(("u",), ("a",), {"w": "a"})
    with pytest.raises(ConfigError, match="did you mean 'activator'"):
        match_channels(("u",), ("activator",), {"u": "activater"})


def test_grids_that_do_not_fit_are_refused() -> None:
    old = make_operator()
    with pytest.raises(ConfigError, match="multiples of 4"):
        adapt(old, old.config.datasets, old.config.channels, (18, 16), {})
    with pytest.raises(ConfigError, match="2 axes"):
        adapt(old, old.config.datasets, old.config.channels, (16, 16, 16), {})


def test_from_scratch_is_the_same_network_with_other_weights() -> None:
    old = make_operator()
    fresh, again = from_scratch(old, seed=1), from_scratch(old, seed=1)
    assert fresh.config == old.config
    assert torch.equal(fresh.network.pos_embed, again.network.pos_embed)
    assert not torch.equal(fresh.network.pos_embed, old.network.pos_embed)


def test_frozen_parameters_get_no_gradient() -> None:
    operator = make_operator()
    freeze(operator, ("out_layer", "blocks.0.mlp"))
    x = torch.randn(1, 16, 16, 3, 2)
    operator(x, torch.zeros(1, dtype=torch.int64)).sum().backward()
    trained = {name for name, p in operator.network.named_parameters() if p.grad is not None}
    assert trained
    assert all(name.startswith(("out_layer", "blocks.0.mlp")) for name in trained)
    with pytest.raises(ConfigError, match="out_layer"):
        freeze(operator, ("out_lyer",))
