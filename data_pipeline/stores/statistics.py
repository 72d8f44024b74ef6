"""Per-channel statistics, measured frame by frame in float64; the order of the parts does not matter."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.config import Config
from data_pipeline.stores.protocol import Statistics
from data_pipeline.trajectory import FloatArray


class Moments(Config):
    """Moments of some frames, one entry a channel.

    Sums are centred, which keeps the digits where the mean is far above the standard deviation.
    """

    count: int
    """Grid points times frames."""
    mean: tuple[float, ...]
    centred: tuple[float, ...]
    """Sum of (x - mean)^2."""
    min: tuple[float, ...]
    max: tuple[float, ...]
    change_count: int
    change: tuple[float, ...]
    """Sum of the squared difference of consecutive frames."""


def measure(fields: FloatArray) -> Moments:
    """Moments of one trajectory (T, *space, C)."""
    parts, previous = [], None
    for frame in fields:
        values = frame.reshape(-1, frame.shape[-1]).astype(np.float64)
        parts.append(_measure_frame(values, previous))
        previous = values
    return merge(parts)


def _measure_frame(values: NDArray[np.float64], previous: NDArray[np.float64] | None) -> Moments:
    mean = values.mean(axis=0)
    change = np.zeros_like(mean) if previous is None else np.square(values - previous).sum(axis=0)
    return Moments(
        count=len(values),
        mean=tuple(mean.tolist()),
        centred=tuple(np.square(values - mean).sum(axis=0).tolist()),
        min=tuple(values.min(axis=0).tolist()),
        max=tuple(values.max(axis=0).tolist()),
        change_count=0 if previous is None else len(values),
        change=tuple(change.tolist()),
    )


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of all parts together; `math.fsum` rounds once, so any order gives the same result."""
    count = sum(part.count for part in parts)
    channels = range(len(parts[0].mean))
    mean = [math.fsum(part.count * part.mean[c] for part in parts) / count for c in channels]

    def centred(c: int) -> float:
        within = [part.centred[c] for part in parts]
        between = [part.count * (part.mean[c] - mean[c]) ** 2 for part in parts]
        return math.fsum(within + between)

    return Moments(
        count=count,
        mean=tuple(mean),
        centred=tuple(centred(c) for c in channels),
        min=tuple(min(part.min[c] for part in parts) for c in channels),
        max=tuple(max(part.max[c] for part in parts) for c in channels),
        change_count=sum(part.change_count for part in parts),
        change=tuple(math.fsum(part.change[c] for part in parts) for c in channels),
    )


def statistics(parts: Sequence[dict[str, Any]]) -> Statistics:
    """The statistics of trajectories whose moments come as JSON (from receipts)."""
    total = merge([Moments.model_validate(part) for part in parts])
    variance = [square / total.count for square in total.centred]
    return Statistics(
        mean=total.mean,
        std=tuple(math.sqrt(v) for v in variance),
        rms=tuple(math.sqrt(m**2 + v) for m, v in zip(total.mean, variance, strict=True)),
        min=total.min,
        max=total.max,
        change_rms=tuple(math.sqrt(square / max(total.change_count, 1)) for square in total.change),
    )
