"""What a store of trajectories promises its readers, whatever its format."""

from pathlib import Path
from typing import Protocol

import numpy as np

from data_pipeline.base.config import Config
from data_pipeline.trajectory import BoolArray, DatasetInfo, FloatArray


class Statistics(Config):
    """Per-channel figures of a dataset's training split, over all trajectories, frames and grid points."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    rms: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    change_rms: tuple[float, ...]
    """RMS of the difference between two consecutive frames."""
    change_mean: tuple[float, ...] = ()
    """This and the next three are of the same differences; empty in stores of format 1, which lack them."""
    change_std: tuple[float, ...] = ()
    change_min: tuple[float, ...] = ()
    change_max: tuple[float, ...] = ()


class TrajectoryStore(Protocol):
    """Random access to the windows of one split of a committed dataset. Safe to share between threads."""

    path: Path | str
    """The dataset's folder, or its URL."""
    info: DatasetInfo
    split: str
    digest: str
    """Identifies the data of the whole dataset: equal data, equal digest."""
    statistics: Statistics

    def __len__(self) -> int:
        """Number of trajectories in the split."""
        ...

    def read_into(self, trajectory: int, start: int, out: FloatArray) -> None:
        """Fill `out`, (n, *space, C), with frames start .. start+n of a trajectory, checksums verified.

        Raises:
            DataError: the bytes are missing or damaged; names dataset, shard, trajectory, frame and offset.
        """
        ...

    def parameters(self, trajectory: int) -> dict[str, float]:
        """PDE parameters of a trajectory."""
        ...

    def static(self, trajectory: int) -> FloatArray | None:
        """Fields of a trajectory that do not change in time, float32 (*space, S); None where the dataset has none.

        Raises:
            DataError: as `read_into`.
        """
        ...

    def mask(self, trajectory: int) -> BoolArray | None:
        """Points of a trajectory that belong to the domain, bool (*space); None where all do.

        Raises:
            DataError: as `read_into`.
        """
        ...

    def close(self) -> None:
        """Release file handles."""
        ...


def read_window(store: TrajectoryStore, trajectory: int, start: int, count: int) -> FloatArray:
    """Frames start .. start+count of a trajectory as a new array (count, *space, C)."""
    out = np.empty((count, *store.info.space, len(store.info.channels)), np.float32)
    store.read_into(trajectory, start, out)
    return out
