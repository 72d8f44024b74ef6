"""Small files in published layouts for tests, where the tiny published ones are not enough."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_pipeline.config import ConvertConfig, SplitRule
from data_pipeline.sources.files import FileSource
from data_pipeline.sources.layout import Layout
from data_pipeline.trajectory import Trajectory

Array = NDArray[Any]
LAST_ONE = SplitRule(test=1)


def write_hdf5(
    path: Path, arrays: Mapping[str, Any], attributes: Mapping[str, Mapping[str, Any]] | None = None
) -> Path:
    """Arrays by key, and attributes by the key of their node ("/" is the root)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as root:
        for key, values in arrays.items():
            root[key] = values
        for key, named in (attributes or {}).items():
            root[key].attrs.update(named)
    return path


def random(*shape: int, seed: int = 0, dtype: str = "f4") -> Array:
    """Normal random numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def advection(path: Path, trajectories: int = 4, frames: int = 5, points: int = 16, **changes: Any) -> Path:
    """A PDEBench file of one equation in 1D; `changes` replace arrays, None takes them away."""
    arrays = {
        "tensor": random(trajectories, frames, points, seed=trajectories),
        "t-coordinate": np.linspace(0, 0.1 * frames, frames + 1, dtype="f4"),
        "x-coordinate": (np.arange(points, dtype="f4") + 0.5) / points,
    } | {key.replace("_", "-"): values for key, values in changes.items()}
    return write_hdf5(path, {k: v for k, v in arrays.items() if v is not None}, {"/": {"beta": 0.1}})


def smoke(path: Path, split: str = "train", buoyancy: float = 0.5, **changes: Any) -> Path:
    """A PDEArena file of buoyant smoke."""
    arrays = {key: random(3, 5, 16, 12, seed=n, dtype="f8") for n, key in enumerate(("u", "vx", "vy"))} | {
        "t": np.tile(18 + 1.5 * np.arange(5), (3, 1)),
        "x": np.tile(np.linspace(0, 32, 16), (3, 1)),
        "y": np.tile(np.linspace(0, 32, 12), (3, 1)),
        "buo_y": np.full(3, buoyancy),
        "dt": np.full(3, 1.5),
    }
    arrays |= changes
    return write_hdf5(path, {f"{split}/{k}": v for k, v in arrays.items() if v is not None})


def truncate(path: Path) -> Path:
    """Cut off the last third of a file, as a broken download does."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)
    return path


def source(layout: Layout, path: Path, **config: Any) -> FileSource:
    """Files of a layout as a source; trajectories without a split: the last one for testing."""
    if "splits" not in config and layout.files(path):
        file = layout.files(path)[0]
        if layout.header(file, ConvertConfig(path=str(path), **config)).split is None:
            config["splits"] = LAST_ONE
    return FileSource("made", ConvertConfig(path=str(path), **config), layout)


def everything(opened: FileSource) -> Iterator[Trajectory]:
    """All trajectories of all splits: of train, then valid, then test."""
    for split, count in opened.splits.items():
        yield from opened.read(split, 0, count)
