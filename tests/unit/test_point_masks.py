"""Points outside the domain count nowhere: not in the loss, not in a gradient, not in an error."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from pretrain import metrics
from pretrain.config import ObjectiveConfig
from pretrain.evaluate import evaluate
from pretrain.objective import DenoisingObjective, relative_l2_loss
from pretrain.rollout import rollout_block
from tests.operator_fakes import MemoryStore, Shift, travelling_waves
from tests.operators import make_operator
from tests.unit.test_objective import batch_for

METRICS = (metrics.relative_l2, metrics.relative_l2_per_channel, metrics.relative_l2_per_frame, metrics.vrmse)


def domain(*shape: int, seed: int = 0) -> Tensor:
    """A random mask with at least two points of each sample inside and one outside."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    points = mask.flatten(1)
    points[:, :2], points[:, 2] = True, False
    return mask


def outside(x: Tensor, mask: Tensor, value: float) -> Tensor:
    """(B, ..., *space, C), changed at the points that are not in the domain."""
    frames = (None,) * (x.ndim - mask.ndim - 1)
    return torch.where(mask[(slice(None), *frames, ..., None)], x, value)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_errors_are_those_of_the_points_in_the_domain(axes: int, frames: int, seed: int) -> None:
    space = (5, 4, 3)[:axes]
    p, t = (torch.randn(1, frames, *space, 2, generator=torch.Generator().manual_seed(seed + k)) for k in (0, 1))
    mask = domain(1, *space, seed=seed)
    inside = [x.flatten(2, -2)[:, :, mask.flatten()] for x in (p, t)]  # (1, frames, points, 2)
    for metric in METRICS:
        torch.testing.assert_close(metric(p, t, mask), metric(*inside), rtol=1e-6, atol=1e-9)
        for value in (1e3, float("nan"), float("inf")):
            found = metric(outside(p, mask, value), outside(t, mask, -value), mask)
            assert torch.equal(found, metric(p, t, mask))


def test_a_mask_of_the_whole_domain_is_none() -> None:
    p, t = torch.randn(2, 2, 3, 6, 6, 2)
    for metric in METRICS:
        assert torch.equal(metric(p, t, torch.ones(2, 6, 6, dtype=torch.bool)), metric(p, t))


def test_a_masked_point_changes_neither_the_loss_nor_a_gradient() -> None:
    y, t = torch.randn(2, 2, 4, 5, 3, 2)
    channels, mask = torch.ones(2, 2, dtype=torch.bool), domain(2, 4, 5)
    wide = mask[..., None, None]
    found = []
    for value in (0.0, 1e3, float("nan"), float("inf")):
        prediction = torch.where(wide, y, value).requires_grad_()
        loss = relative_l2_loss(prediction, torch.where(wide, t, -value), channels, mask)
        loss.sum().backward()
        assert prediction.grad is not None
        assert not prediction.grad[~mask].any()
        found.append((loss.detach(), prediction.grad))
    assert all(torch.equal(loss, found[0][0]) and torch.equal(grad, found[0][1]) for loss, grad in found)
    ratio = [(y - t)[b][mask[b]].norm(dim=(0, 1)) / t[b][mask[b]].norm(dim=(0, 1)) for b in range(2)]
    torch.testing.assert_close(found[0][0], torch.stack(ratio).mean(1))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_objective_leaves_masked_targets_out(steps: int) -> None:
    operator = make_operator(network={"out_timesteps": 1})
    objective = DenoisingObjective(operator, ObjectiveConfig(rollout_steps=steps), seed=0)
    batch = batch_for(operator, steps)
    mask = domain(3, 16, 16)
    batch = replace(batch, point_mask=mask)
    changed = replace(batch, window=batch.window.clone())
    changed.target[~mask] = 7.0
    assert torch.equal(objective(batch)[1], objective(changed)[1])
    assert not torch.equal(objective(batch)[1], objective(replace(batch, point_mask=None))[1])


def test_training_feeds_back_what_is_stored_at_masked_points() -> None:
    operator = make_operator()
    seen: list[Tensor] = []
    operator.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    mask = domain(3, 16, 16)
    batch = replace(batch_for(operator, 2), point_mask=mask)
    DenoisingObjective(operator, ObjectiveConfig(rollout_steps=2, noise=0.2), seed=0)(batch)
    fed_back, stored = seen[1][..., -1, :], batch.history[..., -1, :]
    assert torch.equal(fed_back[~mask], stored[~mask])  # without the noise of the history
    assert not torch.equal(fed_back[mask], stored[mask])


def test_masked_points_keep_their_last_value_in_a_rollout() -> None:
    operator = make_operator()
    x, rows, mask = torch.randn(2, 16, 16, 3, 2), torch.tensor([0, 0]), domain(2, 16, 16)
    block = rollout_block(operator, x, rows, 4, mask=mask)
    last = x[..., -1, :]
    for step in range(4):
        assert torch.equal(block[:, step][~mask], last[~mask])
        assert not torch.equal(block[:, step][mask], last[mask])
    for wrong in (mask[:1], mask.float()):
        with pytest.raises(ConfigError, match="key: mask"):
            rollout_block(operator, x, rows, 1, mask=wrong)


class MaskedStore(MemoryStore):
    """A store whose trajectories have masks."""

    def __init__(self, fields: np.ndarray, masks: np.ndarray) -> None:
        super().__init__(fields)
        self.masks, self.info = masks, self.info.model_copy(update={"masked": True})

    def mask(self, trajectory: int) -> np.ndarray:
        return self.masks[trajectory]


def test_an_evaluation_leaves_masked_points_out() -> None:
    waves = travelling_waves()
    masks = domain(3, 8, 8).numpy()
    clean = evaluate(Shift(), MaskedStore(waves, masks))
    noisy = waves.copy()
    noisy[:, -1][~masks] += 100  # the last frame is in no history
    found = evaluate(Shift(), MaskedStore(noisy, masks))
    assert found.model_dump() == clean.model_dump()
    assert evaluate(Shift(), MemoryStore(noisy)).relative_l2 > 0.9
    assert evaluate(Shift(), MaskedStore(waves, np.ones_like(masks))).relative_l2 == 0
