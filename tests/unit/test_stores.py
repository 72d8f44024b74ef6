"""What the stores of both formats promise: windows checked, any layout filled, what is no dataset refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.base.errors import DataError
from data_pipeline.config import ExportConfig
from data_pipeline.export import convert, export_shards
from data_pipeline.stores import open_store, splits, verify
from data_pipeline.stores.protocol import read_window
from data_pipeline.trajectory import Trajectory
from tests.datasets import make_info, make_trajectories, tasks_inline, write_store

INFO = make_info((8, 6))
TRAJECTORIES = make_trajectories(INFO, {"train": 7, "valid": 2})
TRUTH: list[Trajectory] = TRAJECTORIES["train"]
KINDS = ["zarr", "shards", "half"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One dataset in all its forms."""
    root = tmp_path_factory.mktemp("made")
    store = write_store(root, INFO, TRAJECTORIES)
    with tasks_inline():
        export_shards(store, root, ExportConfig(trajectories_per_shard=2))
        export_shards(store, root / "half", ExportConfig(trajectories_per_shard=4, dtype="float16"))
    return {"zarr": store, "shards": root / "made.shards", "half": root / "half/made.shards"}


@pytest.mark.parametrize("kind", KINDS)
def test_read_into_fills_any_layout_of_the_batch(made: dict[str, Path], kind: str) -> None:
    store, expected = open_store(made[kind], "train"), TRUTH[4].fields[1:4]
    tolerance = 1e-3 if kind == "half" else 0
    across = np.zeros((8, 6, 3, 2), np.float32)
    store.read_into(4, 1, np.moveaxis(across, -2, 0))
    wide = np.zeros((3, 8, 6, 5), np.float32)
    store.read_into(4, 1, wide[..., 2:4])
    for found in (np.moveaxis(across, -2, 0), wide[..., 2:4]):
        np.testing.assert_allclose(found, expected, atol=tolerance, rtol=tolerance)
    assert not wide[..., [0, 1, 4]].any()


def test_splits_and_verify_of_a_sound_dataset(made: dict[str, Path]) -> None:
    for path in made.values():
        assert splits(path) == {"train": 7, "valid": 2}
        assert verify(path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_window_is_refused(made: dict[str, Path], kind: str) -> None:
    store = open_store(made[kind], "train")
    for trajectory, start in ((7, 0), (-1, 0), (0, 4), (0, -1)):
        with pytest.raises(IndexError):
            read_window(store, trajectory, start, 2)
    for read in (store.parameters, store.static, store.mask):
        with pytest.raises(IndexError):
            read(7)
    with pytest.raises(ValueError, match="float32"):
        store.read_into(0, 0, np.empty((1, 8, 6, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="float32"):
        store.read_into(0, 0, np.empty((1, 8, 6, 3), np.float32))


def test_float16_overflow_is_refused() -> None:
    with pytest.raises(DataError, match="does not fit into float16"):
        convert(np.full((2, 4, 1), 7e4, np.float32), "float16", "here")


def test_a_folder_that_is_no_dataset(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such dataset folder"):
        open_store(tmp_path / "nothing", "train")
    path = shutil.copytree(made["zarr"], tmp_path / "made.zarr")
    (path / "manifest.json").unlink()
    with pytest.raises(DataError, match="no manifest"):
        open_store(path, "train")
    assert "no manifest" in verify(path)[0]


def test_a_missing_split_lists_the_present_ones(made: dict[str, Path]) -> None:
    with pytest.raises(DataError, match=r"train \(7\), valid \(2\)"):
        open_store(made["zarr"], "test")
