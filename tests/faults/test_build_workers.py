"""Builds whose workers die or fail, with real Ray: what passes by itself is retried, what does not is said once."""

import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from data_pipeline import jobs
from data_pipeline.base.errors import DataError, PdepotError
from data_pipeline.receipts import ShardTask
from data_pipeline.workers import keep_ray
from tests.s3 import s3_server
from tests.small_jobs import remote_tree, small_job, tasks_in_this_process, tree

URL = "s3://bucket/data/small"


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """An object store, and Ray, whose workers know the way to it."""
    with s3_server(), keep_ray():
        yield


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with tasks_in_this_process():
        return tree(jobs.run(small_job(tmp_path_factory.mktemp("clean") / "small")))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder in which tasks note their attempts."""
    (tmp_path / "notes").mkdir()
    return tmp_path / "notes"


def attempt(notes: Path, task: ShardTask) -> int:
    """In a worker: the number of this attempt, which is noted."""
    with (notes / task.name).open("a") as file:
        file.write("x")
    return len((notes / task.name).read_text())


def killed_at_first(notes: Path, _: Path, task: ShardTask) -> None:
    """In a worker: die in the middle of a shard."""
    if attempt(notes, task) == 1 and task.shard == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def transient(notes: Path, file: Path, task: ShardTask) -> None:
    """In a worker: fail twice in the middle of a shard."""
    if attempt(notes, task) < 3 and task.shard == 2:
        raise OSError(5, "Input/output error", str(file))


def damaged(notes: Path, file: Path, task: ShardTask) -> None:
    """In a worker: fail for good in the middle of a shard."""
    attempt(notes, task)
    if task.shard == 2:
        raise DataError("the raw data are damaged", file="raw-2.hdf5")


def small_disk(notes: Path, file: Path, task: ShardTask) -> None:
    """In a worker: no room for a larger file in the middle of a shard, while the mark is there."""
    if task.shard != 2 or not (notes / "full").exists():
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        (notes / "more").write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("trouble", [killed_at_first, transient])
def test_a_lost_worker_and_a_transient_error_leave_no_trace(
    clean: dict[str, str], notes: Path, trouble: object
) -> None:
    assert tree(jobs.run(small_job(notes.parent / "small", partial(trouble, notes)))) == clean
    assert sorted(len(note.read_text()) for note in notes.iterdir())[-1] >= 2


def test_a_worker_killed_before_its_upload_leaves_no_trace(clean: dict[str, str], notes: Path) -> None:
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("pdepot-*/*"))
    jobs.run(small_job(URL, partial(killed_at_first, notes)))
    assert remote_tree(URL) == clean
    left = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("pdepot-*/*")) - before
    assert [path for path in left if path.is_dir()] == []


def test_a_permanent_error_is_said_once_and_nothing_is_visible(clean: dict[str, str], notes: Path) -> None:
    final = notes.parent / "small"
    with pytest.raises(DataError) as caught:
        jobs.run(small_job(final, partial(damaged, notes), shards=4))
    assert str(caught.value) == "the raw data are damaged\n  file: raw-2.hdf5"
    assert (notes / "train-000002").read_text() == "x"
    assert not final.exists()
    done = tree(final.parent / ".small.partial/data")
    assert jobs.run(small_job(final)) == final  # another plan: what is left of the first does not matter
    assert tree(final) == clean
    assert "train/b/2" not in done


def test_a_disk_that_fills_up_in_a_worker_is_said_once_and_the_next_run_completes(
    clean: dict[str, str], notes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (notes / "full").touch()
    final = notes.parent / "small"
    with pytest.raises(DataError, match=r"(?s)could not be read or written.*train/b/2.*File too large.*same command"):
        jobs.run(small_job(final, partial(small_disk, notes)))
    assert not final.exists()
    assert not (final.parent / ".small.partial/data/train/b/2").exists()
    (notes / "full").unlink()
    assert tree(jobs.run(small_job(final, partial(small_disk, notes)))) == clean


def remove(folder: Path, _: Path, task: ShardTask) -> None:
    """In a worker: the folder in which the build works is gone from one moment to the next."""
    if task.shard == 3 and folder.exists():
        # Renamed first: deleting a tree into which others write ends with "directory not empty".
        gone = folder.with_name(f"gone-{time.monotonic_ns()}")
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def test_a_work_folder_that_vanishes_is_a_clear_error_and_the_next_run_completes(
    clean: dict[str, str], tmp_path: Path
) -> None:
    final = tmp_path / "small"
    with pytest.raises(PdepotError, match=r"(?s)\.small\.partial.*run the same command again"):
        jobs.run(small_job(final, partial(remove, tmp_path / ".small.partial")))
    assert not final.exists()
    assert tree(jobs.run(small_job(final))) == clean
