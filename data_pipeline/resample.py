"""Trajectories on another grid: by the published bilinear rule, or by Fourier modes.

All rules work along one axis after the other, in float64 and frame by frame; an axis whose number of points stays is
left as it is. A mask is resampled by nearest point under all rules.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import ConfigError
from data_pipeline.trajectory import DatasetInfo, FloatArray, Trajectory, grid

Resampling = Literal["none", "bilinear", "bilinear_corners", "spectral"]
_Values = NDArray[np.float64]


def resampled_info(info: DatasetInfo, resolution: tuple[int, ...], rule: Resampling) -> DatasetInfo:
    """What a dataset is on a grid of `resolution`, the positions of its points included.

    Raises:
        ConfigError: the rule cannot be used on this dataset, or `resolution` has another number of axes.
    """
    _check(info, resolution, rule)
    positions = []
    for number, (old, points) in enumerate(zip(grid(info), resolution, strict=True)):
        if points == len(old):
            positions.append(old)
        elif rule == "spectral":
            low, high = info.extent[number]
            positions.append(old[0] + (high - low) * np.arange(points) / points)
        else:
            positions.append(_at(old, _source_positions(len(old), points, rule)))
    usual = info.model_copy(update={"space": resolution, "coordinates": ()})
    if all(np.allclose(a, b, rtol=1e-6, atol=1e-9) for a, b in zip(positions, grid(usual), strict=True)):
        return usual
    return usual.model_copy(update={"coordinates": tuple(tuple(axis.tolist()) for axis in positions)})


def _at(old: _Values, source: _Values) -> _Values:
    """Positions between the points of an axis, and beyond them in the direction of the outermost two."""
    if len(old) == 1:
        return np.full(len(source), old[0])
    below = np.clip(np.floor(source).astype(np.int64), 0, len(old) - 2)
    positions: _Values = old[below] + (source - below) * (old[below + 1] - old[below])
    return positions


def _check(info: DatasetInfo, resolution: tuple[int, ...], rule: Resampling) -> None:
    key = f"resolution of {info.name}"
    if len(resolution) != len(info.space):
        expected = f"{len(info.space)} numbers, one for each of the axes {', '.join(info.axes)}"
        raise ConfigError("a resolution with another number of axes", key=key, found=resolution, expected=expected)
    if rule != "spectral":
        return
    if info.masked:
        raise ConfigError(
            "spectral resampling of a dataset with a mask: the jump at its edge would ring through the fields",
            key=key,
            remedy="use resampling: bilinear",
        )
    for axis, boundary, (low, high), new, points in zip(
        info.axes, info.boundaries, info.extent, resolution, grid(info), strict=True
    ):
        old = len(points)
        even = np.allclose(np.diff(points), (high - low) / old, rtol=1e-3)
        if new != old and (boundary != "periodic" or not even):
            uneven = "points that are not its n-th parts (the end may be there twice)"
            raise ConfigError(
                "spectral resampling needs a periodic axis in n equal parts",
                key=f"{key}, axis {axis}",
                found=f"boundary {boundary}" if boundary != "periodic" else uneven,
                remedy=f"use resampling: bilinear, or keep the {old} points of this axis",
            )


def resample_trajectory(trajectory: Trajectory, resolution: tuple[int, ...], rule: Resampling) -> Trajectory:
    """A trajectory on a grid of `resolution`: fields, static fields and mask. The rule was checked before."""
    fields = np.empty((len(trajectory.fields), *resolution, trajectory.fields.shape[-1]), np.float32)
    for source, target in zip(trajectory.fields, fields, strict=True):
        target[...] = resample(source, resolution, rule)
    static, mask = trajectory.static, trajectory.mask
    if static is not None:
        static = resample(static, resolution, rule)
    if mask is not None:
        for axis, points in enumerate(resolution):
            mask = np.take(mask, _nearest(mask.shape[axis], points, rule), axis)
    return replace(trajectory, fields=fields, static=static, mask=mask)


def resample(values: FloatArray, resolution: tuple[int, ...], rule: Resampling) -> FloatArray:
    """`values` (*space, C) on a grid of `resolution`, (*resolution, C)."""
    along: Callable[[_Values, int, int], _Values] = _spectral
    if rule != "spectral":
        along = lambda array, axis, points: _linear(array, axis, points, rule)  # noqa: E731
    result = values.astype(np.float64)
    for axis, points in enumerate(resolution):
        if result.shape[axis] != points:
            result = along(result, axis, points)
    return result.astype(np.float32)


def _source_positions(old: int, new: int, rule: Resampling) -> _Values:
    """Where the new points lie between the old ones, which are numbered from 0."""
    numbers = np.arange(new, dtype=np.float64)
    if rule == "bilinear_corners":
        return numbers * (old - 1) / max(new - 1, 1)
    return (numbers + 0.5) * old / new - 0.5


def _nearest(old: int, new: int, rule: Resampling) -> NDArray[np.int64]:
    """Number of the old point nearest to each new one."""
    return np.clip(np.rint(_source_positions(old, new, rule)).astype(np.int64), 0, old - 1)


def _linear(values: _Values, axis: int, points: int, rule: Resampling) -> _Values:
    """`torch.nn.functional.interpolate` (linear, bilinear, trilinear) along one axis; the ends hold beyond them."""
    old = values.shape[axis]
    source = np.clip(_source_positions(old, points, rule), 0, old - 1)
    below = np.minimum(source.astype(np.int64), max(old - 2, 0))
    weight = (source - below).reshape(-1, *[1] * (values.ndim - axis - 1))
    above = np.minimum(below + 1, old - 1)
    result: _Values = np.take(values, below, axis) * (1 - weight) + np.take(values, above, axis) * weight
    return result


def _spectral(values: _Values, axis: int, points: int) -> _Values:
    """The trigonometric polynomial through the values of a periodic axis, without the modes that `points` cannot hold.

    A mode of half the sampling rate stands for both its signs: it is halved when it gets a grid that tells them apart,
    and both are added when it comes onto one that does not.
    """
    old = values.shape[axis]
    modes = np.moveaxis(np.fft.rfft(values, axis=axis), axis, 0)[: points // 2 + 1].copy()
    nyquist = min(old, points)
    if nyquist % 2 == 0:
        modes[nyquist // 2] *= 0.5 if points > old else 2.0
    result: _Values = np.fft.irfft(np.moveaxis(modes, 0, axis), points, axis) * (points / old)
    return result
