"""What the ranks tell each other with the losses of a step."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pretrain.meter import Agreed, Meter
from tests.rank_group import run_in_ranks

# The parts of a checkpoint on two ranks, and whether it can be published then, or the failure be told.
WRITTEN = {
    ("idle", "idle"): False, ("written", "writing"): False, ("writing", "written"): False, ("written", "idle"): False,
    ("written", "written"): True, ("writing", "failed"): True, ("failed", "written"): True,
}  # fmt: skip


def batch(*datasets: int) -> Any:
    return SimpleNamespace(dataset=torch.tensor(datasets), position=torch.arange(len(datasets)))


def agreed_on() -> list[Agreed]:
    meter, found = Meter(["first", "second"], torch.device("cpu")), []
    for states in WRITTEN:
        rank = dist.get_rank()
        meter.add(batch(0), torch.tensor([1.0 + rank]))
        found.append(meter.agree(stop=False, writing=states[rank]))
    for stopped in (0, 1):
        meter.add(batch(0, 1) if rank else batch(0, 0), torch.tensor([1.0, 4.0]))
        found.append(meter.agree(stop=rank == stopped, writing="idle"))
    return found


def test_what_ranks_tell_each_other() -> None:
    first, second = run_in_ranks(agreed_on, 2)
    assert first == second
    *writing, one, other = first
    assert [each.written for each in writing] == list(WRITTEN.values())
    assert not any(each.stop for each in writing)
    assert [each.losses for each in writing] == [{"loss": 1.5, "loss/first": 1.5}] * len(WRITTEN)
    for each in (one, other):  # whichever rank was asked
        assert each.stop
        assert not each.written
        assert each.losses == pytest.approx({"loss": 2.5, "loss/first": 2.0, "loss/second": 4.0})
