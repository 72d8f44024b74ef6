"""Learning rates and momentum: against torch where torch has them, and their promises where it has not."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError
from pretrain.config import TrainingConfig
from pretrain.schedules import betas, learning_rate, set_rates, stable_steps


def training(**changes: Any) -> TrainingConfig:
    return build(TrainingConfig, {"steps": 100, "learning_rate": 1e-3} | changes)


def rates(config: TrainingConfig) -> list[float]:
    return [learning_rate(config, step) for step in range(config.steps)]


PUBLISHED = {"schedule": "onecycle", "warmup": 0.2, "betas": (0.95, 0.9), "cycle_beta1": 0.85}


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 0.2), (12, 0.2), (7, 0.1), (50, 0.33), (10, 1.0), (2, 0.9)])
def test_onecycle_is_torchs(steps: int, warmup: float) -> None:
    config = training(**PUBLISHED | {"steps": steps, "warmup": warmup})
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], betas=(0.9, 0.9))
    theirs = OneCycleLR(
        optimizer, 1e-3, total_steps=steps, pct_start=warmup, div_factor=1e4, final_div_factor=1e4
    )  # cosine, momentum 0.85 to 0.95: torch's defaults
    for step in range(steps):
        group = optimizer.param_groups[0]
        assert learning_rate(config, step) == pytest.approx(group["lr"], rel=1e-12)
        assert betas(config, step) == pytest.approx(group["betas"], rel=1e-12)
        optimizer.step()
        if step + 1 < steps:
            theirs.step()


def test_the_published_recipe_has_the_published_figures() -> None:
    config = training(**PUBLISHED | {"steps": 1000})
    found = rates(config)
    assert found[0] == pytest.approx(1e-7)
    assert (max(found), found.index(max(found))) == (1e-3, 199)
    assert found[-1] == pytest.approx(1e-11)
    beta1 = [betas(config, step)[0] for step in range(1000)]
    assert (beta1[0], min(beta1), beta1.index(min(beta1))) == (0.95, 0.85, 199)
    assert beta1[-1] == pytest.approx(0.95)
    assert {betas(config, step)[1] for step in range(1000)} == {0.9}


def test_the_cosine_is_bit_for_bit_what_it_was() -> None:
    """Runs of earlier versions go on with it."""
    config = training(warmup=0.1)
    for step, rate in enumerate(rates(config)):
        done = (step - 10) / 90
        risen, fallen = 1e-3 * (step + 1) / 10, 1e-3 * (1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * done)))
        assert rate == (risen if step < 10 else fallen)


@pytest.mark.parametrize(("shape", "half_way"), [("linear", 0.5), ("one_minus_sqrt", 1 - math.sqrt(0.5))])
def test_warm_up_stable_decay(shape: str, half_way: float) -> None:
    found = rates(training(schedule="wsd", warmup=0.1, decay=0.2, decay_shape=shape))
    assert found[:10] == pytest.approx([1e-4 * (n + 1) for n in range(10)])
    assert set(found[10:81]) == {1e-3}  # the decay's first step is still at the peak
    assert all(after < before for before, after in pairwise(found[80:]))
    assert found[90] == pytest.approx(half_way * 1e-3)
    assert 0 < found[-1] < 1e-3 / 19


def test_a_longer_run_has_the_same_stable_part() -> None:
    short, long = (training(schedule="wsd", decay=0.2, warmup=0.1, steps=steps) for steps in (100, 300))
    both = set(stable_steps(short)) & set(stable_steps(long))
    assert both == set(range(30, 80))
    assert {learning_rate(config, step) for config in (short, long) for step in both} == {1e-3}


def test_constant_stays() -> None:
    config = training(schedule="constant", warmup=0.1)
    assert set(rates(config)[9:]) == {1e-3}
    assert stable_steps(config) == range(10, 100)
    assert not stable_steps(training())


@pytest.mark.parametrize("schedule", ["cosine", "onecycle", "wsd", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_shortest_runs_have_rates(schedule: str, steps: int, share: float) -> None:
    found = rates(training(schedule=schedule, steps=steps, warmup=share, decay=1 - share))
    assert all(0 < rate <= 1e-3 for rate in found)


def test_every_group_gets_the_rates_of_the_step() -> None:
    config = training(**PUBLISHED)
    groups: list[dict[str, Any]] = [{"lr": 0.0, "name": "a"}, {"lr": 0.0, "name": "b"}]
    set_rates(groups, config, 50)
    expected = {"lr": learning_rate(config, 50), "betas": betas(config, 50)}
    assert groups == [expected | {"name": name} for name in "ab"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cycle_beta1": 0.85}, "cycle_beta1 goes with schedule: onecycle"),
        ({"schedule": "wsd", "warmup": 0.6, "decay": 0.5}, "together at most 1"),
        ({"schedule": "onecycel"}, "onecycle"),
        ({"clip_quantile": 1.5}, "clip_quantile"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        training(**changes)
