"""A run on Ray whose workers, nodes or driver are killed ends with the weights of one that was left alone."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from launch.ranks import run_ranks
from launch.ray_train import _note_failure, train_rank
from pretrain.run import Status, read_status, write_status
from tests.integration.test_cluster import ENVIRONMENT, cluster, node, wait
from tests.training import ROOT, prepare, wait_for

LONG: dict[str, Any] = {"steps": 40, "checkpoint_every": 4}  # Ray is slow to find out; the run must last until then
PATIENCE = 900
DRIVER = """
import sys
from pathlib import Path
from launch.launcher import Launcher
from launch.ranks import run_ranks
folder, uri, address = sys.argv[1:]
run_ranks(Path(folder), 2, uri, Launcher("ray", address=address or None))
"""


@contextmanager
def driver(folder: Path, uri: str, address: str = "") -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", DRIVER, str(folder), uri, address]
    process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ranks_below(pid: int) -> list[psutil.Process]:
    """The training workers among a process's descendants, by the title that Ray gives them."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            found += [process] if "RayTrainWorker" in " ".join(process.cmdline()) else []
        except psutil.NoSuchProcess:
            continue
    return found


def in_mid_training(folder: Path) -> bool:
    return any((folder / "checkpoints").glob("step-*"))


def weights(folder: Path) -> bytes:
    assert read_status(folder) == ("finished", "")
    return (folder / "final/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def expected(data: dict[str, Any], uri: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = prepare(data, tmp_path_factory.mktemp("undisturbed"), **LONG)
    run_ranks(folder, 2, uri)
    return weights(folder)


@pytest.mark.slow
def test_kill_9_of_a_rank_starts_the_group_again(
    data: dict[str, Any], uri: str, expected: bytes, tmp_path: Path
) -> None:
    folder = prepare(data, tmp_path, **LONG)
    with driver(folder, uri) as process:
        wait_for(lambda: in_mid_training(folder), process)
        victims = ranks_below(process.pid)
        assert len(victims) == 2
        victims[-1].kill()
        assert read_status(folder)[0] != "finished"
        assert process.wait(PATIENCE) == 0
    assert weights(folder) == expected


@pytest.mark.slow
def test_a_rank_that_dies_once_too_often_is_named(data: dict[str, Any], uri: str, tmp_path: Path) -> None:
    folder = prepare(data, tmp_path, **LONG, restarts=0)
    with driver(folder, uri) as process:
        wait_for(lambda: in_mid_training(folder), process)
        ranks_below(process.pid)[0].kill()
        assert process.wait(PATIENCE) == 1
    status, message = read_status(folder)
    assert status == "failed"
    assert re.match(r"rank [01] died, after 0 restarts", message)


@pytest.mark.slow
def test_a_killed_node_is_replaced_by_one_that_joins(
    data: dict[str, Any], uri: str, expected: bytes, tmp_path: Path
) -> None:
    folder = prepare(data, tmp_path, **LONG)
    with ExitStack() as stack:
        address = stack.enter_context(cluster())
        lost = stack.enter_context(node(f"--address={address}"))
        process = stack.enter_context(driver(folder, uri, address))
        wait_for(lambda: in_mid_training(folder), process)
        assert len(ranks_below(lost.pid)) == 1  # one rank on each node
        for part in psutil.Process(lost.pid).children(recursive=True):
            part.kill()
        assert read_status(folder)[0] != "finished"
        stack.enter_context(node(f"--address={address}"))
        assert process.wait(PATIENCE) == 0
    assert weights(folder) == expected


@pytest.mark.slow
def test_no_rank_outlives_a_killed_driver_and_the_next_one_goes_on(
    data: dict[str, Any], uri: str, expected: bytes, tmp_path: Path
) -> None:
    folder = prepare(data, tmp_path, **LONG)
    with ExitStack() as stack:
        address = stack.enter_context(cluster())
        other = stack.enter_context(node(f"--address={address}"))
        with driver(folder, uri, address) as first:
            wait_for(lambda: in_mid_training(folder), first)
            ranks = ranks_below(os.getpid())
            assert len(ranks) == 2
            first.send_signal(signal.SIGKILL)
        wait(lambda: not any(rank.is_running() for rank in ranks), other)
        assert read_status(folder)[0] != "finished"
        with driver(folder, uri, address) as second:
            assert second.wait(PATIENCE) == 0
    assert weights(folder) == expected


@pytest.mark.parametrize("status", ["finished", "preempted", "failed"])
def test_a_group_that_ray_starts_after_the_end_does_nothing(status: Status, tmp_path: Path) -> None:
    write_status(tmp_path, status, "why", permanent=status == "failed")
    train_rank({"folder": str(tmp_path), "uri": "unused", "threads": None})  # or it would miss LOCAL_WORLD_SIZE
    assert read_status(tmp_path) == (status, "why")


def test_the_rank_that_died_is_named_not_those_that_saw_it_vanish(tmp_path: Path) -> None:
    from ray.exceptions import ActorDiedError  # not above: its settings count only before the first import
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    lost = WorkerGroupError(
        "", {0: RuntimeError("reset by peer"), 1: WorkerHealthCheckFailedError("", ActorDiedError())}
    )
    write_status(tmp_path, "failed", "RuntimeError: reset by peer")
    _note_failure(tmp_path, lost, 3)
    assert read_status(tmp_path) == ("failed", "rank 1 died, after 3 restarts; most often memory ran out")
    write_status(tmp_path, "failed", "the data have changed", permanent=True)
    _note_failure(tmp_path, lost, 3)
    assert read_status(tmp_path) == ("failed", "the data have changed")


WAITING = """
import sys, time
from pathlib import Path
from launch.ray_train import _asking_to_stop
with _asking_to_stop(Path(sys.argv[1]), float(sys.argv[2])):
    Path(sys.argv[1], "ready").touch()
    time.sleep(120)
"""


@pytest.mark.parametrize(("seconds", "ended_by"), [(600.0, signal.SIGTERM), (0.5, signal.SIGALRM)])
def test_a_second_request_to_stop_or_too_long_a_wait_ends_the_driver(
    seconds: float, ended_by: signal.Signals, tmp_path: Path
) -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING, str(tmp_path), str(seconds)], cwd=ROOT) as process:
        wait(lambda: (tmp_path / "ready").exists(), process)
        process.terminate()
        if ended_by == signal.SIGTERM:
            wait(lambda: (tmp_path / ".stop").exists(), process)
            process.terminate()
        assert process.wait(PATIENCE) == -ended_by
