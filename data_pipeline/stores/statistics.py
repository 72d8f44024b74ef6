"""Per-channel statistics of fields and of their change from frame to frame, merged without a rounding error.

Sums are kept exactly, as a few floats whose sum is meant, so moments can be merged in any order and any grouping: the
result is the same to the last bit. Only `statistics` rounds, once for each figure.
"""

import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.config import Config
from data_pipeline.stores.protocol import Statistics
from data_pipeline.trajectory import BoolArray, FloatArray

_BLOCK = 2**15  # values at a time: a quarter of a MiB in float64, a few of which stay in a core's cache
_ROW = 2**10  # values that are added side by side; numpy is slow along the longer axis of a thin array
_ONE = 1 << 1074  # exact sums are counted in the smallest float64

Sum = tuple[float, ...]
"""Floats whose exact sum is meant, the largest first; equal sums have equal floats."""


class Figures(Config):
    """Sums and extremes of some numbers x; but for the count, one entry a channel. Without numbers, no extremes."""

    count: int
    total: tuple[Sum, ...]
    """Sum of x."""
    squares: tuple[Sum, ...]
    """Sum of x^2; exact, so the variance keeps its digits where the mean is far above the standard deviation."""
    min: tuple[float, ...]
    max: tuple[float, ...]


class Moments(Config):
    """Figures of some trajectories, at the points of the domain."""

    fields: Figures
    change: Figures
    """Of the differences between consecutive frames."""


class _Part(NamedTuple):
    """Figures of a block, one entry a channel."""

    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    min: NDArray[np.float64]
    max: NDArray[np.float64]


def measure(fields: FloatArray, mask: BoolArray | None = None) -> Moments:
    """Moments of one trajectory (T, *space, C), at the points where `mask` (*space) is true, or at all.

    Its own sums are taken in float64, block by block, about a value near the mean of the first frame.
    """
    channels = fields.shape[-1]
    frames = fields.reshape(len(fields), -1)
    inside = None if mask is None else np.repeat(mask.reshape(-1), channels)
    first = (frames[0] if inside is None else frames[0, inside]).reshape(-1, channels)
    # Rounded to float32: of fewer digits, so that the exact sums are fewer floats.
    pivot = np.ascontiguousarray(first.T).mean(axis=1, dtype=np.float64).astype(np.float32).astype(np.float64)
    parts = [_measure_columns(columns, pivot) for columns in _columns(frames, inside, channels)]
    count = len(first) * len(fields)
    changes = [change for _, change in parts] if len(fields) > 1 else []
    return Moments(
        fields=_figures(count, [own for own, _ in parts], pivot),
        change=_figures(count - len(first), changes, np.zeros(channels)),
    )


