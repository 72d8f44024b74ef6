"""The errors are their sources' definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.metrics import relative_l2, relative_l2_per_channel, relative_l2_per_frame, vrmse


def fields(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_relative_l2_is_the_numpy_one_liner(batch: int, frames: int, channels: int, axes: int, seed: int) -> None:
    p, t = fields(batch, frames, *(5, 4, 3)[:axes], channels, seed=seed)
    blocks = [[(p[b, ..., c].numpy(), t[b, ..., c].numpy()) for c in range(channels)] for b in range(batch)]
    expected = np.mean([np.mean([np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in row]) for row in blocks])
    assert relative_l2(p, t).item() == pytest.approx(expected, rel=1e-5)


def test_per_frame_is_the_block_of_a_single_frame() -> None:
    p, t = fields(2, 3, 6, 6, 2)
    single = torch.stack([relative_l2_per_channel(p[:, k : k + 1], t[:, k : k + 1]) for k in range(3)], dim=1)
    torch.testing.assert_close(relative_l2_per_frame(p, t), single)


def test_block_is_not_the_mean_over_frames() -> None:
    # Frame 0: target 1, error 1. Frame 1: target 3, no error. Mean of frames 1/2; block sqrt(1/(1+9)).
    t = torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 1)
    p = torch.tensor([2.0, 3.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 1)
    assert relative_l2_per_frame(p, t).mean().item() == pytest.approx(0.5)
    assert relative_l2(p, t).item() == pytest.approx(0.1**0.5)


def test_channels_of_any_size_weigh_the_same() -> None:
    t = torch.ones(1, 2, 4, 4, 2)
    p = t * torch.tensor([1.1, 1.3])
    scale = torch.tensor([1e-6, 1e6])
    assert relative_l2(p * scale, t * scale).item() == pytest.approx(0.2, rel=1e-5)


def test_a_zero_target_counts_nothing_or_one() -> None:
    t = torch.zeros(1, 2, 4, 4, 3)
    p = torch.zeros_like(t)
    p[..., 1], p[..., 2] = 1e-6, 1e6
    assert relative_l2_per_channel(p, t).tolist() == [[0.0, 1.0, 1.0]]
    assert relative_l2_per_frame(p, t)[0, 0].tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("target", [0.0, 1.0])
def test_what_is_not_finite_stays_so(value: float, target: float) -> None:
    t = torch.full((2, 3, 4, 4, 2), target)
    p = t.clone()
    p[1, 2, 0, 0, 0] = value
    found = relative_l2_per_channel(p, t)
    assert found.isfinite().tolist() == [[True, True], [False, True]]
    assert not relative_l2(p, t).isfinite()
    assert relative_l2_per_frame(p, t).isfinite().sum() == 2 * 3 * 2 - 1
    assert vrmse(p, t).isfinite().sum() == 2 * 3 * 2 - 1


def test_vrmse_is_the_definition_of_the_well() -> None:
    p, t = fields(2, 3, 5, 4, 2)
    x, y = p.numpy().astype(np.float64), t.numpy().astype(np.float64)
    expected = np.sqrt(((x - y) ** 2).mean((2, 3)) / (y.var((2, 3), ddof=1) + 1e-7))
    np.testing.assert_allclose(vrmse(p, t).numpy(), expected, rtol=1e-5)


def test_large_and_small_fields_neither_overflow_nor_vanish() -> None:
    p, t = fields(1, 2, 8, 8, 1)
    expected = relative_l2(p, t).item(), vrmse(p, t).mean().item()
    for scale in (1e-30, 1e30):
        assert relative_l2(p * scale, t * scale).item() == pytest.approx(expected[0], rel=1e-5)
    assert vrmse(p * 1e30, t * 1e30).mean().item() == pytest.approx(expected[1], rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4, 2), (3, 4, 4, 2), (2, 3, 4, 4, 1)])
def test_shapes_never_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must both be \(B, T, \*space, C\)"):
        relative_l2(torch.ones(shape), torch.ones(2, 3, 4, 4, 2))


def test_the_batch_axis_is_never_implied() -> None:
    with pytest.raises(ValueError, match=r"must both be \(B, T, \*space, C\)"):
        relative_l2(torch.ones(3, 4, 2), torch.ones(3, 4, 2))
