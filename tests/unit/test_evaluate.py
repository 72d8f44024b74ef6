"""An evaluation scores the predicted frames of the dataset's own channels, and hides nothing."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.base.files import write_json
from data_pipeline.config import ScoreConfig
from pretrain.evaluate import Evaluation, evaluate
from pretrain.metrics import relative_l2, vrmse
from pretrain.model.operator import Operator
from tests.operator_fakes import SPACE, T_IN, WAVE, MemoryStore, Shift, operator_config, travelling_waves

FRAMES = 8


class Scaled(Shift):
    """The exact operator, `factor` times too large."""

    factor = 1.1

    def forward(self, history: Tensor, dataset: Tensor, *_: object) -> Tensor:
        return self.factor * super().forward(history, dataset)


class Breaks(Shift):
    """The exact operator, until a spike stands in the first row of the last known frame."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, history: Tensor, dataset: Tensor, *_: object) -> Tensor:
        block = super().forward(history, dataset)
        block[(history[:, 0, ..., -1, :] > 90).flatten(1).any(dim=1)] = self.value
        return block


def tiny() -> Operator:
    torch.manual_seed(0)
    return Operator(operator_config(2))


@pytest.mark.parametrize("out_timesteps", [1, 2])
def test_the_exact_operator_has_no_error(out_timesteps: int) -> None:
    found = evaluate(Shift(out_timesteps, rubbish=1e3), MemoryStore(travelling_waves()))
    assert (found.relative_l2, found.one_step, found.vrmse, found.diverged) == (0, 0, 0, 0)
    assert found.per_channel == dict.fromkeys(WAVE, 0.0)
    assert found.error_over_time == (0.0,) * (FRAMES - T_IN)
    assert found.persistence > 0.5
    assert (found.dataset, found.split, found.trajectories, found.frames) == ("wave", "test", 3, FRAMES - T_IN)


def test_three_dimensions_are_no_different() -> None:
    space = (8, 4, 4)
    store = MemoryStore(travelling_waves(space=space))
    found = evaluate(Shift(2, rubbish=1e3, space=space), store)
    assert (found.relative_l2, found.one_step) == (0, 0)
    assert found.example.truth.shape == (FRAMES - T_IN, *space, 2)


def test_persistence_of_a_constant_trajectory_is_zero() -> None:
    found = evaluate(Scaled(), MemoryStore(np.ones((2, FRAMES, *SPACE, 2))))
    assert (found.persistence, found.one_step_persistence, found.persistence_vrmse) == (0, 0, 0)
    assert found.persistence_over_time == (0.0,) * (FRAMES - T_IN)
    assert found.relative_l2 > 0.1


def test_only_what_is_to_be_scored_counts() -> None:
    fields = travelling_waves()
    field = WAVE[1]
    found = evaluate(Scaled(), MemoryStore(fields), score=ScoreConfig(frames=2, every=2, channels=(field,)))
    truth = torch.from_numpy(fields[:, T_IN : T_IN + 2, ::2, ::2, 1:])
    prediction = truth * (1.1 ** torch.arange(1, 3))[:, None, None, None]
    persistence = torch.from_numpy(fields[:, T_IN - 1 : T_IN, ::2, ::2, 1:]).expand_as(truth)
    assert (found.frames, found.every, found.channels, list(found.per_channel)) == (2, 2, (field,), [field])
    assert found.relative_l2 == pytest.approx(relative_l2(prediction, truth).item(), rel=1e-5)
    assert found.persistence == pytest.approx(relative_l2(persistence, truth).item(), rel=1e-6)
    assert found.vrmse == pytest.approx(vrmse(prediction, truth).mean().item(), rel=1e-5)
    with pytest.raises(ConfigError, match=r"score.channels[\s\S]*did you mean"):
        evaluate(Scaled(), MemoryStore(fields), score=ScoreConfig(channels=(f"{field}_",)))


def test_errors_are_those_of_the_rolled_out_frames() -> None:
    fields = travelling_waves()
    found = evaluate(Scaled(), MemoryStore(fields))
    truth = torch.from_numpy(fields[:, T_IN:])
    growth = 1.1 ** torch.arange(1, FRAMES - T_IN + 1)
    prediction = truth * growth[:, None, None, None]
    persistence = torch.from_numpy(fields[:, T_IN - 1 : T_IN]).expand_as(truth)
    assert found.relative_l2 == pytest.approx(relative_l2(prediction, truth).item(), rel=1e-5)
    assert found.vrmse == pytest.approx(vrmse(prediction, truth).mean().item(), rel=1e-5)
    assert found.persistence == pytest.approx(relative_l2(persistence, truth).item())
    assert found.persistence_vrmse == pytest.approx(vrmse(persistence, truth).mean().item())
    assert sum(found.persistence_per_channel.values()) / 2 == pytest.approx(found.persistence)
    over_time = [relative_l2(persistence[:, k : k + 1], truth[:, k : k + 1]).item() for k in range(FRAMES - T_IN)]
    assert found.persistence_over_time == pytest.approx(over_time)
    assert found.error_over_time == pytest.approx((growth - 1).tolist(), rel=1e-5)
    assert found.one_step == pytest.approx(0.1, rel=1e-5)
    one_step = [
        relative_l2(torch.from_numpy(fields[:, t - 1 : t]), torch.from_numpy(fields[:, t : t + 1])).item()
        for t in range(T_IN, FRAMES)
    ]
    assert found.one_step_persistence == pytest.approx(np.mean(one_step))


