"""Stores whose build is killed, run twice at once, or fed with damaged files: the same bytes, or a clear error."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from data_pipeline.base.errors import DataError
from data_pipeline.build import build_store
from data_pipeline.config import DatasetConfig
from data_pipeline.stores import verify
from data_pipeline.workers import keep_ray
from tests.small_jobs import tree
from tests.training import ROOT
from tests.well_files import converted, write_dataset

COUNTS = {"train": 30, "test": 2}


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with keep_ray():
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> DatasetConfig:
    folder = tmp_path_factory.mktemp("raw")
    write_dataset(folder, COUNTS)
    return converted(folder)


@pytest.fixture(scope="module")
def clean(config: DatasetConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was built without any trouble."""
    return build_store(config, tmp_path_factory.mktemp("clean"))


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


@pytest.mark.parametrize("stop", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_build_continues_to_the_same_bytes(
    config: DatasetConfig, clean: Path, tmp_path: Path, stop: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, config.model_dump_json(), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
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


def test_two_builds_at_once_give_one_store(
    config: DatasetConfig, clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda _: build_store(config, tmp_path), range(2)))
    assert stores == [tmp_path / "flow.zarr"] * 2
    assert tree(stores[0]) == tree(clean)
    assert capsys.readouterr().out.count("up to date, nothing to do") == 1


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
