"""The tests' own helper: real ranks in a group, whose errors come back and which never outlive a test."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data_pipeline.base.errors import ConfigError
from pretrain.engine import start_process_group
from tests.rank_group import RankDiedError, run_in_ranks


def summed(value: float) -> tuple[int, float, str, str]:
    total = torch.tensor(value + dist.get_rank())
    dist.all_reduce(total)
    return dist.get_rank(), float(total), os.environ["WORLD_SIZE"], os.environ.get("TOLD_BY_THE_TEST", "")


def joined_twice() -> tuple[int, int]:
    return start_process_group()[:2]


def fails_on_one() -> None:
    if dist.get_rank() == 1:
        raise ConfigError("no such thing", key="a.b", remedy="another thing")
    dist.barrier()


class UnportableError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.held = threading.Lock()


def fails_with(kind: str) -> Any:
    if kind == "unportable error":
        raise UnportableError(1, 2)
    if kind == "unportable result":
        return threading.Lock()
    if dist.get_rank() == 0:
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    dist.barrier()
    return None


def pid_then_wait(path: str) -> None:
    (Path(path) / str(dist.get_rank())).write_text(str(os.getpid()))
    dist.barrier()
    time.sleep(600)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_results_come_back_in_order_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOLD_BY_THE_TEST", "yes")
    assert run_in_ranks(summed, 3, 0.5) == [(rank, 4.5, "3", "yes") for rank in range(3)]
    assert run_in_ranks(summed, 1, 0.5) == [(0, 0.5, "1", "yes")]


def test_training_may_join_the_group_that_is_there() -> None:
    assert run_in_ranks(joined_twice, 2) == [(0, 2), (1, 2)]


def test_the_first_error_comes_back_with_its_traceback() -> None:
    with pytest.raises(ConfigError, match=r"(?s)no such thing.*key: a\.b") as caught:
        run_in_ranks(fails_on_one, 2)
    assert "on rank 1" in caught.value.__notes__[0]
    assert "fails_on_one" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("unportable error", RuntimeError, "UnportableError: 1 and 2"),
        ("unportable result", TypeError, "cannot pickle"),
        ("killed", RankDiedError, "rank 0 died: SIGKILL"),
    ],
)
def test_whatever_happens_to_a_rank_is_told(kind: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run_in_ranks(fails_with, 2, kind)


@pytest.mark.slow
def test_no_rank_outlives_the_deadline(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TimeoutError, match=r"ranks \[0, 1\] were not done"):
        run_in_ranks(pid_then_wait, 2, str(tmp_path), seconds=6)
    pids = [int(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)
    assert "pid_then_wait" in capfd.readouterr().out
