"""Trajectories that lie in arrays of a file, whose axes a layout knows: checked as a whole, read frame by frame."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipeline.sources.grids import Floats, Reader
from data_pipeline.sources.hdf5 import Hdf5Reader
from data_pipeline.sources.layout import Header, Read
from data_pipeline.trajectory import FloatArray, Trajectory

WORDS = {"b": "trajectories", "t": "time", "c": "components", "1": "1"}


@dataclass(frozen=True)
class Block:
    """An array that holds fields.

    Attributes:
        key: where it is; `*` stands for the group of the trajectory, where each has its own.
        axes: one letter an axis, in the array's order: b trajectory, t time, x y z space, c component, 1 an axis of
            length one. Spatial axes come out in the order x y z, whatever their order in the array.
        channels: names along c, or the one name.
        component: the one entry of c that is taken, where it is not all of them.
    """

    key: str
    axes: str
    channels: tuple[str, ...]
    component: int | None = None


@dataclass(frozen=True, eq=False)
class BlockHeader(Header):
    """A header, and where the fields are.

    Attributes:
        blocks: of the fields that change in time (or are the solution of a steady problem).
        static_blocks: of the static fields.
        shared_static: static fields that the file does not hold, the same for all trajectories, (*space, S); they come
            after those of the blocks.
        groups: group of each trajectory; empty where trajectories share arrays.
        times: (B, frames), or (1, frames) where all trajectories share them.
        values: value of each parameter for each trajectory, (B,).
        notes: what else the file says, for the provenance.
    """

    blocks: tuple[Block, ...] = ()
    static_blocks: tuple[Block, ...] = ()
    shared_static: FloatArray | None = None
    groups: tuple[str, ...] = ()
    times: Floats = field(default_factory=lambda: np.zeros((1, 1)))
    values: Mapping[str, Floats] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def channels(blocks: Sequence[Block]) -> tuple[str, ...]:
    """All channels of some blocks."""
    return tuple(channel for block in blocks for channel in block.channels)


def measure(reader: Reader, blocks: Sequence[Block], group: str = "") -> dict[str, int]:
    """Length of each axis by its letter, the same in all the blocks.

    Raises:
        DataError: an array is missing, has another number of axes, or does not fit the ones before it.
    """
    sizes: dict[str, int] = {"1": 1}
    for block in blocks:
        key = block.key.replace("*", group)
        dataset = reader.dataset(key)
        lengths = sizes | {"c": len(block.channels) if block.component is None else 0}
        # Zero stands for a length that is not known yet.
        expected = tuple(lengths.get(letter, 0) for letter in block.axes)
        shape = tuple(dataset.shape)
        fits = len(shape) == len(expected) and all(n > 0 and e in (n, 0) for n, e in zip(shape, expected, strict=True))
        fits = fits and (block.component is None or shape[block.axes.index("c")] > block.component)
        if not fits:
            axes = [
                f"{WORDS.get(a, a)}{f' {n}' if n and a != '1' else ''}"
                for a, n in zip(block.axes, expected, strict=True)
            ]
            raise reader.error(
                "wrong rank" if len(shape) != len(expected) else "the array does not fit the others, or the layout",
                key,
                found=f"shape {shape}",
                expected=f"shape ({', '.join(axes)})",
                remedy="bring the array into this shape, or describe it in a configuration with `layout: plain`",
            )
        if isinstance(reader, Hdf5Reader):  # the others see to it when they read
            reader.check_written(dataset, key)
        sizes |= {a: n for a, n in zip(block.axes, shape, strict=True) if a != "c"}
    return sizes


Finish = Callable[[int, Trajectory], Trajectory]
"""Adds to trajectory number i what a layout keeps elsewhere: parameters, times, a mask."""


def keep(_: int, one: Trajectory) -> Trajectory:
    """Adds nothing."""
    return one


def reading(reader: Reader, header: BlockHeader, finish: Finish = keep) -> Read:
    """Reads the trajectories of a header from its open file, no more of it than is asked for."""

    def read(index: int, frames: slice) -> Trajectory:
        count = len(range(*frames.indices(header.frames)))
        shape = (count, *header.space, len(header.channels))
        own = header.times[index if len(header.times) > 1 else 0]
        one = Trajectory(
            fields=_gather(reader, header, header.blocks, index, frames, shape),
            times=own[frames].astype(np.float64),
            parameters={name: float(values[index]) for name, values in header.values.items()},
            static=_static(reader, header, index),
            provenance=dict(header.notes),
        )
        return finish(index, one)

    return read


def _static(reader: Reader, header: BlockHeader, index: int) -> FloatArray | None:
    if not header.static_channels:
        return None
    shape = (*header.space, len(channels(header.static_blocks)))
    own = _gather(reader, header, header.static_blocks, index, slice(0, 1), shape)
    return own if header.shared_static is None else np.concatenate([own, header.shared_static], axis=-1)


def _gather(
    reader: Reader, header: BlockHeader, blocks: Sequence[Block], index: int, frames: slice, shape: tuple[int, ...]
) -> FloatArray:
    values, start = np.empty(shape, np.float32), 0
    for block in blocks:
        stop = start + len(block.channels)
        with np.errstate(over="ignore"):  # beyond float32 it becomes Inf, which is reported as such
            values[..., start:stop] = _read(reader, header, block, index, frames)
        start = stop
    return values


def _read(reader: Reader, header: BlockHeader, block: Block, index: int, frames: slice) -> Any:
    """A block of one trajectory, ([T,] *space, C), in the file's own dtype."""
    key = block.key.replace("*", header.groups[index] if header.groups else "")
    dataset = reader.dataset(key)
    if header.groups:
        lengths = dict(zip("xyz", header.space, strict=False)) | {"t": header.frames, "c": len(block.channels)}
        expected = tuple(lengths[letter] for letter in block.axes)
        if tuple(dataset.shape) != expected:
            raise reader.error("trajectories differ in shape", key, found=dataset.shape, expected=expected)
        if isinstance(reader, Hdf5Reader):
            reader.check_written(dataset, key)
    whole = slice(None)
    component = whole if block.component is None else block.component
    pick = {"b": index, "1": 0, "t": frames, "c": component}
    values = reader.slab(dataset, key, tuple(pick.get(letter, whole) for letter in block.axes))
    left = [letter for letter in block.axes if letter in "txyz" or (letter == "c" and block.component is None)]
    if "c" not in left:
        values, left = values[..., None], [*left, "c"]
    return values.transpose([left.index(letter) for letter in "txyzc" if letter in left])
