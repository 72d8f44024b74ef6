"""float16 is refused, TF32 is on or off and never left to chance, and bfloat16 leaves in float32 what needs it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from data_pipeline.base.config import apply_overrides, build, parse_overrides
from data_pipeline.base.errors import ConfigError
from pretrain.config import TrainingConfig
from pretrain.evaluate import evaluate
from pretrain.execution import apply_execution, full_float32, set_tf32
from pretrain.model import Dpot, NetworkConfig
from pretrain.model.dpot import SpectralMixer
from pretrain.model.fourier import transform
from tests.operator_fakes import MemoryStore, Shift, travelling_waves


@pytest.fixture(autouse=True)
def _settings_of_the_process() -> Iterator[None]:
    set_tf32(False)
    yield
    set_tf32(False)


def settings() -> tuple[str, bool, bool]:
    cuda = torch.backends.cuda.matmul.allow_tf32  # raises when torch's older and newer names disagree
    return torch.get_float32_matmul_precision(), cuda, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("name", ["float16", "fp16", "half"])
def test_float16_is_refused_with_the_reason(name: str) -> None:
    for content in ({"precision": name}, apply_overrides({}, parse_overrides([f"precision={name}"]))):
        with pytest.raises(ConfigError, match=r"precision: .*65504.*underflow.*use bfloat16"):
            build(TrainingConfig, {"steps": 1} | content)


def test_another_precision_is_refused_with_the_list() -> None:
    with pytest.raises(ConfigError, match=r"precision: Input should be 'float32' or 'bfloat16' \(found 'fp8'\)"):
        build(TrainingConfig, {"steps": 1, "precision": "fp8"})


def test_tf32_is_set_both_ways_on_gpus_and_left_alone_on_cpus() -> None:
    network = Dpot(NetworkConfig(space=(8,), in_channels=1, out_channels=1, width=8, heads=1, depth=1))
    apply_execution(network, TrainingConfig(steps=1, tf32=True), torch.device("cpu"))
    assert settings() == ("highest", False, False)
    apply_execution(network, TrainingConfig(steps=1, tf32=True), torch.device("cuda"))
    assert settings() == ("high", True, True)
    apply_execution(network, TrainingConfig(steps=1), torch.device("cuda"))
    assert settings() == ("highest", False, False)


def test_evaluation_is_in_full_float32_and_puts_the_setting_back() -> None:
    seen: set[tuple[str, bool, bool]] = set()
    operator = Shift()
    operator.register_forward_pre_hook(lambda *_: seen.add(settings()))
    set_tf32(True)
    evaluate(operator, MemoryStore(travelling_waves()))
    assert seen == {("highest", False, False)}
    assert settings() == ("high", True, True)


def test_the_setting_is_put_back_after_an_error_too() -> None:
    set_tf32(True)
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert settings() == ("high", True, True)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def difference_network() -> Dpot:
    """A network that sees nothing but the difference of the last two frames, at 1000 times its size."""
    torch.manual_seed(0)
    config = NetworkConfig(
        space=(16, 16), patch_size=4, in_channels=1, out_channels=1, in_timesteps=3, width=16, depth=1, heads=2,
        head_width=8, time_aggregation="mlp",
    )  # fmt: skip
    network = Dpot(config)
    with torch.no_grad():
        network.patch_embed.proj[0].weight[:, 1:] = 0  # coordinates have no part in it
        w = torch.randn(16, 16) * 1000
        network.time_agg_layer.w.copy_(torch.stack([torch.zeros(16, 16), -w, w]))
    return network


def test_bfloat16_keeps_small_differences_of_frames() -> None:
    network = difference_network()
    still, change = torch.randn(4, 16, 16, 1, 1), torch.randn(4, 16, 16, 1, 1)
    x = torch.cat([still - 1e-3 * change, still, still + 1e-3 * change], dim=-2)
    with torch.no_grad():
        expected = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = network(x)
    assert relative(found - found.mean(), expected - expected.mean()) < 0.05


def test_bfloat16_keeps_the_structure_of_a_channel_with_a_large_mean() -> None:
    torch.manual_seed(0)
    config = NetworkConfig(space=(128, 128), in_channels=1, out_channels=1, width=16, heads=2, activation="relu")
    mixer, grid = SpectralMixer(config), transform((16, 16), (16, 9), symmetric=False, like=torch.ones(()))
    with torch.no_grad():
        for weight in (mixer.w1, mixer.w2):
            weight.normal_(std=0.3)
        z = 10 + 0.01 * torch.randn(16, 16, 2, 16)
        expected = mixer(z, grid) - z
        with torch.autocast("cpu", torch.bfloat16):
            found = mixer(z, grid) - z
    structure, structure_found = (y - y.mean((0, 1)) for y in (expected, found))
    assert relative(structure_found, structure) < 0.02


def test_bfloat16_does_not_round_the_prediction() -> None:
    torch.manual_seed(0)
    network = Dpot(NetworkConfig(space=(16,), in_channels=1, out_channels=1, width=16, heads=2, depth=1, patch_size=4))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = network(torch.randn(2, 16, 10, 1))
    assert y.dtype == torch.float32
    assert relative(y.bfloat16().float(), y) > 1e-4


def test_bfloat16_is_used_where_it_may_be() -> None:
    torch.manual_seed(0)
    network = Dpot(NetworkConfig(space=(16,), in_channels=1, out_channels=1, width=16, heads=2, depth=1, patch_size=4))
    products = []
    for part in (network.blocks[0].mlp[1], network.blocks[0].filter.activation, network.out_layer[1]):
        part.register_forward_hook(lambda _module, inputs, _output: products.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(2, 16, 10, 1))
    # Also after the bias, or activations would take twice the memory.
    assert set(products) == {torch.bfloat16}
