"""Normalisation: what the network sees, what its output means, and how the noise is counted, under each rule."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import read_json, write_json
from pretrain.config import ObjectiveConfig, RunConfig
from pretrain.model import DatasetScaling, Operator, load_operator_files, save_operator
from pretrain.objective import DenoisingObjective
from pretrain.run import prepare
from tests.operators import make_operator

ROW = torch.zeros(2, dtype=torch.int64)
MEAN, STD = 2.0, 1.5  # of make_operator's dataset


def history() -> Tensor:
    return 3 + 2 * torch.randn(2, 16, 16, 3, 2, generator=torch.Generator().manual_seed(0))


def seen_by(operator: Operator, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What enters the network, what leaves it, and what the operator makes of that."""
    calls: list[tuple[Tensor, Tensor]] = []
    hook = operator.network.register_forward_hook(lambda _, inputs, output: calls.append((inputs[0], output)))
    y = operator(x, ROW)
    hook.remove()
    return *calls[0], y


def own_figures(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), correction=0, keepdim=True)


@pytest.mark.parametrize("predict", ["state", "change"])
@pytest.mark.parametrize("rule", ["none", "mean_std", "rms", "sample"])
def test_fields_enter_and_leave_by_the_rules_figures(rule: str, predict: str) -> None:
    x = history()
    rms = (MEAN**2 + STD**2) ** 0.5
    figures = {"none": (0, 1), "mean_std": (MEAN, STD), "rms": (0, rms), "sample": own_figures(x)}
    shift, scale = figures[rule]
    entered, left, y = seen_by(make_operator(normalisation=rule, predict=predict), x)
    torch.testing.assert_close(entered, (x - shift) / scale)
    torch.testing.assert_close(y, shift + scale * left if predict == "state" else x[..., -1:, :] + 0.1 * scale * left)


@pytest.mark.parametrize("predict", ["state", "change"])
def test_by_sample_the_operator_knows_no_units(predict: str) -> None:
    operator, x = make_operator(normalisation="sample", predict=predict), history()
    torch.testing.assert_close(operator(100 * x - 7, ROW), 100 * operator(x, ROW) - 7, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567, -1e-5])
def test_a_constant_channel_is_not_blown_up(value: float) -> None:
    operator, x = make_operator(normalisation="sample"), history()
    x[..., 1] = value
    x[:, 0, 0, 0, 1] *= 1 + 2e-7  # constant to rounding
    entered, left, y = seen_by(operator, x)
    assert entered[..., 1].abs().max() <= 1e-6 * max(1, abs(value))
    torch.testing.assert_close(y[..., 1], x[..., -1:, 1] + 0.1 * left[..., 1])  # its own units
    x.requires_grad_()
    operator(x, ROW).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_a_field_that_is_constant_over_its_dataset_keeps_its_units() -> None:
    toy = DatasetScaling(name="toy", channels=("a", "b"), mean=(2.0, 0.0), std=(0.0, 0.0), change_rms=(0.0,) * 2, dt=1)
    x = history()
    assert torch.equal(seen_by(make_operator(datasets=(toy,)), x)[0], x - torch.tensor([2.0, 0.0]))
    by_rms = seen_by(make_operator(datasets=(toy,), normalisation="rms"), x)[0]
    assert torch.equal(by_rms, x / torch.tensor([2.0, 1.0]))


def test_an_operator_saved_under_the_rules_former_name_is_the_same(tmp_path: Path) -> None:
    operator = make_operator()
    save_operator(operator, tmp_path)
    content = read_json(tmp_path / "model.json")
    assert content["normalisation"] == "mean_std"
    for key in ("slots", "parameters"):  # what did not exist then
        del content[key]
    for key in ("boundaries", "parameters"):
        del content["datasets"][0][key]
    write_json(tmp_path / "model.json", content | {"normalisation": "dataset"})
    loaded = load_operator_files(tmp_path)
    assert loaded.config == operator.config
    assert torch.equal(loaded(history(), ROW), operator(history(), ROW))


def test_a_run_laid_out_under_the_rules_former_name_goes_on(tmp_path: Path) -> None:
    run = RunConfig.model_validate(
        {
            "name": "toy", "seed": 0, "data": (), "history": 3, "objective": {"normalisation": "dataset"},
            "training": {"steps": 1}, "tracking": {},
        }
    )  # fmt: skip
    prepare(tmp_path, run, make_operator())
    content = read_json(tmp_path / "config.json")
    assert content["objective"]["normalisation"] == "mean_std"
    write_json(tmp_path / "config.json", content | {"objective": content["objective"] | {"normalisation": "dataset"}})
    prepare(tmp_path, run, make_operator())
    other = run.model_copy(update={"objective": run.objective.model_copy(update={"normalisation": "rms"})})
    with pytest.raises(ConfigError, match=r"objective\.normalisation: 'mean_std' in the folder, 'rms' asked for"):
        prepare(tmp_path, other, make_operator())


@pytest.mark.parametrize("rule", ["none", "mean_std", "rms", "sample"])
def test_the_unit_of_noise_is_the_fields_rms_about_what_is_subtracted(rule: str) -> None:
    operator, x = make_operator(normalisation=rule), history()
    shift = {"none": 0, "rms": 0, "mean_std": MEAN, "sample": own_figures(x)[0]}[rule]
    expected = (x - shift).square().mean((1, 2, 3), keepdim=True).sqrt()
    objective = DenoisingObjective(operator, ObjectiveConfig(normalisation=rule, noise_unit="field"), seed=0)
    torch.testing.assert_close(objective._noise_unit(x, ROW), expected)


@pytest.mark.parametrize("rule", ["none", "mean_std", "rms", "sample"])
def test_noise_counted_in_changes_does_not_depend_on_the_rule_and_spares_fields_that_stand_still(rule: str) -> None:
    known = DatasetScaling(name="toy", channels=("a", "b"), mean=(2.0,) * 2, std=(1.5,) * 2, change_rms=(0.5, 0), dt=1)
    operator = make_operator(("a", "b", "absent"), datasets=(known,), normalisation=rule)
    objective = DenoisingObjective(operator, ObjectiveConfig(normalisation=rule, noise_unit="change"), seed=0)
    assert objective._noise_unit(history(), ROW).flatten(1).tolist() == [[0.5, 0, 1]] * 2
