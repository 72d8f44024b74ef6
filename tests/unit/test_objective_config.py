"""Objectives that make no sense are refused with the configuration, and those of before are what they were."""

from typing import Any

import pytest

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError
from finetune.config import FinetuneConfig
from finetune.train import _check_agreement
from pretrain.config import ObjectiveConfig, PretrainConfig
from pretrain.model.operator import Operator
from tests.operators import make_operator
from tests.training import MODEL

FNO = {"library": "neuraloperator", "architecture": "FNO", "arguments": {"n_modes": [4, 4], "hidden_channels": 8}}
DATA = {"datasets": [{"config": "unused"}], "history": 3}
STATE = {"predict": "state", "normalisation": "none"}


def pretraining(objective: dict[str, Any], model: dict[str, Any] | None = None) -> PretrainConfig:
    content = {
        "name": "job", "output": "unused", "data": DATA, "training": {"steps": 1}, "objective": objective,
        "model": MODEL | (model or {}) if "library" not in (model or {}) else model,
    }  # fmt: skip
    return build(PretrainConfig, content)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"rollout_gradient": "truncated"}, "rollout_gradient: truncated .*set rollout_steps to 2"),
        ({"rollout_gradient": "push_forward"}, "rollout_gradient: push_forward .*set rollout_steps to 2"),
        ({"rollout_random": True}, "rollout_random: True .*set rollout_steps to 2"),
        ({"rollout_gradient": "pushforward", "rollout_steps": 2}, "rollout_gradient: .*'push_forward'"),
        ({"max_lead": 3, "rollout_steps": 2}, "max_lead 3 .*rollout_steps 2 .*set one of them to 1"),
        ({"padding_loss": True, "normalisation": "none"}, "padding_loss .*predict: change.*set predict: state"),
        (
            {"padding_loss": True, "predict": "state", "normalisation": "sample"},
            "padding_loss .*normalisation: sample",
        ),
        ({"noise_unit": "norm"}, "noise_unit: norm needs a noise of its own.*5e-4"),
        ({"max_lead": 0}, "max_lead"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(objective: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pretraining(objective)


@pytest.mark.parametrize(
    ("objective", "model", "message"),
    [
        ({"max_lead": 3}, {}, "max_lead 3 needs .*set condition to true"),
        ({"max_lead": 3}, FNO, "max_lead 3 needs .*set condition to true"),
        ({"max_lead": 3}, {"condition": True, "bundle": 2}, "max_lead 3 .*one frame, not 2"),
        ({"padding_loss": True} | STATE, {}, "padding_loss .*slots are named"),
    ],
)
def test_objectives_that_the_model_cannot_learn_are_refused(
    objective: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pretraining(objective, model)


def finetuning(objective: dict[str, Any], **adapt: Any) -> FinetuneConfig:
    job = {"name": "job", "output": "unused", "model": "unused", "data": DATA, "training": {"steps": 1}}
    return build(FinetuneConfig, job | {"objective": objective, "adapt": adapt})


@pytest.mark.parametrize(
    ("objective", "operator", "message"),
    [
        ({"max_lead": 3}, {}, "max_lead 3 needs .*adapt.condition"),
        ({"max_lead": 3}, {"network": {"conditions": 7, "out_timesteps": 2}}, "max_lead 3 .*one frame, not 2"),
        ({"padding_loss": True} | STATE, STATE, "padding_loss .*slots are named"),
    ],
)
def test_objectives_that_a_pretrained_model_cannot_learn_are_refused(
    objective: dict[str, Any], operator: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _check_agreement(finetuning(objective), make_operator(**operator))


def test_objectives_that_make_sense_are_taken() -> None:
    assert pretraining({"max_lead": 3}, {"condition": True}).objective.frames_out(1) == 3
    assert pretraining({"rollout_steps": 3}, {"bundle": 2}).objective.frames_out(2) == 6
    pretraining({"rollout_steps": 2, "rollout_gradient": "push_forward", "rollout_random": True})
    pretraining(STATE | {"padding_loss": True, "noise": 5e-4, "noise_unit": "norm"}, {"slots": "anonymous"})
    told: Operator = make_operator(network={"conditions": 7})
    _check_agreement(finetuning({"max_lead": 3}), told)
    _check_agreement(finetuning({"max_lead": 3}, condition=True), make_operator())


def test_what_is_new_is_off_by_default() -> None:
    old = {
        "predict": "change", "normalisation": "mean_std", "noise": 0.2, "noise_unit": "change", "shift": True,
        "rollout_steps": 1,
    }  # fmt: skip
    new = {"padding_loss": False, "rollout_gradient": "full", "rollout_random": False, "max_lead": 1}
    assert ObjectiveConfig().model_dump() == old | new
    assert pretraining({}).model.bundle == 1
    assert ObjectiveConfig(**old) == ObjectiveConfig()  # runs of before
