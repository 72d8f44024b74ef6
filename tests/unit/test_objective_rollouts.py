"""Roll-outs in training: how far their gradients reach, how long they are, and that masks hold in all of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.loader import Batch
from pretrain.config import ObjectiveConfig
from pretrain.model.operator import Operator
from pretrain.objective import DenoisingObjective, relative_l2_loss
from tests.operators import make_operator
from tests.unit.test_objective import batch_for

Gradients = dict[str, Tensor]


def gradients_of(operator: Operator, loss: Tensor) -> Gradients:
    operator.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in operator.named_parameters() if p.grad is not None}


def learned(operator: Operator, batch: Batch, *, update: int | None = None, **config: Any) -> tuple[Tensor, Gradients]:
    objective = DenoisingObjective(operator, ObjectiveConfig(**{"noise": 0} | config), seed=0, batch_size=update)
    loss, _ = objective(batch)
    return loss.detach(), gradients_of(operator, loss)


def plain(operator: Operator, batch: Batch, steps: int, after: Callable[[Tensor], Tensor]) -> tuple[list, list]:
    """A roll-out a frame at a time: every history, and every prediction; `after` is done to what is fed back."""
    frames, histories, predictions = list(batch.history.unbind(-2)), [], []
    for _ in range(steps):
        histories.append(torch.stack(frames[-operator.frames_in :], dim=-2))
        predictions.append(operator(histories[-1], batch.dataset))
        frames += [after(frame) for frame in predictions[-1].unbind(-2)]
    return histories, predictions


def mean_loss(predictions: list[Tensor], target: Tensor, batch: Batch) -> Tensor:
    return relative_l2_loss(torch.cat(predictions, -2), target, batch.channel_mask).mean()


def assert_equal(found: tuple[Tensor, Gradients], operator: Operator, expected: Tensor) -> None:
    torch.testing.assert_close(found[0], expected.detach())
    wanted = gradients_of(operator, expected)
    assert found[1].keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[1][name], gradient, msg=name, rtol=1e-4, atol=1e-7)


# Three frames are seen, so two at once overlap with what was seen, and four at once replace it.
@pytest.mark.parametrize(
    ("steps", "bundle", "predict"), [(2, 1, "change"), (3, 1, "state"), (2, 2, "change"), (2, 4, "change")]
)
def test_every_rollout_is_its_plain_transcription(steps: int, bundle: int, predict: str) -> None:
    operator = make_operator(space=(8, 8), network={"out_timesteps": bundle}, predict=predict)
    batch = batch_for(operator, steps * bundle)
    options = {"rollout_steps": steps, "predict": predict}

    _, predictions = plain(operator, batch, steps, lambda frame: frame)
    assert_equal(learned(operator, batch, **options), operator, mean_loss(predictions, batch.target, batch))

    _, predictions = plain(operator, batch, steps, Tensor.detach)
    expected = mean_loss(predictions, batch.target, batch)
    assert_equal(learned(operator, batch, rollout_gradient="truncated", **options), operator, expected)

    with torch.no_grad():
        histories, _ = plain(operator, batch, steps, lambda frame: frame)
    last = operator(histories[-1], batch.dataset)  # as if the history had come from the data
    expected = mean_loss([last], batch.target[..., -bundle:, :], batch)
    assert_equal(learned(operator, batch, rollout_gradient="push_forward", **options), operator, expected)


def test_truncated_and_full_have_one_loss_and_two_gradients() -> None:
    operator = make_operator()
    batch = batch_for(operator, 2)
    full, truncated = (learned(operator, batch, rollout_steps=2, rollout_gradient=g) for g in ("full", "truncated"))
    assert torch.equal(full[0], truncated[0])
    name = "network.out_layer.4.weight"
    assert (full[1][name] - truncated[1][name]).norm() > 0.1 * full[1][name].norm()


def test_push_forward_makes_only_its_last_prediction_with_gradients() -> None:
    operator = make_operator()
    kept: list[bool] = []
    operator.register_forward_hook(lambda *_: kept.append(torch.is_grad_enabled()))
    learned(operator, batch_for(operator, 3), rollout_steps=3, rollout_gradient="push_forward")
    assert kept == [False, False, True]


def test_push_forward_keeps_all_gradients_under_autocast() -> None:
    """Autocast keeps the weights that it has rounded: not those of the steps without gradients for the last one."""
    operator = make_operator()
    batch = batch_for(operator, 2)
    config = ObjectiveConfig(noise=0, rollout_steps=2, rollout_gradient="push_forward")
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = DenoisingObjective(operator, config, seed=0)(batch)
    found = loss.detach(), gradients_of(operator, loss)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        histories, _ = plain(operator, batch, 2, lambda frame: frame)
    with torch.autocast("cpu", torch.bfloat16):
        expected = mean_loss([operator(histories[-1], batch.dataset).float()], batch.target[..., -1:, :], batch)
    assert_equal(found, operator, expected)


@pytest.mark.parametrize("gradient", ["full", "push_forward"])
def test_a_random_number_of_steps_is_that_of_the_update(gradient: str) -> None:
    """Whichever micro-batch of it a rank has: under ZeRO-3 it must call the network as often as the others."""
    operator = make_operator(space=(8, 8))
    calls: list[int] = []
    operator.register_forward_hook(lambda *_: calls.append(1))
    config = ObjectiveConfig(noise=0, rollout_steps=3, rollout_gradient=gradient, rollout_random=True)
    objective, whole = DenoisingObjective(operator, config, seed=0, batch_size=4), batch_for(operator, 3, size=2)
    losses: dict[int, Tensor] = {}
    numbers = []
    for first in range(0, 32, 2):
        calls.clear()
        loss, _ = objective(replace(whole, position=torch.arange(first, first + 2)))
        numbers.append(len(calls))
        assert torch.equal(losses.setdefault(len(calls), loss), loss)
    assert numbers[::2] == numbers[1::2]
    for steps in (1, 2, 3):  # each has occurred, and is the objective of that many steps
        own = {"rollout_steps": steps} | ({"rollout_gradient": gradient} if steps > 1 else {})
        loss, _ = DenoisingObjective(operator, ObjectiveConfig(noise=0, **own), seed=0)(
            replace(whole, window=whole.window[:, : operator.frames_in + steps])
        )
        assert torch.equal(losses[steps], loss)


@pytest.mark.parametrize("options", [
    {"rollout_gradient": "full"}, {"rollout_gradient": "truncated"}, {"rollout_gradient": "push_forward"},
])  # fmt: skip
def test_a_sample_learns_the_same_in_any_micro_batch(options: dict[str, Any]) -> None:
    operator = make_operator()
    config = ObjectiveConfig(noise=0.2, rollout_steps=2, **options)
    objective = DenoisingObjective(operator, config, seed=3)
    batch = batch_for(operator, 2, size=4)
    _, together = objective(batch)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    apart = [objective(replace(batch, **{k: v[rows] for k, v in tensors.items()}))[1] for rows in ([0, 1], [2, 3])]
    torch.testing.assert_close(torch.cat(apart), together)
    assert torch.equal(objective(batch)[1], together)


@pytest.mark.parametrize("gradient", ["full", "truncated", "push_forward"])
def test_what_is_stored_outside_the_domain_or_in_missing_channels_teaches_nothing(gradient: str) -> None:
    operator = make_operator(("a", "b"))
    toy = operator.config.datasets[0]
    figures = {name: getattr(toy, name)[:1] for name in ("channels", "mean", "std", "change_rms")}
    operator = Operator(operator.config.model_copy(update={"datasets": (toy.model_copy(update=figures),)}))
    batch = batch_for(operator, 3)
    batch.window[..., 1] = 0
    mask = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.6
    batch = replace(batch, channel_mask=torch.tensor([[True, False]] * 3), point_mask=mask)
    changed = replace(batch, window=batch.window.clone())
    changed.target[~mask] = 7.0
    changed.target[..., 1] = 5.0
    options = {"rollout_steps": 3, "rollout_gradient": gradient, "noise": 0.2}
    (loss, gradients), (other, others) = (learned(operator, b, **options) for b in (batch, changed))
    assert torch.equal(loss, other)
    assert all(torch.equal(gradients[name], others[name]) for name in gradients)


def test_a_rollout_of_bundles_sees_stored_values_outside_the_domain() -> None:
    operator = make_operator(network={"out_timesteps": 2})
    seen: list[Tensor] = []
    operator.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    mask = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.6
    batch = replace(batch_for(operator, 4), point_mask=mask)
    learned(operator, batch, rollout_steps=2, rollout_gradient="push_forward", noise=0.2)
    last = batch.history[..., -1:, :].expand(-1, -1, -1, 2, -1)
    assert torch.equal(seen[1][..., -2:, :][~mask], last[~mask])
