"""Builds and exports with real Ray tasks, into folders and into an object store, and the tasks themselves."""

import os
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline import jobs
from data_pipeline.base.errors import DataError, PdepotError
from data_pipeline.build import build_store
from data_pipeline.config import DatasetConfig, ExportConfig, GenerateConfig, StoreConfig
from data_pipeline.export import export_shards
from data_pipeline.stores import CacheConfig, open_store, verify
from data_pipeline.stores.protocol import read_window
from data_pipeline.workers import Needs, keep_ray, ray_session, run_tasks
from launch.cli import main
from tests.s3 import s3_server
from tests.small_jobs import remote_tree, tree
from tests.well_files import converted, write_dataset

MEMORY = 2**20


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    """An object store, and Ray, whose workers know the way to it."""
    with s3_server(), keep_ray(), ray_session():
        yield


COUNTS = {"train": 30, "test": 2}


def generated() -> DatasetConfig:
    return DatasetConfig(
        name="solved",
        generate=GenerateConfig(
            family="diffusion_reaction_2d",
            resolution=(16, 16),
            frames=3,
            dt=0.1,
            parameters={"diffusivity_activator": 5e-3},
            splits={"train": 2},
        ),
        store=StoreConfig(trajectories_per_shard=1),
    )


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    folder = tmp_path_factory.mktemp("raw")
    write_dataset(folder, COUNTS)
    return converted(folder)


