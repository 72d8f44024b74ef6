"""Builds whose driver is killed at any point, in a folder or an object store: the next run gives the same bytes."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import fsspec
import pytest

from data_pipeline import jobs
from data_pipeline.base.errors import DataError
from data_pipeline.base.remote import RemoteFolder
from data_pipeline.stores import read_manifest
from tests.s3 import s3_server
from tests.small_jobs import in_a_child, remote_tree, small_job, tasks_in_this_process, tree

URL = "s3://bucket/data/small"
LOCK = "s3://bucket/data/small/.partial/lock"


@pytest.fixture(autouse=True)
def without_ray() -> Iterator[None]:
    with tasks_in_this_process():
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def store(s3: str) -> Iterator[RemoteFolder]:
    """A place in an empty object store."""
    yield RemoteFolder(URL)
    RemoteFolder("s3://bucket").remove(list(RemoteFolder("s3://bucket").sizes()))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files of a build that nothing happened to."""
    with tasks_in_this_process():
        return tree(jobs.run(small_job(tmp_path_factory.mktemp("clean") / "small", shards=3)))


def killed_at(number: int, places: list[tuple[Any, str]], *, after: bool = False) -> None:
    """Kill this process at the call `number`, counted over all functions in `places`."""
    calls = count(1)

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            last = next(calls) == number
            if last and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for owner, name in places:
        setattr(owner, name, deadly(getattr(owner, name)))


def die_in_build(final: Path | str, number: int, places: list[tuple[Any, str]], *, after: bool = False) -> int:
    def build() -> None:
        killed_at(number, places, after=after)
        jobs.run(small_job(final, shards=3))

    return in_a_child(build)


