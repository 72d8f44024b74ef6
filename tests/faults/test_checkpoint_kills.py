"""Training killed at any point of a save: the checkpoint before it stands, or the new one, and no trace is left."""

import importlib
import json
import os
import shutil
import signal
import traceback
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data_pipeline.base.files import write_json
from pretrain.checkpoint import Checkpoints
from pretrain.run import die_with_parent
from tests.checkpoints import IDENTITY, Trained, before_operations, find, write_checkpoints
from tests.rank_group import _CONTEXT, RankDiedError, _processes, run_in_ranks
from tests.small_jobs import tree
from tests.training import prepare, train_in_ranks

RANKS = 2


def group(work: Callable[[], None], place: Path) -> list[int]:
    """`work` on forked ranks, a process group of their own; their exit codes. Before there are threads to fork."""
    place.unlink(missing_ok=True)
    pids: list[int] = []
    for rank in range(RANKS):
        pid = os.fork()
        if pid == 0:
            _live(work, place, rank, pids[0] if pids else 0)
        os.setpgid(pid, pids[0] if pids else pid)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def _live(work: Callable[[], None], place: Path, rank: int, leader: int) -> None:
    code = 1
    try:
        os.setpgid(0, leader)
        die_with_parent()
        dist.init_process_group(
            "gloo", f"file://{place}", rank=rank, world_size=RANKS, timeout=timedelta(seconds=300)
        )  # fmt: skip
        work()
        dist.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def save_third(folder: Path, victim: int, number: int) -> None:
    """Save a third checkpoint, the first one to go; all ranks die ahead of file operation `number` of the victim."""
    trained, calls = Trained(), count(1)
    trained.steps_to(3)
    checkpoints = Checkpoints(folder, IDENTITY, keep=2)
    dist.barrier()

    def die(_: str) -> None:
        if next(calls) == number:
            os.killpg(0, signal.SIGKILL)

    with before_operations(die) if dist.get_rank() == victim else nullcontext():
        trained.save(checkpoints)


def go_on(folder: Path, report: Path) -> None:
    """Go on from what a killed save has left, and save the third checkpoint and a fourth."""
    found = find(folder)
    assert found is not None
    trained, checkpoints = Trained(), Checkpoints(folder, IDENTITY, keep=2)
    trained.go_on(found)
    for step in (3, 4)[found.step - 2 :]:
        trained.steps_to(step)
        trained.save(checkpoints)
    if dist.get_rank() == 0:
        write_json(report, found.step)


def sweep(folder: Path, victim: int) -> None:
    """Kill saves ahead of each operation in turn; `outcomes.json`: from which step each has gone on, and its files."""
    torch.set_num_threads(1)
    Trained().steps_to(1)  # what torch imports then takes a second, which the forked ranks are spared
    importlib.import_module("deepspeed")
    meeting, made, whole = (folder / name for name in ("meeting", "made", "whole"))
    assert group(lambda: write_checkpoints(made, [1, 2]), meeting) == [0, 0]
    assert group(lambda: write_checkpoints(whole, [3, 4]), meeting) == [0, 0]
    outcomes: list[dict[str, Any]] = []
    for number in count(1):
        case, report = folder / f"case-{number}", folder / "step.json"
        shutil.copytree(made, case)
        ended = group(lambda: save_third(case, victim, number), meeting)  # noqa: B023 - called at once
        assert group(lambda: go_on(case, report), meeting) == [0, 0], f"after operation {number}"  # noqa: B023
        outcomes.append({"ended": ended, "from": json.loads(report.read_text()), "same": tree(case) == tree(whole)})
        shutil.rmtree(case)
        if ended == [0, 0]:
            break
    write_json(folder / "outcomes.json", outcomes)


@pytest.mark.parametrize(("victim", "at_least"), [(0, 30), pytest.param(1, 5, marks=pytest.mark.slow)])
def test_all_ranks_killed_at_any_operation_of_a_save(quick: Path, victim: int, at_least: int) -> None:
    with _processes() as processes:
        processes.append(_CONTEXT.Process(target=sweep, args=(quick, victim)))
        processes[0].start()
        processes[0].join()
        assert processes[0].exitcode == 0
    *killed, whole = json.loads((quick / "outcomes.json").read_text())
    assert whole["ended"] == [0, 0]
    assert all(each["ended"] == [-signal.SIGKILL] * RANKS for each in killed)
    assert len(killed) >= at_least
    assert all(each["same"] for each in killed), "other files than without a kill, or leftovers"
    steps = [each["from"] for each in killed]
    assert steps == sorted(steps)
    assert steps[0] == 2
    assert whole["from"] == 3
    assert (steps[-1] == 3) == (victim == 0)  # the other ranks have done their part before it is published


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 30, 90])
def test_a_run_killed_within_a_save_ends_with_the_same_weights(
    data: dict[str, Any], uri: str, tmp_path: Path, number: int
) -> None:
    folders = [prepare(data, tmp_path / name, ema=0.9, steps=6) for name in ("whole", "killed")]
    train_in_ranks(folders[0], 2)
    with pytest.raises(RankDiedError, match="SIGKILL"):
        run_in_ranks(train_to_death, 2, folders[1], uri, number)
    train_in_ranks(folders[1], 2)
    one, other = (tree(folder / "final") for folder in folders)
    assert one == other
    assert not list((folders[1] / "checkpoints").glob(".*"))


def train_to_death(folder: Path, uri: str, number: int) -> None:
    """Die ahead of operation `number` of the second checkpoint, on rank 0; the others are killed with it."""
    from pretrain import train

    begin, saves, calls = Checkpoints.begin, count(1), count(1)

    def die(_: str) -> None:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly(*arguments: Any) -> None:
        if next(saves) == 2 and dist.get_rank() == 0:
            watching.enter_context(before_operations(die))
        begin(*arguments)

    Checkpoints.begin = deadly  # type: ignore[method-assign]
    with ExitStack() as watching:
        train.train(folder, uri, lambda: False)