@pytest.fixture(scope="module")
def clean(config: DatasetConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was built without any trouble."""
    return build_store(config, tmp_path_factory.mktemp("clean"))


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_second_run_does_nothing_and_starts_no_ray(
    config: DatasetConfig,
    clean: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shards = export_shards(clean, tmp_path, ExportConfig(trajectories_per_shard=4))
    before = {**times(clean), **times(shards)}
    capsys.readouterr()

    def no_ray(address: str | None) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(jobs, "ray_session", no_ray)
    assert build_store(config, clean.parent) == clean
    assert export_shards(clean, tmp_path, ExportConfig(trajectories_per_shard=4)) == shards
    assert {**times(clean), **times(shards)} == before
    assert capsys.readouterr().out.splitlines() == [
        f"{clean}: up to date, nothing to do",
        f"{shards}: up to date, nothing to do",
    ]


def test_export_from_another_folder_with_relative_paths(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = export_shards(Path(os.path.relpath(clean, tmp_path)), Path("here"), ExportConfig())
    assert shards == tmp_path / "here/flow.shards"
    assert verify(shards) == []
    for split, count in COUNTS.items():
        for i in range(count):
            np.testing.assert_array_equal(
                read_window(open_store(shards, split), i, 0, 3), read_window(open_store(clean, split), i, 0, 3)
            )


def test_a_missing_source_fails_before_any_file_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        build_store(converted(tmp_path / "raw"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_store_damaged_after_its_size_was_checked_fails_the_export(tmp_path: Path) -> None:
    store = build_store(generated(), tmp_path)
    shard = store / "train/fields/c/1/0/0/0/0"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="train/fields/c/1/0/0/0/0"):
        export_shards(store, tmp_path, ExportConfig())
    assert not (tmp_path / "solved.shards").exists()


@pytest.fixture(scope="module")
def remote(config: DatasetConfig) -> tuple[str, str]:
    """URLs of a store in an object store, and of the shards that were exported from it."""
    store = build_store(config, "s3://bucket/data")
    return store, export_shards(store, "s3://bucket/data", ExportConfig(trajectories_per_shard=4))


def test_an_object_store_gets_the_same_bytes_as_a_folder(remote: tuple[str, str], clean: Path, tmp_path: Path) -> None:
    shards = export_shards(clean, tmp_path, ExportConfig(trajectories_per_shard=4))
    assert remote == ("s3://bucket/data/flow.zarr", "s3://bucket/data/flow.shards")
    assert remote_tree(remote[0]) == tree(clean)
    assert remote_tree(remote[1]) == tree(shards)


def test_what_was_built_in_an_object_store_can_be_read(remote: tuple[str, str], clean: Path, tmp_path: Path) -> None:
    for url in remote:
        there = open_store(url, "train", cache=CacheConfig(folder=str(tmp_path)))
        np.testing.assert_array_equal(read_window(there, 7, 0, 3), read_window(open_store(clean, "train"), 7, 0, 3))


def test_the_command_line_says_that_a_remote_store_is_up_to_date(
    remote: tuple[str, str], config: DatasetConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(config.model_dump_json(exclude_none=True))  # JSON is YAML
    assert main(["data", "convert", str(file), "--root", "s3://bucket/data"]) == 0
    assert main(["data", "export", remote[0], "trajectories_per_shard=4"]) == 0
    said = [f"{remote[0]}: up to date, nothing to do", remote[0], f"{remote[1]}: up to date, nothing to do", remote[1]]
    assert capsys.readouterr().out.splitlines() == said


# Tasks


def fail_once(how: str, folder: Path, number: int) -> int:
    """In a worker: fail on the first attempt of each number."""
    marker = folder / str(number)
    if not marker.exists():
        marker.touch()
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError("the disk had a moment")
    return number


def fail_always(folder: Path, number: int) -> int:
    """In a worker: note the attempt, then fail for good."""
    with (folder / str(number)).open("a") as file:
        file.write("x")
    raise DataError("damaged", file=f"file-{number}") if number == 1 else OSError(28, "No space left on device", "f")


@pytest.mark.parametrize("how", ["killed", "transient"])
def test_a_lost_worker_and_a_transient_error_are_retried(tmp_path: Path, how: str) -> None:
    assert sorted(run_tasks(partial(fail_once, how, tmp_path), [1, 2], Needs(MEMORY))) == [1, 2]


def test_a_permanent_error_is_not_retried(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file-1") as caught:
        list(run_tasks(partial(fail_always, tmp_path), [1], Needs(MEMORY)))
    assert type(caught.value) is DataError
    assert (tmp_path / "1").read_text() == "x"


def test_a_full_disk_becomes_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PdepotError, match=r"(?s)No space left on device.*run the same command again"):
        list(run_tasks(partial(fail_always, tmp_path), [2], Needs(MEMORY)))
    assert (tmp_path / "2").read_text() == "xxxx"


def wait_for(folder: Path, number: int) -> int:
    """In a worker: the first number fails at once, the others wait to be cancelled."""
    (folder / f"started-{number}").touch()
    if number == 0:
        raise DataError("damaged")
    time.sleep(60)
    (folder / f"finished-{number}").touch()
    return number


def test_a_failure_cancels_the_tasks_that_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged"):
        list(run_tasks(partial(wait_for, tmp_path), range(50), Needs(MEMORY), max_in_flight=2))
    assert len(list(tmp_path.glob("started-*"))) < 10
    # The CPUs are free again, so a new task does not wait for the old ones.
    assert list(run_tasks(partial(fail_once, "transient", tmp_path), [7], Needs(MEMORY))) == [7]
    assert not list(tmp_path.glob("finished-*"))


def test_a_task_larger_than_the_machine_still_runs(tmp_path: Path) -> None:
    assert list(run_tasks(partial(fail_once, "transient", tmp_path), [1], Needs(2**60))) == [1]


def test_a_session_leaves_a_running_ray_alone() -> None:
    import ray

    with ray_session():
        assert ray.is_initialized()
    assert ray.is_initialized()


def test_a_gpu_that_is_not_there_is_missed_before_any_shard(tmp_path: Path) -> None:
    config = generated()
    assert config.generate is not None
    on_gpu = config.model_copy(update={"generate": config.generate.model_copy(update={"device": "cuda"})})
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(PdepotError, match=r"(?s)no GPU.*generate.device.*generate.device=cpu"):
        build_store(on_gpu, tmp_path)
    assert not (tmp_path / "solved.zarr").exists()