def test_context_frames_do_not_count() -> None:
    fields = travelling_waves()
    changed = fields.copy()
    changed[:, : T_IN - 1] *= 100  # `Scaled` looks at the last frame of the history alone
    assert evaluate(Scaled(), MemoryStore(fields)).relative_l2 == evaluate(Scaled(), MemoryStore(changed)).relative_l2


def test_channels_are_found_by_name_in_the_stores_order() -> None:
    fields = travelling_waves()
    operator = tiny()
    found = evaluate(operator, MemoryStore(fields))
    swapped = evaluate(operator, MemoryStore(fields[..., ::-1], channels=WAVE[::-1]))
    assert swapped.per_channel == found.per_channel
    assert tuple(swapped.per_channel) == WAVE[::-1]
    assert found.per_channel["speed"] != found.per_channel["height"]


def test_the_result_does_not_depend_on_batches() -> None:
    store, operator = MemoryStore(travelling_waves(5)), tiny()
    whole = evaluate(operator, store, batch_size=8).model_dump()
    for batch_size in (1, 2, 3):
        parts = evaluate(operator, store, batch_size=batch_size).model_dump()
        assert parts["relative_l2"] == pytest.approx(whole["relative_l2"], rel=1e-5)
        assert parts["error_over_time"] == pytest.approx(whole["error_over_time"], rel=1e-5)


def test_limit_takes_the_first_trajectories() -> None:
    fields = travelling_waves(5)
    limited = evaluate(Scaled(), MemoryStore(fields), limit=2, batch_size=1)
    assert limited.model_dump() == evaluate(Scaled(), MemoryStore(fields[:2]), batch_size=1).model_dump()


def spiked_waves() -> np.ndarray:
    """Travelling waves, the second with a spike that enters the first row with the third predicted frame."""
    fields = travelling_waves()
    for t in range(FRAMES):
        fields[1, t, (t - T_IN - 2) % SPACE[0], 0] = 99.0
    return fields


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_is_reported_not_hidden(value: float) -> None:
    found = evaluate(Breaks(value), MemoryStore(spiked_waves()))
    assert found.diverged == 1
    assert (found.relative_l2, found.vrmse, found.one_step) == (None, None, None)
    assert set(found.per_channel.values()) == {None}
    assert found.error_over_time == (0.0, 0.0, 0.0, None, None)
    assert 0 < found.persistence < 10


def test_a_huge_error_is_a_number() -> None:
    found = evaluate(Breaks(3e38), MemoryStore(spiked_waves()))
    assert found.diverged == 0
    assert found.relative_l2 > 1e30


def test_an_evaluation_is_json_and_comes_back(tmp_path) -> None:
    found = evaluate(tiny(), MemoryStore(travelling_waves()))
    write_json(tmp_path / "evaluation.json", found.model_dump(mode="json"))
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert "example" not in content
    assert build(Evaluation, content).model_dump() == found.model_dump()


def test_the_example_is_the_first_trajectory() -> None:
    fields = travelling_waves()
    example = evaluate(Shift(), MemoryStore(fields), batch_size=2).example
    np.testing.assert_array_equal(example.truth, fields[0, T_IN:])
    np.testing.assert_array_equal(example.prediction, fields[0, T_IN:])
    assert (example.dataset, example.channels, example.dt) == ("wave", WAVE, 0.5)


def test_dropout_is_off_and_the_mode_comes_back() -> None:
    operator = Shift()
    operator.dropout = nn.Dropout()
    operator.frozen = nn.Dropout().eval()
    operator.train()
    operator.frozen.eval()
    seen = []
    operator.register_forward_hook(lambda module, *_: seen.append(module.dropout.training))
    evaluate(operator, MemoryStore(travelling_waves(1)))
    assert seen
    assert not any(seen)
    assert operator.training
    assert operator.dropout.training
    assert not operator.frozen.training


def test_an_empty_split_is_named() -> None:
    with pytest.raises(DataError, match="'wave' has no trajectory in split 'test'"):
        evaluate(Shift(), MemoryStore(travelling_waves(0)))


def test_short_trajectories_are_named() -> None:
    with pytest.raises(DataError, match=f"found: {T_IN} frames"):
        evaluate(Shift(), MemoryStore(travelling_waves(frames=T_IN)))


def test_nan_in_the_data_is_named() -> None:
    fields = travelling_waves()
    fields[2, 0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="trajectory 2"):
        evaluate(Shift(), MemoryStore(fields), batch_size=2)


@pytest.mark.parametrize(
    ("store", "found", "expected"),
    [
        (MemoryStore(travelling_waves(), channels=("speed", "depth")), "speed, depth", "speed, height"),
        (MemoryStore(travelling_waves()[..., :1], channels=("speed",)), "channels speed;", "speed, height"),
        (MemoryStore(travelling_waves()[:, :, :4]), r"\(4, 8\)", r"\(8, 8\)"),
        (MemoryStore(travelling_waves(), dt=0.25), "dt 0.25", "dt 0.5"),
        (MemoryStore(travelling_waves(), name="wavy"), "wave", "did you mean 'wave'"),
    ],
)
def test_a_store_that_the_operator_does_not_know_is_refused(store: MemoryStore, found: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s){found}.*{expected}"):
        evaluate(Shift(), store)


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"limit": 0}, {"limit": -1}])
def test_nothing_to_evaluate_is_an_error(setting: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate(Shift(), MemoryStore(travelling_waves()), **setting)
