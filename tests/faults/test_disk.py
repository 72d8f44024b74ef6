"""A disk that is full, fails, cannot be written or is too small: one clear message, and nothing half-visible."""

import errno
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from data_pipeline import jobs
from data_pipeline.base import scratch
from data_pipeline.base.errors import DataError
from tests.small_jobs import small_job, tasks_in_this_process, tree

OPERATIONS = ("fsync", "rename", "replace", "mkdir", "open")


@pytest.fixture(autouse=True)
def without_ray() -> Iterator[None]:
    with tasks_in_this_process():
        yield


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with tasks_in_this_process():
        return tree(jobs.run(small_job(tmp_path_factory.mktemp("clean") / "small", shards=2)))


def failing_at(number: int, code: int, patch: pytest.MonkeyPatch) -> None:
    """Let the file operation `number` fail, and every one after it: a disk does not mend itself."""
    calls = count(1)

    def fragile(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(calls) >= number:
                raise OSError(code, os.strerror(code))
            return function(*arguments, **options)

        return call

    for name in OPERATIONS:
        patch.setattr(os, name, fragile(getattr(os, name)))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_whatever_fails_the_message_is_clear_and_the_next_run_completes(
    clean: dict[str, str], quick: Path, code: int
) -> None:
    old = quick / "old"
    jobs.run(small_job(old, plan="other", shards=1))
    before = tree(old)
    for number in count(1):
        final = quick / str(number) / "small"
        with pytest.MonkeyPatch.context() as patch:
            failing_at(number, code, patch)
            try:
                jobs.run(small_job(final, shards=2))
                failed = False
            except DataError as error:
                failed = True
                assert os.strerror(code) in str(error)  # noqa: PT017
                assert "run the same command again" in str(error)  # noqa: PT017
        assert not final.exists() or tree(final) == clean
        assert tree(jobs.run(small_job(final, shards=2))) == clean
        assert sorted(path.name for path in final.parent.iterdir()) == [".small.lock", "small"]
        if not failed:
            break
    assert number > 40
    assert tree(old) == before


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    sealed = Path("/sys") if os.geteuid() == 0 else tmp_path / "sealed"  # root may write wherever there is a disk
    if sealed != Path("/sys"):
        sealed.mkdir(mode=0o500)
    with pytest.raises(DataError, match=rf"(?s)could not be read or written.*{sealed}"):
        jobs.run(small_job(sealed / "data/small"))


def test_an_output_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(DataError, match=rf"(?s)could not be read or written.*{tmp_path}/data"):
        jobs.run(small_job(tmp_path / "data/small"))


@pytest.mark.parametrize("place", ["folder", "scratch"])
def test_too_small_a_disk_is_said_before_any_work(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def must_not_run(*_: Any) -> None:
        raise AssertionError("a task was run")

    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    final = tmp_path / "small" if place == "folder" else "memory://data/small"
    job = small_job(final, must_not_run)
    with pytest.raises(DataError, match=r"(?s)disk is too small.*GiB free.*expected: .*GiB.*free some space"):
        jobs.run(jobs.Job(**{**vars(job), "bytes_needed": 2**60}))


def test_scratch_of_dead_processes_is_removed_and_of_living_ones_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scratch.tempfile, "tempdir", str(tmp_path))
    ready, started = os.pipe()
    child = os.fork()
    if child == 0:
        with scratch.scratch_folder() as folder:
            (folder / "file").write_text("half")
            os.write(started, str(folder).encode())
            os.kill(os.getpid(), 9)
    left = Path(os.read(ready, 1000).decode())
    os.waitpid(child, 0)
    assert (left / "file").exists()
    with scratch.scratch_folder() as first:
        assert not left.exists()
        with scratch.scratch_folder() as second:
            assert first.is_dir()
            assert second.is_dir()
    assert [path.name for path in first.parent.iterdir() if path.name not in ("scratch.lock",)] == []
