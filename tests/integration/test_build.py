"""Builds and exports with real Ray tasks: killed, repeated, run twice at once, and fed with damaged files."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline import jobs
from data_pipeline.base.errors import DataError, PdepotError
from data_pipeline.base.files import sha256_file
from data_pipeline.build import build_store
from data_pipeline.config import ConvertConfig, DatasetConfig, ExportConfig, GenerateConfig, StoreConfig
from data_pipeline.export import export_shards
from data_pipeline.stores import open_store, verify
from data_pipeline.stores.protocol import read_window
from data_pipeline.workers import ray_session, run_tasks
from tests.well_files import write_dataset

REPOSITORY = Path(__file__).resolve().parents[2]
MEMORY = 2**20


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with ray_session():
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
            splits={"train": 2},
        ),
        store=StoreConfig(trajectories_per_shard=1),
    )


def converted(raw: Path) -> DatasetConfig:
    return DatasetConfig(
        name="flow",
        convert=ConvertConfig(layout="the_well", path=str(raw)),
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


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


BUILD = """
import sys
from pathlib import Path
from data_pipeline.build import build_store
from data_pipeline.config import DatasetConfig
build_store(DatasetConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]), max_in_flight=1)
"""


def receipts(root: Path) -> int:
    journal = root / ".flow.zarr.partial/journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_build_continues_to_the_same_bytes(
    config: DatasetConfig, clean: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, config.model_dump_json(), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    while receipts(tmp_path) < 2 and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(stop)
    assert process.wait() != 0
    assert not (tmp_path / "flow.zarr").exists()
    done = receipts(tmp_path)
    assert 2 <= done < sum(COUNTS.values())
    store = build_store(config, tmp_path)
    assert tree(store) == tree(clean)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".flow.zarr.lock", "flow.zarr"]


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


def test_two_builds_at_once_give_one_store(
    config: DatasetConfig, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda _: build_store(config, tmp_path), range(2)))
    assert stores == [tmp_path / "flow.zarr"] * 2
    assert tree(stores[0]) == tree(clean)
    assert capsys.readouterr().out.count("up to date, nothing to do") == 1


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


def test_a_damaged_trajectory_fails_the_build_once_and_publishes_nothing(tmp_path: Path) -> None:
    write_dataset(tmp_path / "raw", {"train": 8})
    file = tmp_path / "raw/data/train/train.hdf5"
    with h5py.File(file, "r+") as content:
        content["t0_fields/density"][5, 1, 2, 3] = np.nan
    with pytest.raises(DataError, match=r"(?s)train\.hdf5.*density") as caught:
        build_store(converted(tmp_path / "raw"), tmp_path / "out")
    assert type(caught.value) is DataError
    assert not (tmp_path / "out/flow.zarr").exists()
    shutil.rmtree(tmp_path / "raw")
    write_dataset(tmp_path / "raw", {"train": 8})
    assert verify(build_store(converted(tmp_path / "raw"), tmp_path / "out")) == []


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
    assert sorted(run_tasks(partial(fail_once, how, tmp_path), [1, 2], memory=MEMORY)) == [1, 2]


def test_a_permanent_error_is_not_retried(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="file-1") as caught:
        list(run_tasks(partial(fail_always, tmp_path), [1], memory=MEMORY))
    assert type(caught.value) is DataError
    assert (tmp_path / "1").read_text() == "x"


def test_a_full_disk_becomes_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(PdepotError, match=r"(?s)No space left on device.*run the same command again"):
        list(run_tasks(partial(fail_always, tmp_path), [2], memory=MEMORY))
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
        list(run_tasks(partial(wait_for, tmp_path), range(50), memory=MEMORY, max_in_flight=2))
    assert len(list(tmp_path.glob("started-*"))) < 10
    # The CPUs are free again, so a new task does not wait for the old ones.
    assert list(run_tasks(partial(fail_once, "transient", tmp_path), [7], memory=MEMORY)) == [7]
    assert not list(tmp_path.glob("finished-*"))


def test_a_task_larger_than_the_machine_still_runs(tmp_path: Path) -> None:
    assert list(run_tasks(partial(fail_once, "transient", tmp_path), [1], memory=2**60)) == [1]


def test_a_session_leaves_a_running_ray_alone() -> None:
    import ray

    with ray_session():
        assert ray.is_initialized()
    assert ray.is_initialized()
