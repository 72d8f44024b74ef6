"""Conditions: what a network is told of its equation, and that it changes nothing before it is trained."""

from collections.abc import Sequence
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.loader import Batch
from finetune.adapt import adapt
from pretrain.config import ModelConfig, ObjectiveConfig
from pretrain.evaluate import evaluate
from pretrain.job import network_config
from pretrain.metrics import relative_l2, relative_l2_per_frame
from pretrain.model import DatasetScaling, Operator, load_operator_files, save_operator
from pretrain.model.conditions import condition_count, dataset_features, parameter_features, parameter_union
from pretrain.objective import DenoisingObjective, relative_l2_loss
from pretrain.registry import _save_served
from pretrain.rollout import rollout, rollout_block
from tests.operator_fakes import MemoryStore, travelling_waves
from tests.operators import make_operator

NAN = float("nan")
ROWS = torch.tensor([0, 1])


def known(name: str = "wave", parameters: tuple[str, ...] = ("speed",), **changes: object) -> DatasetScaling:
    figures = {"mean": (0.5,) * 2, "std": (2.0,) * 2, "change_rms": (1.0,) * 2, "dt": 0.5}
    content = {"name": name, "channels": ("u", "v"), "boundaries": ("periodic", "wall"), "parameters": parameters}
    return DatasetScaling.model_validate(content | figures | changes)


def conditioned(datasets: Sequence[DatasetScaling] = (known(), known("other", ("drag",), dt=5.0))) -> Operator:
    parameters = parameter_union(dataset.parameters for dataset in datasets)
    network = {"conditions": condition_count(2, len(parameters))}
    return make_operator(
        ("u", "v"), space=(8, 8), datasets=tuple(datasets), parameters=parameters, network=network, predict="state"
    )


def trained(operator: Operator) -> Operator:
    """As after some training: the conditions have an effect, if a small one."""
    torch.manual_seed(1)
    for name, parameter in operator.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    return operator


def history(batch: int = 2) -> Tensor:
    return torch.randn(batch, 8, 8, 3, 2, generator=torch.Generator().manual_seed(0))


def test_features_are_powers_of_ten_with_signs_and_flags() -> None:
    assert dataset_features(0.01, ("wall", "periodic"), 2) == [-2, 0, 1, 0, 1, 0, 0]
    assert dataset_features(1.0, (), 3) == [0.0] * 10  # the boundaries are not known
    values = torch.tensor([[1e-3, NAN], [0.0, -100.0]])
    expected = torch.tensor([[1, 1, -3, 0, 0, 0], [1, 0, -8, 1, -1, 2]], dtype=torch.float32)
    torch.testing.assert_close(parameter_features(values), expected)
    assert parameter_features(torch.empty(4, 0)).shape == (4, 0)
    assert condition_count(2, 2) == 7 + 6


def test_a_network_is_told_its_samples_dataset_and_parameters() -> None:
    operator = conditioned()
    assert operator.config.parameters == ("speed", "drag")
    told = operator.conditions(ROWS, torch.tensor([[10.0, NAN], [NAN, 1.0]]))
    expected = [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 0]]
    torch.testing.assert_close(told[:, 7:], torch.tensor(expected, dtype=torch.float32))
    torch.testing.assert_close(told[:, 0], torch.tensor([0.5, 5.0]).log10())
    assert told[0, 1:7].tolist() == [1, 0, 0, 0, 1, 0]
    torch.testing.assert_close(operator.conditions(ROWS, None), operator.conditions(ROWS, torch.full((2, 2), NAN)))


def test_conditions_change_nothing_before_they_are_trained(tmp_path: Path) -> None:
    plain = make_operator(("u", "v"), space=(8, 8), datasets=(known(),))
    save_operator(plain, tmp_path)
    operator = adapt(load_operator_files(tmp_path), [known()], ("u", "v"), (8, 8), {}, condition=True)
    assert operator.config.parameters == ("speed",)
    x, row, values = history(), torch.zeros(2, dtype=torch.int64), torch.tensor([[0.1], [10.0]])
    expected = plain(x, row)
    assert torch.equal(operator(x, row, values), expected)
    assert torch.equal(operator(x, row), expected)

    optimizer = torch.optim.SGD(operator.parameters(), lr=1.0)
    operator(x, row, values).square().mean().backward()
    touched = {name for name, p in operator.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"network.blocks.0.modulation.weight", "network.blocks.0.modulation.bias"} <= touched
    optimizer.step()
    assert not torch.equal(operator(x, row, values), operator(x, row, values.flip(0)))
    optimizer.zero_grad()
    operator(x, row, values).square().mean().backward()
    assert all(p.grad.any() for p in operator.network.condition.parameters())


def test_an_operator_without_conditions_makes_no_use_of_parameters() -> None:
    plain = make_operator(("u", "v"), space=(8, 8), datasets=(known(),))
    row = torch.zeros(2, dtype=torch.int64)
    assert not [name for name in plain.state_dict() if "condition" in name or "modulation" in name]
    assert torch.equal(plain(history(), row, torch.empty(2, 0)), plain(history(), row))