def _columns(frames: FloatArray, inside: BoolArray | None, channels: int) -> Iterator[FloatArray]:
    """`frames` (T, points * C) in pieces of the points, without those that are not `inside`."""
    row = _row(channels)
    width = max(1, _BLOCK // row) * row
    for left in range(0, frames.shape[1], width):
        keep = slice(left, left + width) if inside is None else left + np.flatnonzero(inside[left : left + width])
        columns = frames[:, keep]
        if columns.size:
            yield columns


def _row(channels: int) -> int:
    return max(1, _ROW // channels) * channels


def _measure_columns(frames: FloatArray, pivot: NDArray[np.float64]) -> tuple[_Part, _Part]:
    """Parts of `frames` (T, points * C): of the fields less `pivot` (C,), and of their differences."""
    channels, width = len(pivot), frames.shape[1]
    row = _row(channels) if width % _row(channels) == 0 else width
    own, change = _Running(row), _Running(row)
    middle = np.tile(pivot, width // channels)
    steps = max(1, _BLOCK // width)
    values, changes = np.empty((steps + 1, width)), np.empty((steps, width))  # fresh memory costs as much as the sums
    for start in range(0, len(frames), steps):
        stored = frames[start : start + steps]
        first, last = int(start == 0), len(stored)
        values[0] = values[-1]  # the frame before, to which the first one's change is measured
        here = values[1 : last + 1]
        here[...] = stored
        here -= middle
        own.add(here, stored)
        step = np.subtract(here[first:], values[first:last], out=changes[first:last])
        change.add(step, step)
    return own.part(channels), change.part(channels)


class _Running:
    """Sums and extremes of numbers whose last axis, of channels, comes again and again in a row of `width` numbers."""

    def __init__(self, width: int) -> None:
        self._total, self._squares = np.zeros((2, width))
        self._min, self._max = np.full((2, width), [[np.inf], [-np.inf]])

    def add(self, values: NDArray[np.float64], extremes: NDArray[Any]) -> None:
        """Add `values` to the sums, and compare `extremes`, of the same shape, with those so far."""
        if not values.size:
            return
        rows, seen = (array.reshape(-1, len(self._total)) for array in (values, extremes))
        self._total += rows.sum(axis=0)
        self._squares += np.einsum("rw,rw->w", rows, rows)
        np.minimum(self._min, seen.min(axis=0), out=self._min)
        np.maximum(self._max, seen.max(axis=0), out=self._max)

    def part(self, channels: int) -> _Part:
        """The figures by channel."""
        total, squares, low, high = (
            np.ascontiguousarray(row.reshape(-1, channels).T)
            for row in (self._total, self._squares, self._min, self._max)
        )
        return _Part(total.sum(axis=1), squares.sum(axis=1), low.min(axis=1), high.max(axis=1))


def _figures(count: int, parts: Sequence[_Part], pivot: NDArray[np.float64]) -> Figures:
    """Figures of x, from the parts of x - pivot (their extremes are of x itself)."""
    total, squares = [], []
    for channel, middle in enumerate(Fraction(float(value)) for value in pivot):
        shifted = Fraction(math.fsum(part.total[channel] for part in parts))
        shifted_squares = Fraction(math.fsum(part.squares[channel] for part in parts))
        total.append(_floats(_exact(shifted + count * middle)))
        squares.append(_floats(_exact(shifted_squares + 2 * middle * shifted + count * middle**2)))
    return Figures(
        count=count,
        total=tuple(total),
        squares=tuple(squares),
        min=tuple(np.min([part.min for part in parts], axis=0).tolist()) if parts else (),
        max=tuple(np.max([part.max for part in parts], axis=0).tolist()) if parts else (),
    )


def merge(parts: Sequence[Moments]) -> Moments:
    """Moments of all parts together, exactly: any order and any grouping give the same."""
    return Moments(fields=_merge([part.fields for part in parts]), change=_merge([part.change for part in parts]))


def _merge(parts: Sequence[Figures]) -> Figures:
    channels = range(len(parts[0].total))
    some = [part for part in parts if part.count]
    return Figures(
        count=sum(part.count for part in parts),
        total=tuple(_floats(sum(_whole(part.total[c]) for part in parts)) for c in channels),
        squares=tuple(_floats(sum(_whole(part.squares[c]) for part in parts)) for c in channels),
        min=tuple(min(part.min[c] for part in some) for c in channels) if some else (),
        max=tuple(max(part.max[c] for part in some) for c in channels) if some else (),
    )


def _exact(value: float | Fraction) -> int:
    """A number as a count of 2^-1074. Products of two float32, and their sums in float64, are whole ones."""
    numerator, denominator = value.as_integer_ratio()
    return numerator << 1075 - denominator.bit_length()


def _whole(floats: Sum) -> int:
    return sum(map(_exact, floats))


def _floats(count: int) -> Sum:
    """The number `count` * 2^-1074 as floats that add up to it."""
    floats = []
    while count:
        floats.append(count / _ONE)
        count -= _exact(floats[-1])
    return tuple(floats)


def statistics(parts: Sequence[dict[str, Any]]) -> Statistics:
    """The statistics of trajectories whose moments come as JSON (from receipts)."""
    total = merge([Moments.model_validate(part) for part in parts])
    mean, std, rms = _means(total.fields)
    change_mean, change_std, change_rms = _means(total.change)
    still = (0.0,) * len(mean)  # a steady problem: one frame, no change
    return Statistics(
        mean=mean,
        std=std,
        rms=rms,
        min=total.fields.min,
        max=total.fields.max,
        change_rms=change_rms,
        change_mean=change_mean,
        change_std=change_std,
        change_min=total.change.min or still,
        change_max=total.change.max or still,
    )


def _means(figures: Figures) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """Mean, standard deviation and RMS of each channel, each from exact sums."""
    count = max(figures.count, 1)
    totals, squares = [[_whole(one) for one in sums] for sums in (figures.total, figures.squares)]
    # Squares of blocks are rounded, so where nothing varies the difference could fall below zero by that much.
    spread = [max(0, s * count * _ONE - t * t) for t, s in zip(totals, squares, strict=True)]
    return (
        tuple(t / (count * _ONE) for t in totals),
        tuple(math.sqrt(v / (count * _ONE) ** 2) for v in spread),
        tuple(math.sqrt(s / (count * _ONE)) for s in squares),
    )
