"""The working format of the reference (DPOT, Hao et al. 2024): HDF5 files with one array `data`.

Either one file holds all trajectories of a split, (N, X, Y, T[, C]), as in `ns2d_1e-5_train.hdf5`, or each trajectory
has a file of its own, `train|test/data_{i}.hdf5`, (X, Y[, Z], T, C). The name of the file or of its folder says the
set and the split, and the set says what the channels are (see `dpot_sets`). A file of an unknown set has channels
`channel_0`, `channel_1`, ... (see `convert.rename`) and boundaries that are called open.

- Values are what the reference trains on, bit for bit: sets that it converts with x and y exchanged (FNO) keep that.
- A channel that is a mask becomes the mask: true where it is above one half.
- The extent is that of the published data; where it is not known, the unit square or cube stands.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipeline.config import ConvertConfig, Split
from data_pipeline.sources.array_header import array_header
from data_pipeline.sources.blocks import Block, BlockHeader, reading
from data_pipeline.sources.dpot_sets import MASK, DpotSet, dpot_set, parameters
from data_pipeline.sources.find import hdf5_files
from data_pipeline.sources.hdf5 import Hdf5Reader, open_hdf5
from data_pipeline.sources.layout import Header, Read
from data_pipeline.trajectory import Trajectory

_SUFFIXES = (".hdf5", ".h5")
_SPLITS: tuple[Split, ...] = ("train", "test")
_SCATTERED = re.compile(r"data_\d+$")
_DEPTH = 3
"""Folders below the path that are looked at."""


class Dpot:
    """See the head of this file."""

    title = "DPOT"
    expected = "*_{train,test}.hdf5 or {train,test}/data_*.hdf5 with one array 'data'"

    def files(self, path: Path) -> list[Path]:
        """See `Layout.files`; files of folders come after those beside them, in order of their numbers."""
        return _find(path, _DEPTH)

    def header(self, path: Path, config: ConvertConfig) -> Header:
        """See `Layout.header`."""
        facts, name = dpot_set(path)
        with open_hdf5(path) as reader:
            block = _block(reader, facts)
            header = array_header(
                reader,
                [block],
                boundary="open",
                equation=facts.equation if facts else "",
                dt=facts.dt if facts else nan,
                values=parameters(facts, name) if facts else {},
            )
            left_out = tuple(f"{key}: not a field of this layout" for key in reader.root if key != "data")
        axes = len(header.axes)
        kinds = facts.boundaries if facts else ("open",)
        return replace(
            header,
            channels=tuple(channel for channel in block.channels if channel != MASK),
            masked=MASK in block.channels,
            boundaries=kinds * axes if len(kinds) == 1 else kinds,
            extent=((facts.extent if facts else (0.0, 1.0)),) * axes,
            split=_split(path),
            left_out=left_out,
        )

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """See `Layout.open`."""
        assert isinstance(header, BlockHeader)
        channels = header.blocks[0].channels

        def with_mask(_: int, one: Trajectory) -> Trajectory:
            column = channels.index(MASK)
            return replace(one, fields=np.delete(one.fields, column, -1), mask=one.fields[0, ..., column] > 0.5)

        with open_hdf5(header.path) as reader:
            whole = replace(header, channels=channels)
            yield reading(reader, whole, with_mask) if header.masked else reading(reader, whole)


LAYOUT = Dpot()


def _find(path: Path, depth: int) -> list[Path]:
    files = hdf5_files(path, _SUFFIXES, _is_ours, r"data_\d+\.hdf5|(ns|sw|dr|pda|pdb|cdb).*(train|test)\.hdf5")
    try:
        folders = sorted(f for f in path.iterdir() if f.is_dir() and f.name[0] != ".") if path.is_dir() else []
    except OSError:
        return files
    # Training data first: folders and files are found in the order of their names.
    folders.sort(key=lambda folder: (folder.name == "test", folder.name))
    return files + [file for folder in folders if depth for file in _find(folder, depth - 1)]


def _is_ours(root: Any) -> bool:
    return list(root) == ["data"] and isinstance(root["data"], h5py.Dataset) and not root["data"].attrs.keys()


def _block(reader: Hdf5Reader, facts: DpotSet | None) -> Block:
    """The one array, its axes and its channels."""
    shape = reader.dataset("data").shape
    scattered = _SCATTERED.match(reader.path.stem) is not None
    known = ("xyt", "xytc", "xyztc") if scattered else ("bxyt", "bxytc", "bxyztc")
    axes = next((one for one in known if len(one) == len(shape)), None)
    if axes is None:
        expected = " or ".join(f"({', '.join(one.upper().replace('B', 'N'))})" for one in known)
        raise reader.error("wrong rank", "data", found=f"shape {shape}", expected=expected)
    count = shape[-1] if axes[-1] == "c" else 1
    channels = facts.channels if facts else tuple(f"channel_{number}" for number in range(count))
    if len(channels) != count:
        raise reader.error(
            "wrong number of channels",
            "data",
            found=f"{count} in shape {shape}",
            expected=f"{len(channels)}: {', '.join(channels)}",
            remedy="the file's name says which set it is: correct it, or describe the file with `layout: plain`",
        )
    return Block("data", axes, channels)


def _split(path: Path) -> Split | None:
    words = (path.absolute().parent.name,) if _SCATTERED.match(path.stem) else path.stem.split("_")
    return next((split for split in _SPLITS if split in words), None)
