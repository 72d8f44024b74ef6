"""A disk that is full, fails or has vanished under a save: one message from all ranks, and older checkpoints stand."""

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from data_pipeline.base.errors import CheckpointError
from data_pipeline.base.files import sha256_file
from launch.ranks import run_ranks
from pretrain import checkpoint
from pretrain.checkpoint import Checkpoints
from pretrain.run import read_status
from tests.checkpoints import IDENTITY, Trained, before_operations, find, write_checkpoints
from tests.rank_group import run_in_ranks
from tests.small_jobs import tree
from tests.training import ROOT, prepare, start_ranks, wait_for

RANKS = 2


def saved(folder: Path) -> str:
    """Save a third checkpoint; the message where that fails."""
    trained, checkpoints = Trained(), Checkpoints(folder, IDENTITY, keep=2)
    trained.steps_to(3)
    try:
        trained.save(checkpoints)
    except CheckpointError as error:
        return str(error)
    return ""


def mended(folder: Path) -> int:
    """The step that is found after a failure. The same command then goes on: it saves what it could not save."""
    found = find(folder)
    assert found is not None
    trained, checkpoints = Trained(), Checkpoints(folder, IDENTITY, keep=2)
    trained.go_on(found)
    if found.step < 3:
        trained.steps_to(3)
        trained.save(checkpoints)
    again = find(folder)
    assert again is not None
    assert again.step == 3
    return found.step


def disk_fails_at_each_operation(folder: Path, victim: int, code: int) -> list[tuple[str, int, dict[str, str]]]:
    """What a save says, from which step the next one goes on and its files, for a disk that fails on one rank from
    operation 1, 2, ... on."""
    outcomes = []
    write_checkpoints(folder / "made", [1, 2])
    for number in count(1):
        place, calls = folder / str(number), count(1)
        if dist.get_rank() == 0:
            shutil.copytree(folder / "made", place)
        dist.barrier()
        trained, checkpoints = Trained(), Checkpoints(place, IDENTITY, keep=2)
        trained.steps_to(3)

        def fail(_: str) -> None:
            if dist.get_rank() == victim and next(calls) >= number:  # noqa: B023 - called at once
                raise OSError(code, os.strerror(code))

        message = ""
        with before_operations(fail):
            try:
                trained.save(checkpoints)
            except CheckpointError as error:
                message = str(error)
        outcomes.append((message, mended(place), tree(place)))
        dist.barrier()
        failed: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(failed, message)
        if not any(failed):
            return outcomes
    raise AssertionError


@pytest.mark.parametrize(
    ("victim", "code", "at_least"), [(0, errno.EIO, 30), (0, errno.EROFS, 30), (1, errno.ENOSPC, 5)]
)
def test_whatever_fails_on_one_rank_all_have_one_message_and_go_on_later(
    quick: Path, victim: int, code: int, at_least: int
) -> None:
    first, second = run_in_ranks(disk_fails_at_each_operation, RANKS, quick, victim, code)
    assert first == second
    *failures, (message, _, clean) = first
    assert message == ""
    assert len(failures) >= at_least
    for message, step, files in failures:
        if not message:  # it was the removal of an old one, which is left to the next start
            assert step == 3
            continue
        assert f"rank {victim}: " in message
        assert os.strerror(code) in message
        assert "start the same command again; older checkpoints are untouched" in message
        assert files.items() >= {n: d for n, d in clean.items() if "step-00000003" in n}.items()
        assert not any(name.startswith(".") for name in files)
    assert failures[0][1] == 2


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """For this process the disk is full as soon as a file has so many bytes."""
    handler, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def saved_on_a_full_disk(folder: Path, size: int) -> tuple[str, int, list[str]]:
    write_checkpoints(folder, [1, 2])
    with no_file_above(size):
        message = saved(folder)
    left = sorted(path.name for path in folder.iterdir())
    dist.barrier()
    return message, mended(folder), left


@pytest.mark.parametrize("size", [16, 500])
def test_a_file_that_is_cut_short_is_no_checkpoint(quick: Path, size: int) -> None:
    first, second = run_in_ranks(saved_on_a_full_disk, RANKS, quick / "checkpoints", size)
    assert first == second
    message, step, left = first
    assert os.strerror(errno.EFBIG) in message
    assert step == 2
    assert left == ["step-00000001", "step-00000002"], "the room of what was begun is given back"


def saved_without_a_folder(folder: Path, when: str) -> tuple[str, bool, int]:
    write_checkpoints(folder, [1, 2])
    trained, checkpoints = Trained(), Checkpoints(folder, IDENTITY, keep=2)
    trained.steps_to(3)
    message = ""
    try:
        if when == "after":
            trained.begin(checkpoints)
            while checkpoints.state == "writing":
                pass
        dist.barrier()
        if dist.get_rank() == 0:
            folder.rename(folder.with_name("elsewhere"))
        dist.barrier()
        if when == "before":
            trained.begin(checkpoints)
        checkpoints.finish()
    except CheckpointError as error:
        message = str(error)
    there = bool(list(folder.glob("step-*")))
    dist.barrier()
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.with_name("elsewhere").rename(folder)
    dist.barrier()
    return message, there, mended(folder)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_folder_that_vanishes_is_an_error_and_not_made_again(quick: Path, when: str) -> None:
    first, second = run_in_ranks(saved_without_a_folder, RANKS, quick / "checkpoints", when)
    assert first == second
    message, there, step = first
    assert os.strerror(errno.ENOENT) in message
    assert str(quick / "checkpoints") in message
    assert not there
    assert step == 2


