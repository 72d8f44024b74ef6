"""What a dataset holds and what is wrong with it, whatever its layout; every problem is found, not just the first."""

import hashlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.base.progress import Progress
from data_pipeline.figures import ChannelFigures, Report
from data_pipeline.look import Dataset, Handle, open_dataset
from data_pipeline.trajectory import Trajectory

__all__ = ["ChannelFigures", "Report", "info", "validate"]

_CHUNK = 64 * 2**20
"""Bytes of fields that are held at a time."""


def validate(path: Path | str) -> Report:
    """Read a whole dataset and report everything that is wrong with it, digests of stored files included.

    Args:
        path: files in a published layout, the configuration of a dataset to convert, a canonical Zarr store or a
            folder of WebDataset shards, or the URL of one of these two.

    Raises:
        DataError: there is nothing at `path`, or it is none of these.
    """
    dataset = open_dataset(path)
    report = _scan(dataset, path)
    report.problems[:0] = dataset.damage()
    return report


def info(path: Path | str, picture: Path | None = None) -> Report:
    """Describe a dataset, and draw its first trajectory into the PNG file `picture`.

    Raises:
        DataError: there is nothing at `path`, it is no dataset, or a picture is asked for and no trajectory is whole.
        ConfigError: `picture` is a folder.
    """
    if picture is not None and picture.is_dir():  # before the work, not after it
        raise ConfigError("a picture is a file", key="--picture", found=f"the folder {picture}", expected="a PNG file")
    dataset = open_dataset(path)
    report = _scan(dataset, path)
    if picture is not None:
        _draw(dataset, report, picture)
    return report


def _draw(dataset: Dataset, report: Report, picture: Path) -> None:
    # Deferred: matplotlib takes a second to import, and only pictures need it.
    from data_pipeline.picture import draw_trajectory, drawn_frames

    for handle in dataset.handles():
        try:
            numbers = drawn_frames(handle.info.frames)
            parts = [handle.read(slice(number, number + 1)) for number in numbers]
        except DataError:
            continue
        fields = np.concatenate([part.fields for part in parts])
        draw_trajectory(
            fields, numbers, report.info or handle.info, picture, static=parts[0].static, mask=parts[0].mask
        )
        return
    found = "; ".join(report.problems) or "an empty dataset"
    raise DataError("no trajectory to draw", file=report.path, found=found)


def _scan(dataset: Dataset, path: Path | str) -> Report:
    """Read every trajectory once."""
    look = dataset.look
    report = Report(path, look.layout, look.info, look.splits, look.rule)
    report.problems, report.notes = list(look.problems), list(look.notes)
    seen: dict[bytes, tuple[str, str]] = {}
    with Progress(f"reading {Path(path).name}", sum(look.splits.values()), unit="trajectories") as progress:
        for handle in dataset.handles():
            try:
                digest = _add_trajectory(report, handle)
            except DataError as error:
                report.problems.append(str(error))
            else:
                _check_duplicate(report, handle, digest, seen)
            progress.advance()
    for figures in report.channels.values():
        _judge(report, figures, look.zero_channels)
    return report


def _add_trajectory(report: Report, handle: Handle) -> bytes:
    """Take in one trajectory, some frames at a time; returns the digest of its fields."""
    digest = hashlib.sha256()
    last = -np.inf
    for start, part in _parts(handle):
        digest.update(np.ascontiguousarray(part.fields).data)
        for number, name in enumerate(handle.info.channels):
            _figures(report, name).add(part.fields[..., number], handle.where, start)
        if not (np.diff(part.times, prepend=last) > 0).all():
            report.problems.append(f"time does not increase in {handle.where}, from frame {start} on")
        last = float(part.times[-1]) if len(part.times) else last
        if start == 0:
            _add_unchanging(report, handle, part, digest)
    return digest.digest()


def _parts(handle: Handle) -> Iterator[tuple[int, Trajectory]]:
    info = handle.info
    step = max(1, _CHUNK // (4 * prod(info.space) * len(info.channels)))
    for start in range(0, info.frames, step):
        yield start, handle.read(slice(start, min(start + step, info.frames)))


def _add_unchanging(report: Report, handle: Handle, part: Trajectory, digest: Any) -> None:
    if part.static is not None:
        # In a steady problem two inputs may have one solution.
        digest.update(np.ascontiguousarray(part.static).data)
        for number, name in enumerate(handle.info.static_channels):
            _figures(report, name, static=True).add(part.static[..., number], handle.where)
    if part.mask is not None and not part.mask.any():
        report.problems.append(f"no point belongs to the domain in {handle.where}: the mask is empty")
    for name, value in part.parameters.items():
        low, high = report.parameters.get(name, (value, value))
        report.parameters[name] = (min(low, value), max(high, value))


def _figures(report: Report, name: str, *, static: bool = False) -> ChannelFigures:
    return report.channels.setdefault(name, ChannelFigures(name, static=static))


def _check_duplicate(report: Report, handle: Handle, digest: bytes, seen: dict[bytes, tuple[str, str]]) -> None:
    split, where = seen.setdefault(digest, (handle.split, handle.where))
    if where == handle.where:
        return
    leak = f" (a leak from {split} into {handle.split})" if split != handle.split else ""
    report.problems.append(f"duplicate trajectories{leak}: {where} and {handle.where} are equal")


def _judge(report: Report, figures: ChannelFigures, zero_channels: frozenset[str]) -> None:
    if figures.nan or figures.inf:
        report.problems.append(
            f"NaN or Inf in channel {figures.name}: {figures.nan} NaN and {figures.inf} Inf in "
            f"{figures.trajectories_with_gaps} trajectories, first in {figures.first_gap}"
        )
    if figures.count and figures.min == figures.max:
        message = f"channel {figures.name} is constant: {figures.min:g} everywhere"
        expected = figures.static or figures.name in zero_channels
        (report.notes if expected else report.problems).append(message)
