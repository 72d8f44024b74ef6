"""Which steps are not taken."""

import json
import math
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.base.config import build
from data_pipeline.base.files import read_json, write_json
from pretrain.config import TrainingConfig
from pretrain.guard import LossGuard
from pretrain.incidents import go_back, rollbacks

losses = st.floats(1e-6, 1e6)
events = st.lists(st.one_of(losses, st.lists(st.integers(0, 10**6), max_size=3)), max_size=150)


def guard(ratio: float = 50, patience: int = 3) -> LossGuard:
    return LossGuard(build(TrainingConfig, {"steps": 1, "max_loss_ratio": ratio, "patience": patience}))


def happen(judge: LossGuard, what: list[float | list[int]]) -> None:
    for event in what:
        judge.note_skipped(event) if isinstance(event, list) else judge.note_taken(event)


@settings(deadline=None)
@given(events, events, losses)
def test_a_guard_goes_on_from_its_state_as_if_nothing_had_been(
    before: list[float | list[int]], after: list[float | list[int]], loss: float
) -> None:
    one, other = guard(ratio=3), guard(ratio=3)
    happen(one, before)
    other.load(json.loads(json.dumps(one.state())))
    for judge in (one, other):
        happen(judge, after)
    assert one.state() == other.state()
    assert (one.bound, one.exhausted, one.objection(loss)) == (other.bound, other.exhausted, other.objection(loss))


@settings(deadline=None)
@given(st.lists(losses, min_size=20, max_size=250), st.floats(1.5, 100))
def test_the_bound_is_so_many_times_the_median_of_the_last_hundred(taken: list[float], ratio: float) -> None:
    judge = guard(ratio)
    happen(judge, list(taken))
    bound = ratio * statistics.median(taken[-100:])
    assert judge.bound == pytest.approx(bound)
    assert judge.objection(0.99 * bound) is None
    assert "median of the last" in str(judge.objection(1.01 * bound))


def test_few_losses_and_a_ratio_of_zero_let_all_pass_that_is_finite() -> None:
    young, careless = guard(), guard(ratio=0)
    happen(young, [1.0] * 19)
    happen(careless, [1.0] * 100)
    for judge in (young, careless):
        assert judge.objection(1e30) is None
        for loss in (math.nan, math.inf, -math.inf):
            assert judge.objection(loss) == "the loss is not finite"
    happen(young, [1.0])
    assert young.objection(51) is not None


def test_offenders_are_those_of_the_steps_in_a_row() -> None:
    judge = guard()
    happen(judge, [[1, 2], 0.5, [7], [8, 9]])
    assert (judge.skipped, judge.in_a_row, judge.offenders, judge.exhausted) == (3, 2, [7, 8, 9], False)
    happen(judge, [[10]])
    assert (judge.offenders, judge.exhausted) == ([7, 8, 9, 10], True)
    happen(judge, [0.5])
    assert (judge.skipped, judge.in_a_row, judge.offenders, judge.exhausted) == (4, 0, [], False)


def test_only_samples_that_are_drawn_again_are_replaced(tmp_path: Path) -> None:
    """A checkpoint between the steps that were objected to says which samples came before it, and must stay right."""
    write_json(tmp_path / "config.json", {"replaced": [3]})
    config: Any = SimpleNamespace(
        name="run", replaced=(3,), training=build(TrainingConfig, {"steps": 9, "batch_size": 8, "micro_batch": 2})
    )
    go_back(tmp_path, config, 6, 4, [30, 31, 32, 41])
    assert read_json(tmp_path / "config.json")["replaced"] == [3, 16, 20]
    assert rollbacks(tmp_path)[0]["positions"] == [30, 31, 32, 41]
