"""A roll-out is the operator called on its own predictions, frame by frame, in bounded memory."""

import weakref

import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from pretrain.model.dpot import Dpot, SpectralMixer
from pretrain.model.operator import Operator
from pretrain.rollout import rollout, rollout_block
from tests.operator_fakes import SPACE, T_IN, Shift, operator_config

WAVE_AND_OTHER = torch.tensor([0, 1])
OWNED = torch.tensor([[1, 1, 0], [0, 1, 1]], dtype=torch.bool)  # which slots "wave" and "other" have


def history(batch: int = 2) -> Tensor:
    return torch.randn(batch, *SPACE, T_IN, 3, generator=torch.Generator().manual_seed(0))


def tiny(out_timesteps: int = 1) -> Operator:
    torch.manual_seed(0)
    return Operator(operator_config(out_timesteps))


@pytest.mark.parametrize("out_timesteps", [1, 2, 5])
def test_rollout_equals_step_by_step_calls(out_timesteps: int) -> None:
    operator, steps = tiny(out_timesteps), 7
    owned = OWNED[:, None, None, None, :]
    frames = history() * owned
    with torch.no_grad():
        while frames.shape[-2] < T_IN + steps:
            frames = torch.cat([frames, operator(frames[..., -T_IN:, :], WAVE_AND_OTHER) * owned], dim=-2)
    expected = frames[..., T_IN : T_IN + steps, :].movedim(-2, 1)

    found = rollout_block(operator, history(), WAVE_AND_OTHER, steps)

    assert found.shape == (2, steps, *SPACE, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.stack(list(rollout(operator, history(), WAVE_AND_OTHER, steps)), 1), found)


def test_products_of_weights_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    operator, computed = tiny(), []
    fold, matrices = Dpot._fold, SpectralMixer.matrices
    monkeypatch.setattr(Dpot, "_fold", lambda self, space: (computed.append("fold"), fold(self, space))[1])
    monkeypatch.setattr(SpectralMixer, "matrices", lambda self: (computed.append("mixer"), matrices(self))[1])
    rollout_block(operator, history(), WAVE_AND_OTHER, 5)
    assert sorted(computed) == ["fold", "mixer"]  # the network has one block


@pytest.mark.parametrize("out_timesteps", [1, 3])
def test_the_exact_operator_goes_round_the_domain(out_timesteps: int) -> None:
    start = history() * OWNED[:, None, None, None, :]
    last = rollout_block(Shift(out_timesteps), start, WAVE_AND_OTHER, SPACE[0])[:, -1]
    torch.testing.assert_close(last, start[..., -1, :], rtol=0, atol=0)


@pytest.mark.parametrize("rubbish", [1e3, float("nan")])
def test_unused_slots_never_leak(rubbish: float) -> None:
    dataset = torch.tensor([0])
    clean = history(1)
    clean[..., 2] = 0.0
    dirty = clean.clone()
    dirty[..., 2] = rubbish
    found = rollout_block(Shift(2, rubbish), dirty, dataset, 5)
    torch.testing.assert_close(found, rollout_block(Shift(2), clean, dataset, 5), rtol=0, atol=0)
    assert not found[..., 2].any()


class Witness(Shift):
    """Keeps an eye on what stays in memory."""

    def __init__(self) -> None:
        super().__init__(out_timesteps=2)
        self.windows: list[int] = []
        self.made: list[weakref.ref[Tensor]] = []

    def forward(self, history: Tensor, dataset: Tensor, *_: object) -> Tensor:
        self.windows.append(history.untyped_storage().nbytes())
        block = super().forward(history, dataset)
        self.made.append(weakref.ref(block))
        return block


def test_memory_does_not_grow_with_steps() -> None:
    operator = Witness()
    frames = rollout(operator, history(), WAVE_AND_OTHER, 100)
    seen = [weakref.ref(frame) for frame in frames]
    assert len(seen) == 100
    assert len(set(operator.windows[1:])) == 1
    assert sum(ref() is not None for ref in [*seen, *operator.made]) <= 2


def test_frames_come_as_they_are_made() -> None:
    operator = Witness()
    frames = rollout(operator, history(), WAVE_AND_OTHER, 10**9)
    next(frames)
    assert len(operator.made) == 1


def test_no_gradients_inside_and_no_inference_mode_outside() -> None:
    operator = tiny()
    frames = rollout(operator, history(), WAVE_AND_OTHER, 2)
    assert next(frames).is_inference()
    assert not torch.is_inference_mode_enabled()
    block = rollout_block(operator, history(), WAVE_AND_OTHER, 2)
    assert not block.requires_grad
    assert not block.is_inference()


def test_the_callers_tensors_are_left_alone() -> None:
    start = history()
    for frame in rollout(Shift(), start, WAVE_AND_OTHER, 3):
        assert frame.data_ptr() != start.data_ptr()
    torch.testing.assert_close(start, history(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("start", "dataset", "steps", "word"),
    [
        (torch.zeros(2, 8, 8, T_IN + 1, 3), WAVE_AND_OTHER, 1, "history"),
        (torch.zeros(2, 8, 4, T_IN, 3), WAVE_AND_OTHER, 1, "history"),
        (torch.zeros(2, 8, 8, T_IN, 2), WAVE_AND_OTHER, 1, "history"),
        (torch.zeros(8, 8, T_IN, 3), WAVE_AND_OTHER, 1, "history"),
        (torch.zeros(2, 8, 8, T_IN, 3), torch.tensor([0, 2]), 1, "dataset"),
        (torch.zeros(2, 8, 8, T_IN, 3), torch.tensor([0, -1]), 1, "dataset"),
        (torch.zeros(2, 8, 8, T_IN, 3), torch.tensor([0]), 1, "dataset"),
        (torch.zeros(2, 8, 8, T_IN, 3), WAVE_AND_OTHER, 0, "steps"),
    ],
)
def test_what_does_not_fit_is_named_at_the_call(start: Tensor, dataset: Tensor, steps: int, word: str) -> None:
    with pytest.raises(ConfigError, match=f"key: {word}"):
        rollout(Shift(), start, dataset, steps)
