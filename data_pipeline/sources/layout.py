"""What a published layout gives: headers of its files, and frames of one trajectory at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_pipeline.config import ConvertConfig, Split, SplitRule
from data_pipeline.trajectory import Boundary, Trajectory


@dataclass(frozen=True)
class Header:
    """What one file says of its trajectories. Shapes and keys have been checked, no field has been read.

    Fields of one entry an axis are in the order of `axes`, as in `DatasetInfo`.

    Attributes:
        path: the file, or the folder of a trajectory that has several files.
        trajectories: how many the file holds.
        frames: frames in each; 1 for steady problems.
        dt: time between two frames; 0 for steady problems; NaN where the layout does not say.
        parameters: names of the PDE parameters of each trajectory.
        split: where the layout puts these trajectories; None where it has no splits.
        rule: how their publisher divides them, where the layout has no splits; `convert.splits` comes before it.
        content: the files whose size and time make up the fingerprint; `path` itself where there are none.
        left_out: what the file holds and this project does not take, in words.
        zero_channels: fields that are zero by definition, so that being constant is no fault.
    """

    path: Path
    trajectories: int
    frames: int
    channels: tuple[str, ...]
    axes: tuple[str, ...]
    space: tuple[int, ...]
    extent: tuple[tuple[float, float], ...]
    boundaries: tuple[Boundary, ...]
    dt: float
    coordinates: tuple[tuple[float, ...], ...] = ()
    static_channels: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    masked: bool = False
    split: Split | None = None
    rule: SplitRule | None = None
    equation: str = ""
    content: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()
    zero_channels: tuple[str, ...] = ()


Read = Callable[[int, slice], Trajectory]
"""Frames of trajectory number i: `read(i, slice(start, stop, step))`, and no more of the file than those. NaN and Inf
are let through, numbers beyond float32 become Inf. Raises DataError when bytes cannot be read."""


class Layout(Protocol):
    """One published layout."""

    title: str
    """Its name in print."""
    expected: str
    """Where its files lie and what they hold, in a line, for messages."""

    def files(self, path: Path) -> list[Path]:
        """The files (or folders of single trajectories) of this layout at a file or folder, sorted.

        None where `path` is something else; decided by names and keys, without reading fields. Never raises on damage.
        """
        ...

    def header(self, path: Path, config: ConvertConfig) -> Header:
        """The checked header of one of the `files`.

        Raises:
            DataError: a key is missing, has the wrong shape or type, or the file is damaged.
        """
        ...

    def open(self, header: Header, config: ConvertConfig) -> AbstractContextManager[Read]:
        """Open the file of a header for reading."""
        ...
