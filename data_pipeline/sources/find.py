"""Finding the HDF5 files of a layout by what is in them: several layouts share names and extensions."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py

from data_pipeline.sources.hdf5 import DAMAGE


def natural(name: str) -> list[str | int]:
    """A key that sorts `velocity_10` after `velocity_2`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def by_suffix(path: Path, suffixes: Iterable[str]) -> list[Path]:
    """The file itself, or the files of a folder (not of folders in it), with one of the suffixes, in natural order.

    Hidden files are left out: copying tools leave them behind.
    """
    try:
        files = sorted(path.iterdir(), key=lambda file: natural(file.name)) if path.is_dir() else [path]
        return [f for f in files if f.suffix.lower() in suffixes and f.name[0] != "." and f.is_file()]
    except OSError:
        return []


def hdf5_files(path: Path, suffixes: Iterable[str], ours: Callable[[Any], bool], name: str) -> list[Path]:
    """The HDF5 files at a file or folder whose keys are those of a layout.

    Args:
        path: a file or folder.
        suffixes: their extensions, in lower case.
        ours: says from the root of an open file whether it is of the layout.
        name: regular expression of the layout's file names. A file that cannot be opened is told by it, or by its
            company: left out here, it would be missing from the dataset without a word.
    """
    verdicts = {file: _judge(file, ours) for file in by_suffix(path, suffixes)}
    company = any(verdicts.values())
    return [f for f, ok in verdicts.items() if ok or (ok is None and (company or re.search(name, f.name)))]


def _judge(file: Path, ours: Callable[[Any], bool]) -> bool | None:
    try:
        with h5py.File(file, "r") as root:
            return ours(root)
    except (*DAMAGE, AttributeError):
        return None