def test_adapting_to_new_parameters_keeps_what_was_learned_of_the_old() -> None:
    old = trained(conditioned())
    new = adapt(old, [known("new", ("viscosity", "speed"))], ("u", "v"), (8, 8), {})
    assert new.config.parameters == ("speed", "drag", "viscosity")
    x, row = history(), torch.zeros(2, dtype=torch.int64)
    told, more = torch.tensor([[3.0, NAN], [NAN, NAN]]), torch.tensor([[3.0, NAN, 1e-3], [NAN, NAN, 2.0]])
    assert not torch.equal(old(x, row, told), old(x, row))
    torch.testing.assert_close(new(x, row, more), old(x, row, told))
    new(x, row, more).square().mean().backward()
    assert new.network.condition[0].weight.grad[:, -3:].any()


def test_rollouts_and_evaluations_are_told_the_trajectorys_parameters() -> None:
    operator = trained(conditioned())
    values = torch.tensor([[4.0, NAN], [0.25, NAN]])
    row = torch.zeros(2, dtype=torch.int64)
    block = rollout_block(operator, history(), row, 3, values)
    assert torch.equal(block[:, 0], operator(history(), row, values)[..., 0, :])
    blind = rollout_block(operator, history(), row, 3)
    assert (relative_l2(blind, block) > 1e-3).all()

    class Speeds(MemoryStore):
        def parameters(self, trajectory: int) -> dict[str, float]:
            return {"speed": (4.0, 0.25)[trajectory]}

    store = Speeds(travelling_waves(count=2), channels=("u", "v"))
    frames = torch.from_numpy(store.fields).movedim(1, -2)
    expected = rollout_block(operator, frames[..., :3, :], row, 5, values)
    found = evaluate(operator, store, batch_size=1)
    torch.testing.assert_close(torch.from_numpy(found.example.prediction), expected[0])
    truth = frames[..., 3:, :].movedim(-2, 1)
    error = relative_l2(expected, truth).mean().item()
    assert found.relative_l2 == pytest.approx(error, rel=1e-5)
    steps = [rollout_block(operator, frames[..., s : s + 3, :], row, 1, values) for s in range(5)]
    error = relative_l2_per_frame(torch.cat(steps, dim=1), truth).mean().item()
    assert found.one_step == pytest.approx(error, rel=1e-5)


def test_the_objective_tells_its_samples_parameters() -> None:
    operator, values = trained(conditioned()), torch.tensor([[4.0, NAN], [NAN, 2.0]])
    batch = Batch.of(
        history=history(), target=torch.ones(2, 8, 8, 1, 2), channel_mask=torch.ones(2, 2, dtype=torch.bool),
        dataset=ROWS, dt=torch.ones(2), parameters=values, position=torch.arange(2),
    )  # fmt: skip
    _, losses = DenoisingObjective(operator, ObjectiveConfig(noise=0), seed=0)(batch)
    told, blind = operator(batch.history, ROWS, values), operator(batch.history, ROWS)
    assert torch.equal(losses, relative_l2_loss(told, batch.target, batch.channel_mask))
    assert not torch.equal(losses, relative_l2_loss(blind, batch.target, batch.channel_mask))


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2,)])
def test_parameters_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"(?s)key: parameters.*\(2, 2\): speed, drag"):
        rollout(conditioned(), history(), ROWS, 1, torch.zeros(shape))


def test_values_are_given_by_name() -> None:
    operator = conditioned()
    torch.testing.assert_close(operator.parameter_values({"drag": 2}), torch.tensor([[NAN, 2.0]]), equal_nan=True)
    with pytest.raises(ConfigError, match="did you mean 'speed'"):
        operator.parameter_values({"sped": 2.0})
    with pytest.raises(ConfigError, match="finite number"):
        operator.parameter_values({"speed": "fast"})


def test_a_network_of_another_number_of_conditions_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the network takes 9 conditions, .* make 10"):
        make_operator(("u", "v"), datasets=(known(),), parameters=("speed",), network={"conditions": 9})
    with pytest.raises(ValueError, match="the network takes 0 conditions"):
        make_operator(("u", "v"), datasets=(known(),), parameters=("speed",))
    with pytest.raises(ValueError, match="one for each axis"):
        make_operator(("u", "v"), datasets=(known(boundaries=("wall",)),))


def test_the_flag_sets_the_networks_conditions() -> None:
    model = ModelConfig(size="nano", condition=True)
    assert network_config(model, (16, 16), 2, 10, conditions=7).conditions == 7


def test_a_served_operator_is_told_parameters_by_name(tmp_path: Path) -> None:
    operator = trained(conditioned()).eval()
    (tmp_path / "operator").mkdir()
    save_operator(operator, tmp_path / "operator")
    _save_served(tmp_path / "operator", operator.config, tmp_path / "model", {})
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    x, row = history().numpy(), torch.zeros(2, dtype=torch.int64)
    for text, values in (("{}", [NAN, NAN]), ('{"speed": 3.0}', [3.0, NAN])):
        expected = rollout_block(operator, history(), row, 2, torch.tensor([values] * 2)).movedim(1, -2)
        found = served.predict(x, params={"steps": 2, "parameters": text})
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
    with pytest.raises(Exception, match="not a JSON object"):
        served.predict(x, params={"parameters": "speed=3"})
