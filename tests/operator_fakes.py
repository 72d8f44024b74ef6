"""Operators whose right answer is known, and a store in memory."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data_pipeline.stores.protocol import Statistics
from data_pipeline.trajectory import DatasetInfo
from pretrain.model import NetworkConfig
from pretrain.model.operator import DatasetScaling, Operator, OperatorConfig

SPACE, T_IN = (8, 8), 3
# The wave's channels stand in reversed order in the slots, and the last slot belongs to the other dataset alone.
SLOTS = ("height", "speed", "tracer")
WAVE, OTHER = ("speed", "height"), ("speed", "tracer")


def operator_config(out_timesteps: int = 1, space: tuple[int, ...] = SPACE) -> OperatorConfig:
    def scaling(name: str, channels: tuple[str, ...]) -> DatasetScaling:
        n = len(channels)
        return DatasetScaling(
            name=name, channels=channels, mean=(0.5,) * n, std=(2.0,) * n, change_rms=(1.0,) * n, dt=0.5
        )

    network = NetworkConfig(
        space=space, patch_size=4, in_channels=3, out_channels=3, in_timesteps=T_IN, out_timesteps=out_timesteps,
        width=16, depth=1, heads=2, head_width=4,
    )  # fmt: skip
    return OperatorConfig(
        network=network, channels=SLOTS, datasets=(scaling("wave", WAVE), scaling("other", OTHER)), predict="state",
        normalisation="mean_std",
    )  # fmt: skip


class Shift(Operator):
    """The exact operator of a wave that travels one point a frame along the first axis.

    It takes whatever it finds in slots that the dataset does not have for a disturbance of all others, and writes
    `rubbish` into the slot of the tracer.
    """

    def __init__(self, out_timesteps: int = 1, rubbish: float = 0.0, space: tuple[int, ...] = SPACE) -> None:
        super().__init__(operator_config(out_timesteps, space))
        self.out_timesteps, self.rubbish = out_timesteps, rubbish

    def forward(self, history: Tensor, dataset: Tensor, *_: object) -> Tensor:
        last = history[..., -1, :]
        if dataset.eq(0).all():
            last = last + history[..., 2:].sum()
        block = torch.stack([last.roll(k + 1, dims=1) for k in range(self.out_timesteps)], dim=-2)
        block[..., 2] += self.rubbish
        return block


class MemoryStore:
    """A split of trajectories (N, T, *space, C) in memory."""

    path = Path("memory")
    split = "test"
    digest = "0" * 64

    def __init__(
        self, fields: np.ndarray, *, name: str = "wave", channels: tuple[str, ...] = WAVE, dt: float = 0.5
    ) -> None:
        self.fields = fields.astype(np.float32)
        space = fields.shape[2:-1]
        self.info = DatasetInfo(
            name=name, channels=channels, space=space, frames=fields.shape[1], dt=dt,
            axes=("x", "y", "z")[: len(space)], extent=((0.0, 1.0),) * len(space),
            boundaries=("periodic",) * len(space),
        )  # fmt: skip
        figures = (1.0,) * len(channels)
        self.statistics = Statistics(
            mean=figures, std=figures, rms=figures, min=figures, max=figures, change_rms=figures
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.fields)

    def read_into(self, trajectory: int, start: int, out: np.ndarray) -> None:
        out[...] = self.fields[trajectory, start : start + len(out)]

    def parameters(self, trajectory: int) -> dict[str, float]:
        return {}

    def close(self) -> None:
        pass


def travelling_waves(count: int = 3, frames: int = 8, space: tuple[int, ...] = SPACE) -> np.ndarray:
    """(count, frames, *space, 2): random fields that move one point a frame along the first axis."""
    first = np.random.default_rng(0).normal(size=(count, *space, 2)).astype(np.float32)
    return np.stack([np.roll(first, t, axis=1) for t in range(frames)], axis=1)
