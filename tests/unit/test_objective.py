"""The objective: its loss is DPOT's, its noise is positional and of the level asked for, roll-outs feed themselves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from data_pipeline.loader import Batch
from pretrain.config import ObjectiveConfig
from pretrain.model.operator import DatasetScaling, Operator
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


def test_without_noise_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_: object) -> None:
        raise AssertionError("noise was drawn")

    operator = make_operator(("a", "b"))
    batch, before = batch_for(operator, frames=1), torch.get_rng_state()
    monkeypatch.setattr("pretrain.objective.positional_seed", drawn)
    monkeypatch.setattr("pretrain.objective.add_noise", drawn)
    loss, _ = DenoisingObjective(operator, ObjectiveConfig(noise=0), seed=0)(batch)
    expected = relative_l2_loss(operator(batch.history, batch.dataset), batch.target, batch.channel_mask)
    assert torch.equal(loss, expected.mean())
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(AssertionError, match="noise was drawn"):
        DenoisingObjective(operator, ObjectiveConfig(noise=0.1), seed=0)(batch)


def anonymous_operator(**options: object) -> Operator:
    """Two slots, the first of which is filled by the toy's only field."""
    toy = DatasetScaling(name="toy", channels=("a",), mean=(2.0,), std=(1.5,), change_rms=(0.5,), dt=0.1)
    fields = {"datasets": (toy,), "slots": "anonymous", "predict": "state", "normalisation": "none"}
    return make_operator(("channel_1", "channel_2"), **fields | options)


def narrow_batch_for(operator: Operator) -> Batch:
    batch = batch_for(operator, frames=1)
    batch.window[..., 1] = 0  # as the loader leaves it
    return replace(batch, channel_mask=torch.tensor([[True, False]] * 3))


def test_the_published_recipe_to_the_letter() -> None:
    """Padding with ones, noise by the norm on all of it, and every slot in the loss: the reference in plain torch."""
    operator, eps, seed = anonymous_operator(), 0.01, 5
    batch = narrow_batch_for(operator)
    config = ObjectiveConfig(
        predict="state", normalisation="none", noise=eps, noise_unit="norm", padding_loss=True, shift=False
    )
    loss, losses = DenoisingObjective(operator, config, seed)(batch)

    x, y = (part.clone() for part in (batch.history, batch.target))
    x[..., 1], y[..., 1] = 1, 1
    drawn = add_noise(torch.zeros(x.shape), torch.tensor(1.0), batch.position, seed)
    norm = x.square().sum((1, 2, 3), keepdim=True).sqrt()
    out = operator.network(x + eps * norm * drawn)
    flat = (out - y).flatten(1, 3), y.flatten(1, 3)
    expected = (flat[0].norm(dim=1) / (flat[1].norm(dim=1) + 1e-8)).mean(1)
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(loss, expected.mean())
    without = DenoisingObjective(operator, config.model_copy(update={"padding_loss": False}), seed)(batch)[1]
    torch.testing.assert_close(without, flat[0].norm(dim=1)[:, 0] / flat[1].norm(dim=1)[:, 0])


def test_adam_takes_the_references_steps_with_a_mean_for_its_sum() -> None:
    """As the objective's docstring says: with epsilon and coupled weight decay divided by the number of samples."""
    samples, found = 6, []
    x, y = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0)).split(2, dim=1)
    for divide in (1, samples):
        weight = torch.full((2, 2), 0.5, requires_grad=True)
        adam = torch.optim.Adam([weight], lr=0.1, weight_decay=0.3 / divide, eps=0.1 / divide)
        for _ in range(5):
            adam.zero_grad()
            ((x @ weight - y).norm(dim=1).sum() / divide).backward()
            adam.step()
        found.append(weight.detach())
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("normalisation", ["none", "mean_std", "sample"])
def test_noise_by_the_norm_is_that_by_the_field_times_the_root_of_its_points(normalisation: str) -> None:
    operator = make_operator(normalisation=normalisation)
    history, rows = 2 + 3 * torch.randn(3, 16, 16, 3, 2), torch.zeros(3, dtype=torch.int64)
    units = {}
    for unit in ("field", "norm"):
        config = ObjectiveConfig(normalisation=normalisation, noise=0.1, noise_unit=unit)
        units[unit] = DenoisingObjective(operator, config, seed=0)._noise_unit(history, rows)
    torch.testing.assert_close(units["norm"], units["field"] * (16 * 16 * 3) ** 0.5)


@pytest.mark.parametrize("unit", ["field", "norm"])
def test_what_stands_outside_the_domain_does_not_set_the_level_of_noise(unit: str) -> None:
    operator, rows = make_operator(normalisation="none"), torch.zeros(2, dtype=torch.int64)
    config = ObjectiveConfig(normalisation="none", noise=0.1, noise_unit=unit)
    objective = DenoisingObjective(operator, config, seed=0)
    history, mask = torch.randn(2, 16, 16, 3, 2), torch.rand(2, 16, 16) < 0.6
    found = objective._noise_unit(history, rows, mask)
    inside = [x[m].flatten(0, 1) for x, m in zip(history, mask, strict=True)]  # (points x frames, C)
    root = [1 if unit == "norm" else len(x) ** 0.5 for x in inside]
    expected = torch.stack([x.norm(dim=0) / n for x, n in zip(inside, root, strict=True)])
    torch.testing.assert_close(found.flatten(1), expected)
    history[~mask] = 1e6
    assert torch.equal(objective._noise_unit(history, rows, mask), found)
    whole = torch.ones_like(mask)
    torch.testing.assert_close(objective._noise_unit(history, rows, whole), objective._noise_unit(history, rows))
