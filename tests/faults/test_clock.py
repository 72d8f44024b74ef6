"""No decision is made by a clock: ranks whose clocks disagree, jump and run backwards train as all others."""

import itertools
import time
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.rank_group import run_in_ranks
from tests.training import Watched, prepare, train_in_ranks, watched


def astray(folder: Path, steps: int | None) -> Watched:
    true_time, calls = time.time, itertools.count()
    # Hours apart, and every look at it is a minute earlier.
    time.time = lambda: true_time() - 3600 * dist.get_rank() - 60 * next(calls)
    return watched(folder, steps)


@pytest.mark.slow
def test_clocks_that_go_astray_change_nothing(data: dict[str, Any], tmp_path: Path) -> None:
    folders = [prepare(data, tmp_path / name, steps=6) for name in ("right", "astray")]
    right = train_in_ranks(folders[0], 2)
    parts = [run_in_ranks(astray, 2, folders[1], steps) for steps in (4, None)]
    assert [each[0].status for each in parts] == ["preempted", "finished"]
    assert parts[0][0].losses + parts[1][0].losses == right[0].losses
    final = Path("final", "model.safetensors")
    assert (folders[0] / final).read_bytes() == (folders[1] / final).read_bytes()
