"""Memory of a training step, counted in bytes of tensors that live at once: nothing is computed, nothing is timed."""

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.memory import MIB, LiveBytes, peak_of_a_training_step
from pretrain.model import SIZES, Dpot, NetworkConfig, PlainDpot


@pytest.mark.parametrize("bfloat16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", ["Ti", "S", "M"])
def test_with_recomputation_a_training_step_takes_at_most_half_the_plain_networks_memory(
    size: str, bfloat16: bool
) -> None:
    plain = peak_of_a_training_step(PlainDpot, size, recompute=False, bfloat16=bfloat16)
    recomputed = peak_of_a_training_step(Dpot, size, recompute=True, bfloat16=bfloat16)
    assert recomputed <= 0.5 * plain, f"{recomputed:.0f} MiB of {plain:.0f}"


def test_without_recomputation_it_takes_less_than_the_plain_network() -> None:
    ours, plain = (peak_of_a_training_step(k, "Ti", recompute=False, bfloat16=False) for k in (Dpot, PlainDpot))
    assert ours < plain


def test_the_count_is_of_what_lives_at_once() -> None:
    with LiveBytes() as live:
        a = torch.ones(MIB)
        view = a[:10]
        b = a.double()
        assert live.now == live.peak == 12 * MIB
        del a
        assert live.now == 12 * MIB  # the view is of the same memory
        del view
        assert (live.now, live.peak) == (8 * MIB, 12 * MIB)
        del b


def step(network: Dpot, *inputs: Tensor) -> tuple[Tensor, list[Tensor | None], int]:
    """Loss, gradients, and bytes beside the weights that the forward pass kept for the backward pass."""
    kept: dict[int, int] = {}
    weights = {p.untyped_storage()._cdata for p in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    network.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = network(*inputs).square().mean()
    loss.backward()
    return loss.detach(), [p.grad for p in network.parameters()], sum(kept.values())


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"conditions": 3}], ids=str)
def test_recomputation_changes_no_bit_and_keeps_less(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = NetworkConfig(
        space=(16, 16), patch_size=4, in_channels=2, out_channels=2, in_timesteps=20, width=16, depth=8, heads=2,
        head_width=8, **options,
    )  # fmt: skip
    network, inputs = Dpot(config), [torch.randn(2, 16, 16, 20, 2)]
    if config.conditions:
        inputs.append(torch.randn(2, config.conditions))
    loss, gradients, kept = step(network, *inputs)
    network.recompute_blocks = True
    again, gradients_again, kept_again = step(network, *inputs)
    assert torch.equal(again, loss)
    for one, two in zip(gradients, gradients_again, strict=True):
        assert (one is None and two is None) or torch.equal(one, two)
    assert kept_again < 0.5 * kept


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", ["Ti", "M"])
def test_the_allocators_peak_is_at_most_half_the_plain_networks_too(size: str) -> None:
    peaks = []
    for kind, recompute in ((PlainDpot, False), (Dpot, True)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        network = kind(NetworkConfig(space=(128, 128), in_channels=4, out_channels=4, **SIZES[size])).cuda()
        network.recompute_blocks = recompute
        network(torch.randn(8, 128, 128, 10, 4, device="cuda")).square().mean().backward()
        peaks.append(torch.cuda.max_memory_allocated())
        del network
    assert peaks[1] <= 0.5 * peaks[0]
