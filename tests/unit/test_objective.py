"""The objective: its loss is DPOT's, its noise is positional and of the level asked for, roll-outs feed themselves."""

from dataclasses import replace

import numpy as np
import torch

from data_pipeline.loader import Batch
from pretrain.config import ObjectiveConfig
from pretrain.model.operator import Operator
from pretrain.objective import DenoisingObjective, add_noise, relative_l2_loss
from tests.operators import make_operator


def batch_for(operator, frames: int, size: int = 3) -> Batch:
    space, C = operator.config.network.space, len(operator.config.channels)
    generator = torch.Generator().manual_seed(1)
    fields = torch.randn(size, *space, operator.frames_in + frames, C, generator=generator) + 2
    return Batch.of(
        history=fields[..., : operator.frames_in, :],
        target=fields[..., operator.frames_in :, :],
        channel_mask=torch.ones(size, C, dtype=torch.bool),
        dataset=torch.zeros(size, dtype=torch.int64),
        dt=torch.ones(size),
        parameters=torch.empty(size, 0),
        position=torch.arange(size),
    )


def test_the_loss_is_relative_l2_over_real_channels() -> None:
    generator = np.random.default_rng(0)
    y, t = (torch.tensor(generator.normal(size=(2, 4, 5, 3, 2))) for _ in range(2))
    mask = torch.tensor([[True, True], [True, False]])
    loss = relative_l2_loss(y, t, mask)
    ratio = [[np.linalg.norm((y - t)[b, ..., c]) / np.linalg.norm(t[b, ..., c]) for c in range(2)] for b in range(2)]
    assert torch.allclose(loss, torch.tensor([np.mean(ratio[0]), ratio[1][0]]))


def test_a_zero_target_does_not_explode() -> None:
    y, t = torch.full((1, 4, 4, 1, 1), 0.5), torch.zeros(1, 4, 4, 1, 1)
    assert relative_l2_loss(y, t, torch.ones(1, 1, dtype=torch.bool)).item() == 2.0  # the norm of the error


def test_noise_is_a_function_of_seed_and_position() -> None:
    history, deviation = torch.randn(4, 8, 8, 5, 2), torch.tensor(0.1)
    position = torch.tensor([5, 6, 7, 8])
    noisy = add_noise(history, deviation, position, seed=3)
    assert torch.equal(noisy[2:], add_noise(history[2:], deviation, position[2:], seed=3))
    assert not torch.equal(noisy, add_noise(history, deviation, position, seed=4))
    assert not torch.equal(noisy, add_noise(history, deviation, position + 1, seed=3))


def noise_of(unit: str, history: torch.Tensor) -> torch.Tensor:
    """The noise that the objective puts on a history: what reaches the operator, less what was given."""
    operator = make_operator()  # mean 2, change 0.5
    objective = DenoisingObjective(operator, ObjectiveConfig(noise=0.1, noise_unit=unit), seed=0)
    seen = []
    operator.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    batch = batch_for(operator, frames=1, size=len(history))
    objective(replace(batch, window=torch.cat([history, batch.target], dim=-2).movedim(-2, 1)))
    return seen[0] - history


def test_noise_has_the_level_asked_for_in_either_unit() -> None:
    history = 2 + 3 * torch.randn(8, 16, 16, 3, 2)
    assert abs(noise_of("change", history).std().item() - 0.1 * 0.5) < 0.001
    assert abs(noise_of("field", history).std().item() - 0.1 * 3) < 0.006


def test_a_rollout_feeds_its_own_predictions() -> None:
    operator = make_operator()
    objective = DenoisingObjective(operator, ObjectiveConfig(noise=0, rollout_steps=2), seed=0)
    batch = batch_for(operator, frames=2)
    loss, per_sample = objective(batch)
    first = operator(batch.history, batch.dataset)
    second = operator(torch.cat([batch.history[..., 1:, :], first], -2), batch.dataset)
    expected = relative_l2_loss(torch.cat([first, second], -2), batch.target, batch.channel_mask)
    assert torch.allclose(per_sample, expected)
    assert torch.allclose(loss, expected.mean())


def test_slots_that_a_dataset_lacks_see_noise_in_training_alone() -> None:
    seen = []
    for noise in (0.1, 0.0):
        operator = make_operator(("a", "b"))
        toy = operator.config.datasets[0]
        figures = {name: getattr(toy, name)[:1] for name in ("channels", "mean", "std", "change_rms")}
        narrow = operator.config.model_copy(update={"datasets": (toy.model_copy(update=figures),)})
        operator = Operator(narrow)
        operator.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 1]))
        batch = batch_for(operator, frames=2)
        batch.history[..., 1] = 0
        DenoisingObjective(operator, ObjectiveConfig(noise=noise, rollout_steps=2), seed=0)(batch)
    noisy, later, *clean = seen
    assert abs(noisy.std().item() - 0.1) < 0.02
    assert not later.any()
    assert not any(x.any() for x in clean)


def test_the_target_stays_clean() -> None:
    operator = make_operator()
    batch = batch_for(operator, frames=1)
    before = batch.history.clone()
    DenoisingObjective(operator, ObjectiveConfig(noise=0.5), seed=0)(batch)
    assert torch.equal(batch.history, before)