def train_while_the_disk_is_slow(folder: Path) -> tuple[str, int, str | None]:
    """How far the checkpoint is when the loop has it back, the step it has come to since, and what is published."""
    go, true = threading.Event(), checkpoint.write_tensors
    # Not for ever: a loop that waits for the disk is to be seen as such.
    checkpoint.write_tensors = lambda *arguments: (go.wait(20), true(*arguments))[1]
    trained, checkpoints = Trained(), Checkpoints(folder, IDENTITY, keep=2)
    trained.steps_to(1)
    trained.begin(checkpoints)
    trained.steps_to(2)
    state = checkpoints.state
    go.set()
    published = checkpoints.finish()
    return state, trained.done, published and published.name


def test_the_loop_goes_on_while_the_disk_is_slow(quick: Path) -> None:
    outcomes = run_in_ranks(train_while_the_disk_is_slow, RANKS, quick / "checkpoints")
    assert outcomes == [("writing", 2, "step-00000001")] * RANKS
    whole = quick / "whole"
    run_in_ranks(write_checkpoints, RANKS, whole, [1])
    files = {name.removeprefix("step-00000001/"): digest for name, digest in tree(whole).items()}
    slow = {name.removeprefix("step-00000001/"): digest for name, digest in tree(quick / "checkpoints").items()}
    assert slow == files, "the step that came after is not in it"


def cannot_read(folder: Path) -> str:
    write_checkpoints(folder, [1])
    true = checkpoint.sha256_file

    def fail(path: Path) -> str:
        if dist.get_rank() == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return true(path)

    checkpoint.sha256_file = fail
    with pytest.raises(CheckpointError) as caught:
        find(folder)
    return str(caught.value)


def test_a_disk_that_cannot_be_read_is_no_damage(quick: Path) -> None:
    """The run does not go back, and nothing is deleted: with the disk mended it goes on as if nothing had been."""
    messages = run_in_ranks(cannot_read, RANKS, quick / "checkpoints")
    assert messages[0] == messages[1]
    assert "could not verify a checkpoint" in messages[0]
    assert "rank 1: OSError: [Errno 5]" in messages[0]
    assert (quick / "checkpoints" / "step-00000001").is_dir()


def in_its_own_mounts(data: dict[str, Any], disk: Path, fault: str) -> None:
    """Within a mount namespace: train where the disk fails after the first checkpoint, and again with it mended."""

    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)

    mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk))
    uri = f"sqlite:///{disk.parent / 'mlflow.db'}"
    folder = prepare(data, disk, steps=120, checkpoint_every=2, keep_checkpoints=99, restarts=0)
    filler, checkpoints = disk / "filler", str(folder / "checkpoints")
    process = start_ranks(folder, uri)
    wait_for(lambda: (folder / "checkpoints" / "step-00000002").is_dir(), process)
    if fault == "full":
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
    else:
        mount("--bind", checkpoints, checkpoints)
        read_only = ["mount", "-o", "remount,bind,ro", checkpoints]
        while subprocess.run(read_only, stderr=subprocess.DEVNULL).returncode:  # busy while a file is being written
            time.sleep(0.01)
    process.wait(timeout=900)
    print("failed:", read_status(folder))
    if fault == "full":
        filler.unlink()
    else:
        subprocess.run(["umount", checkpoints], check=True)
    run_ranks(folder, 2, uri)
    print("mended:", read_status(folder)[0], sha256_file(folder / "final" / "model.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
@pytest.mark.parametrize(("fault", "code"), [("full", errno.ENOSPC), ("read-only", errno.EROFS)])
def test_training_on_a_disk_that_fails_says_so_and_goes_on_once_it_is_mended(
    data: dict[str, Any], uri: str, tmp_path: Path, fault: str, code: int
) -> None:
    (tmp_path / "disk").mkdir()
    call = f"from {__name__} import *; in_its_own_mounts({data!r}, Path({str(tmp_path / 'disk')!r}), {fault!r})"
    command = ["unshare", "--mount", sys.executable, "-c", call]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    (failed,) = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert "('failed', " in failed
    assert os.strerror(code) in failed
    assert "start the same command again" in failed
    whole = prepare(data, tmp_path / "whole", steps=120)
    run_ranks(whole, 2, uri)
    assert f"mended: finished {sha256_file(whole / 'final' / 'model.safetensors')}" in done.stdout.splitlines()
