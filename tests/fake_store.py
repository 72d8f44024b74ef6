"""A store in memory whose values tell where they come from, and loaders over such stores."""

import threading
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.base.errors import DataError
from data_pipeline.loader import Batch, Loader, mixture_of
from data_pipeline.mixture import Mixture
from data_pipeline.stores.protocol import Statistics
from data_pipeline.trajectory import BoolArray, Boundary, DatasetInfo, FloatArray

HISTORY, TARGET = 3, 2
CHANNELS = ("density", "velocity_x", "velocity_y", "height")


class FakeStore:
    """A store in memory whose values tell dataset, trajectory, frame, grid point and channel."""

    path, split, digest = Path("/nowhere"), "train", "0"
    statistics = Statistics(mean=(), std=(), rms=(), min=(), max=(), change_rms=())

    def __init__(
        self,
        name: str,
        channels: tuple[str, ...],
        *,
        trajectories: int = 4,
        frames: int = 9,
        space: tuple[int, ...] = (6, 5),
        boundaries: tuple[Boundary, ...] = ("periodic", "wall"),
        translation_invariant: bool = True,
        dt: float = 0.5,
        parameters: tuple[str, ...] = (),
        masked: bool = False,
    ) -> None:
        axes = ("x", "y", "z")[: len(space)]
        self.info = DatasetInfo(
            name=name, channels=channels, space=space, frames=frames, dt=dt, axes=axes,
            extent=((0.0, 1.0),) * len(space), boundaries=boundaries,
            translation_invariant=translation_invariant, parameters=parameters, masked=masked,
        )  # fmt: skip
        shape = (trajectories, frames, *space, len(channels))
        count = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        self.fields = count + 100_000 * (1 + sum(map(ord, name)) % 50)
        self.reads = 0
        self.damaged: tuple[int, int] | None = None
        self.delay = 0.0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.fields)

    def read_into(self, trajectory: int, start: int, out: FloatArray) -> None:
        with self._lock:
            self.reads += 1
        if self.damaged == (trajectory, start):
            raise DataError("damaged frame", file="shard-7", found=f"trajectory {trajectory}, frame {start}")
        time.sleep(self.delay)
        window = self.fields[trajectory, start : start + len(out)]
        assert window.shape == out.shape, "read past the end of the trajectory"
        out[...] = window

    def parameters(self, trajectory: int) -> dict[str, float]:
        return {name: trajectory + 0.5 for name in self.info.parameters}

    def static(self, trajectory: int) -> None:
        return None

    def mask(self, trajectory: int) -> BoolArray | None:
        if not self.info.masked:
            return None
        points = np.arange(np.prod(self.info.space)).reshape(self.info.space)
        return (points + trajectory) % 3 > 0

    def close(self) -> None:
        pass


def two_stores(**changes: Any) -> list[FakeStore]:
    return [
        FakeStore("burgers", ("velocity_x",), trajectories=5, dt=0.25, **changes),
        FakeStore("flow", ("velocity_y", "density", "velocity_x"), trajectories=7, frames=12, **changes),
    ]


def mixture_for(stores: Sequence[FakeStore], batch_size: int = 48, micro_batch: int = 2, **quarantine: Any) -> Mixture:
    weights = [1, 2, 3][: len(stores)]
    sizes = {"batch_size": batch_size, "micro_batch": micro_batch}
    return mixture_of(stores, weights, HISTORY, TARGET, 0, **sizes, **quarantine)


def loader_of(stores: Sequence[FakeStore], batch_size: int = 48, micro_batch: int = 2, **changes: Any) -> Loader:
    settings: dict[str, Any] = {
        "slots": [[CHANNELS.index(name) for name in store.info.channels] for store in stores],
        "num_channels": len(CHANNELS), "history": HISTORY, "target": TARGET, "rank": 0, "world_size": 1,
        "first_step": 0, "shift": False, "seed": 0,
    }  # fmt: skip
    return Loader(stores, mixture_for(stores, batch_size, micro_batch), **(settings | changes))


def take(stores: Sequence[FakeStore], count: int, **changes: Any) -> list[Batch]:
    with loader_of(stores, **changes) as loader:
        return list(islice(loader, count))


def assert_same(a: Batch, b: Batch) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
