"""Datasets of one, two and three axes for one training run: waves that travel along every axis."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipeline.base.config import load
from data_pipeline.config import DatasetConfig
from launch.datasets import make_datasets
from tests.training import MODEL, write_dataset

SPACES = {"line": (32,), "coarse": (16, 16), "fine": (24, 24), "box": (8, 8, 8)}
FIELDS = {"line": ("density",), "coarse": ("density",), "fine": ("density", "pressure"), "box": ("pressure",)}
WEIGHTS = {"line": 2, "coarse": 1, "fine": 2, "box": 1}
# Few weights, so that few steps teach them something; taken by every grid.
MIXED_MODEL = MODEL | {"width": 32, "condition": True, "resize_position": True}


def make_mixed_data(folder: Path) -> dict[str, Any]:
    """Build the datasets; returns the `data` group of a configuration in `folder`."""
    configs = []
    for name, space in SPACES.items():
        file = write_dataset(folder, name, FIELDS[name], space=space)
        for raw in sorted((folder / "raw" / name).rglob("*.hdf5")):
            _let_waves_travel(raw, space)
        configs.append(load(DatasetConfig, file))
    make_datasets(configs, folder / "data")
    return {
        "root": str(folder / "data"), "history": 4,
        "datasets": [{"config": f"{name}.yaml", "weight": weight} for name, weight in WEIGHTS.items()],
    }  # fmt: skip


def _let_waves_travel(raw: Path, space: tuple[int, ...]) -> None:
    rng = np.random.default_rng(list(raw.name.encode()))  # no trajectory is in two splits
    with h5py.File(raw, "r+") as root:
        for field in root["t0_fields"].values():
            trajectories, frames = field.shape[:2]
            phase = rng.uniform(0, 2 * np.pi, trajectories)
            points = sum(np.meshgrid(*(2 * np.pi * np.arange(n) / n for n in space), indexing="ij"))
            times = 0.5 * np.arange(frames).reshape(-1, *(1,) * len(space))
            field[...] = 1 + np.sin(points - times + phase.reshape(-1, 1, *(1,) * len(space)))