FILE_OPERATIONS = [(os, name) for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")]
STORE_OPERATIONS = [(RemoteFolder, name) for name in ("create", "upload", "write_bytes", "remove")]


def test_a_build_killed_at_any_file_operation_continues_to_the_same_bytes(clean: dict[str, str], quick: Path) -> None:
    for number in count(1):
        final = quick / str(number) / "small"
        ended = die_in_build(final, number, FILE_OPERATIONS)
        assert not final.exists() or tree(final) == clean
        assert tree(jobs.run(small_job(final, shards=3))) == clean
        assert sorted(path.name for path in final.parent.iterdir()) == [".small.lock", "small"]
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert number > 60


@pytest.mark.parametrize("after", [False, True])
def test_a_remote_build_killed_at_any_operation_of_the_store_continues_to_the_same_bytes(
    clean: dict[str, str], quick: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    # Folders through fsspec stand for an object store: a new process has a connection to S3 after half a second only.
    monkeypatch.setitem(fsspec.config.conf, "file", {"auto_mkdir": True})
    for number in count(1):
        url = f"local://{quick}/{number}/small"
        ended = die_in_build(url, number, STORE_OPERATIONS, after=after)
        if RemoteFolder(url).size("manifest.json") is not None:
            read_manifest(url)
            found = remote_tree(url)
            assert {name: found[name] for name in clean} == clean
        jobs.run(small_job(url, shards=3))
        assert remote_tree(url) == clean
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert number > 12


def test_receipts_of_a_killed_remote_build_spare_the_work(store: RemoteFolder, capsys: Any) -> None:
    # lock, plan, then two files and a receipt for each shard: dies in the second file of the third shard
    assert die_in_build(URL, 10, STORE_OPERATIONS) == -signal.SIGKILL
    done = []
    jobs.run(small_job(URL, lambda _, task: done.append(task.name), shards=3))
    assert done == ["test-000000"]
    assert "continuing, 2 of 3 shards are done" in capsys.readouterr().out


def test_a_receipt_whose_object_is_not_as_recorded_does_not_count(clean: dict[str, str], store: RemoteFolder) -> None:
    assert die_in_build(URL, 10, STORE_OPERATIONS) == -signal.SIGKILL
    store.write_bytes("train/a/0", b"cut")
    done = []
    jobs.run(small_job(URL, lambda _, task: done.append(task.name), shards=3))
    assert done == ["train-000000", "test-000000"]
    assert remote_tree(URL) == clean


def test_what_a_build_of_another_plan_left_is_removed(clean: dict[str, str], store: RemoteFolder) -> None:
    def build() -> None:
        killed_at(10, STORE_OPERATIONS)
        jobs.run(small_job(URL, plan="other", shards=3))

    assert in_a_child(build) == -signal.SIGKILL
    # Dies at its first shard: the other plan's receipts, of files of the very same sizes, must not count for it.
    assert die_in_build(URL, 6, STORE_OPERATIONS) == -signal.SIGKILL
    assert json.loads(store.read_bytes(".partial/lock"))["process"]
    store.write_bytes("train/a/99", b"of a shard that is not wanted any more")
    done = []
    jobs.run(small_job(URL, lambda _, task: done.append(task.name), shards=3))
    assert len(done) == 3
    assert remote_tree(URL) == clean


def test_what_killed_attempts_uploaded_is_swept_away(clean: dict[str, str], store: RemoteFolder) -> None:
    assert die_in_build(URL, 10, STORE_OPERATIONS) == -signal.SIGKILL
    store.write_bytes("train/left", b"of a killed attempt")
    jobs.run(small_job(URL, shards=3))
    assert remote_tree(URL) == clean


def test_objects_of_somebody_else_are_never_touched(store: RemoteFolder) -> None:
    store.write_bytes("thesis.tex", b"years of work")
    before = remote_tree("s3://bucket")
    with pytest.raises(DataError, match=r"(?s)not a finished dataset.*s3://bucket/data/small"):
        jobs.run(small_job(URL, shards=2))
    assert remote_tree("s3://bucket") == before


def test_another_plan_never_replaces_a_remote_dataset(store: RemoteFolder) -> None:
    jobs.run(small_job(URL, shards=2))
    before = remote_tree("s3://bucket")
    with pytest.raises(DataError, match=r'content: "this" there, "other" asked for'):
        jobs.run(small_job(URL, plan="other", shards=2))
    assert remote_tree("s3://bucket") == before


def test_a_finished_remote_dataset_is_left_alone_and_said_so(
    store: RemoteFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jobs.run(small_job(URL, shards=2)) == URL
    capsys.readouterr()
    for owner, name in STORE_OPERATIONS:
        monkeypatch.delattr(owner, name)
    assert jobs.run(small_job(URL, shards=2)) == URL
    assert capsys.readouterr().out == f"{URL}: up to date, nothing to do\n"
    monkeypatch.undo()
    store.remove(["train/a/0"])
    with pytest.raises(DataError, match=r"(?s)s3://bucket/data/small/train/a/0.*no file"):
        jobs.run(small_job(URL, shards=2))


# Two builds at once


def test_a_second_remote_build_is_refused_until_the_holder_is_dead(clean: dict[str, str], store: RemoteFolder) -> None:
    started, start = os.pipe()

    def stuck(*_: Any) -> None:
        os.write(start, b"x")
        signal.pause()

    holder = os.fork()
    if holder == 0:
        jobs.run(small_job(URL, stuck, shards=3))
    os.read(started, 1)
    try:
        with pytest.raises(DataError, match=rf"(?s)busy with {URL}.*{LOCK}.*process {holder} on .*delete that object"):
            jobs.run(small_job(URL, shards=3))
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    jobs.run(small_job(URL, shards=3))
    assert remote_tree(URL) == clean


def test_a_lock_of_another_machine_is_never_taken_over(store: RemoteFolder) -> None:
    holder = {"host": "elsewhere", "machine": "another boot", "process": 1, "started": "0", "token": "t"}
    store.write_bytes(".partial/lock", json.dumps(holder).encode())
    with pytest.raises(DataError, match=rf"(?s){LOCK}.*process 1 on elsewhere"):
        jobs.run(small_job(URL, shards=2))
    assert json.loads(store.read_bytes(".partial/lock")) == holder


def test_a_build_whose_lock_was_taken_away_does_not_commit(store: RemoteFolder) -> None:
    def steal(*_: Any) -> None:
        store.write_bytes(".partial/lock", b"{}")

    with pytest.raises(DataError, match="has taken over"):
        jobs.run(small_job(URL, steal, shards=2))
    assert store.size("manifest.json") is None
    assert store.read_bytes(".partial/lock") == b"{}"
