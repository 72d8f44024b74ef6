"""Lead times: each sample's is drawn by its position, only its frames are read, and the network is told."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.loader import Batch, Loader, mixture_of
from data_pipeline.mixture import Mixture
from data_pipeline.window_reader import drawn_lead
from pretrain.config import ObjectiveConfig
from pretrain.model.operator import DatasetScaling, Operator
from pretrain.objective import DenoisingObjective, relative_l2_loss
from pretrain.rollout import rollout_block
from tests.fake_store import CHANNELS, HISTORY, FakeStore, assert_same, two_stores
from tests.operators import make_operator
from tests.unit.test_conditions import trained
from tests.unit.test_objective import batch_for

FURTHEST = 4


def toy(dt: float) -> DatasetScaling:
    figures: dict[str, Any] = {"mean": (2.0,) * 2, "std": (1.5,) * 2, "change_rms": (0.5,) * 2}
    return DatasetScaling(name=f"toy {dt}", channels=("a", "b"), dt=dt, boundaries=("periodic", "wall"), **figures)


def told_operator(*dts: float, **options: object) -> Operator:
    """An operator whose network makes use of the time step; a dataset for each."""
    datasets = tuple(toy(dt) for dt in dts)
    return trained(make_operator(space=(8, 8), datasets=datasets, network={"conditions": 7}, **options))


def mixture(stores: Sequence[FakeStore]) -> Mixture:
    return mixture_of(stores, [1, 2, 3][: len(stores)], HISTORY, FURTHEST, 0, batch_size=48, micro_batch=2)


def take(stores: Sequence[FakeStore], count: int, **changes: Any) -> list[Batch]:
    settings: dict[str, Any] = {
        "slots": [[CHANNELS.index(name) for name in store.info.channels] for store in stores],
        "num_channels": len(CHANNELS), "history": HISTORY, "target": FURTHEST, "rank": 0, "world_size": 1,
        "first_step": 0, "shift": False, "seed": 0, "lead_times": True,
    }  # fmt: skip
    with Loader(stores, mixture(stores), **(settings | changes)) as loader:
        return list(islice(loader, count))


def test_every_lead_is_as_likely_as_the_others_and_a_function_of_seed_and_position() -> None:
    leads = [drawn_lead(3, k, FURTHEST) for k in range(4000)]
    assert Counter(leads).keys() == {1, 2, 3, 4}
    assert all(abs(count - 1000) < 120 for count in Counter(leads).values())  # more than four deviations
    assert leads == [drawn_lead(3, k, FURTHEST) for k in range(4000)]
    assert leads != [drawn_lead(4, k, FURTHEST) for k in range(4000)]
    assert {drawn_lead(3, k, 1) for k in range(100)} == {1}


@pytest.mark.parametrize("masked", [False, True])
def test_a_sample_is_a_history_and_one_later_frame(masked: bool) -> None:
    stores = [*two_stores(masked=masked), FakeStore("full", CHANNELS, masked=masked)]  # the last is read in place
    seen = set()
    for batch, shifted in zip(take(stores, 24), take(stores, 24, shift=True, seed=0), strict=True):
        assert batch.window.shape[1] == HISTORY + 1
        assert batch.lead is not None
        assert batch.lead.dtype == torch.int64
        assert torch.equal(batch.lead, shifted.lead)
        for row, draw in enumerate(mixture(stores).draw_many(batch.position.numpy())):
            store, first, lead = stores[draw["dataset"]], draw["start"], int(batch.lead[row])
            seen.add(lead)
            assert lead == drawn_lead(0, int(batch.position[row]), FURTHEST)
            frames = [*range(first, first + HISTORY), first + HISTORY - 1 + lead]
            slots = [CHANNELS.index(name) for name in store.info.channels]
            stored = store.fields[draw["trajectory"]][frames]
            np.testing.assert_array_equal(batch.window[row][..., slots].numpy(), stored)
            rolled = {x.numpy().tobytes() for x in (batch.window[row].roll(by, dims=1) for by in range(6))}
            assert shifted.window[row].numpy().tobytes() in rolled  # history and target alike
    assert seen == {1, 2, 3, 4}


def test_the_frames_between_are_not_read() -> None:
    read: list[int] = []

    class Counting(FakeStore):
        def read_into(self, trajectory: int, start: int, out: np.ndarray) -> None:
            read.append(len(out))
            super().read_into(trajectory, start, out)

    take([Counting("a", CHANNELS)], 1)
    assert set(read) == {HISTORY, 1}


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_number_of_ranks_and_every_start_gives_the_same_leads(ranks: int) -> None:
    alone = take(two_stores(), 48, shift=True, first_step=3)
    later = take(two_stores(), 24, shift=True, first_step=4)
    for batch, expected in zip(later, alone[24:], strict=True):
        assert_same(batch, expected)
    for rank in range(ranks):
        mine = take(two_stores(), 48 // ranks, shift=True, first_step=3, rank=rank, world_size=ranks)
        for batch, expected in zip(mine, alone[rank::ranks], strict=True):
            assert_same(batch, expected)


def test_trajectories_must_reach_the_furthest_lead() -> None:
    with pytest.raises(ConfigError, match="history 3 and target 7"):
        take(two_stores(), 1, target=7)


def histories(operator: Operator, size: int = 3) -> Tensor:
    return batch_for(operator, 1, size).history


@pytest.mark.parametrize("predict", ["state", "change"])
def test_one_frame_ahead_is_what_no_lead_means(predict: str) -> None:
    operator = told_operator(0.1, 5.0, predict=predict)
    x, rows = histories(operator), torch.tensor([0, 1, 0])
    assert torch.equal(operator(x, rows, lead=torch.ones(3, dtype=torch.int64)), operator(x, rows))
    assert torch.equal(rollout_block(operator, x, rows, 1)[:, 0], operator(x, rows).detach()[..., 0, :])
    assert not torch.equal(operator(x, rows, lead=torch.tensor([1, 1, 2]))[2], operator(x, rows)[2])


def test_a_lead_is_told_as_a_longer_time_step() -> None:
    """Four frames of a tenth are one of four tenths; a change, k times what the network says."""
    leads, ones = torch.tensor([4, 4]), torch.tensor([1, 1])
    states = told_operator(0.1, 0.4, predict="state")
    x, quick, slow = histories(states, 2), torch.tensor([0, 0]), torch.tensor([1, 1])
    assert states.conditions(quick, None, leads)[:, 0].tolist() == pytest.approx([math.log10(0.4)] * 2, rel=1e-6)
    assert torch.equal(states.conditions(quick, None, leads)[:, 1:], states.conditions(quick, None)[:, 1:])
    torch.testing.assert_close(states(x, quick, lead=leads), states(x, slow, lead=ones))
    assert (states(x, quick) - states(x, slow)).abs().max() > 1e-3
    changes = told_operator(0.1, 0.4, predict="change")
    change = [changes(x, rows, lead=lead) - x[..., -1:, :] for rows, lead in ((quick, leads), (slow, ones))]
    torch.testing.assert_close(change[0], 4 * change[1], rtol=1e-4, atol=1e-5)


def test_a_lead_needs_an_operator_that_can_be_told_and_predicts_one_frame() -> None:
    for network in ({}, {"conditions": 7, "out_timesteps": 2}):
        operator = make_operator(space=(8, 8), datasets=(toy(0.1),), network=network)
        with pytest.raises(ConfigError, match="cannot be told how far ahead"):
            operator(histories(operator), torch.zeros(3, dtype=torch.int64), lead=torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("predict", ["state", "change"])
def test_the_loss_is_that_of_each_sample_at_its_own_lead(predict: str) -> None:
    operator, seed = told_operator(0.1, predict=predict), 2
    config = ObjectiveConfig(predict=predict, noise=0, max_lead=FURTHEST)
    mask = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.7
    batch = replace(batch_for(operator, 1), lead=torch.tensor([3, 1, 4]), point_mask=mask)
    loss, losses = DenoisingObjective(operator, config, seed)(batch)
    for row, lead in enumerate((3, 1, 4)):
        one = [part[row : row + 1] for part in (batch.history, batch.dataset, batch.target, batch.channel_mask)]
        alone = operator(one[0], one[1], lead=torch.tensor([lead]))
        torch.testing.assert_close(losses[row : row + 1], relative_l2_loss(alone, one[2], one[3], mask[row : row + 1]))
    torch.testing.assert_close(loss, losses.mean())
    changed = replace(batch, window=batch.window.clone())
    changed.target[~mask] = 9.0
    assert torch.equal(DenoisingObjective(operator, config, seed)(changed)[0], loss)
    loss.backward()
    condition = dict(operator.named_parameters())["network.condition.0.weight"].grad
    assert condition is not None
    assert condition[:, 0].any()  # the column of the time step
