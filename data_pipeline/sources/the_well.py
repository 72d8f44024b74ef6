"""A dataset folder in The Well's layout as a source of trajectories."""

from collections.abc import Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import DataError, nearest
from data_pipeline.config import SPLITS, ConvertConfig
from data_pipeline.sources.hdf5 import open_hdf5
from data_pipeline.sources.well_header import SUFFIXES, Problems, WellHeader, read_header
from data_pipeline.sources.well_trajectory import read_trajectory
from data_pipeline.trajectory import DatasetInfo, Trajectory

_DT_TOLERANCE = 1e-3
"""Relative difference of the time step between two files of a dataset that is taken for rounding."""
_EXPECTED = "data/{train,valid,test}/*.hdf5 or *.h5, or train, valid and test folders with such files"


def well_files(path: Path) -> dict[str, list[Path]]:
    """The HDF5 files of each split in sorted order; all empty where there are none.

    Args:
        path: the dataset's folder, its `data` folder, or a folder that holds train, valid and test.
    """
    inner = {split: _hdf5_files(path / "data" / split) for split in SPLITS}
    return inner if any(inner.values()) else {split: _hdf5_files(path / split) for split in SPLITS}


def _hdf5_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    # Hidden files are what copying tools leave behind.
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file() and f.name[0] != ".")


def disagreements(first: WellHeader, other: WellHeader) -> list[DataError]:
    """What keeps two files from being one dataset."""
    errors = []
    for what in ("channels", "static_channels", "axes", "space", "frames", "boundaries"):
        ours, theirs = getattr(first, what), getattr(other, what)
        if ours != theirs:
            errors.append(_disagreement(first, other, what, ours, theirs))
    if set(first.parameters) != set(other.parameters):
        errors.append(_disagreement(first, other, "parameters", sorted(first.parameters), sorted(other.parameters)))
    if abs(first.dt - other.dt) > _DT_TOLERANCE * first.dt:
        errors.append(_disagreement(first, other, "time step", first.dt, other.dt))
    return errors


def _disagreement(first: WellHeader, other: WellHeader, what: str, ours: Any, theirs: Any) -> DataError:
    return DataError(
        f"files of one dataset differ in {what.replace('_', ' ')}",
        file=other.path,
        key=what,
        found=theirs,
        expected=f"{ours}, as in {first.path}",
        remedy="convert them as separate datasets",
    )


def dataset_info(name: str, headers: list[WellHeader], config: ConvertConfig) -> DatasetInfo:
    """What files that agree have in common; the extent is the smallest box that holds all their grids."""
    first = headers[0]
    extents = [header.extent for header in headers]
    return DatasetInfo(
        name=name,
        channels=first.channels,
        space=first.space,
        frames=first.frames,
        dt=first.dt,
        axes=first.axes,
        extent=tuple((min(low for low, _ in axis), max(up for _, up in axis)) for axis in zip(*extents, strict=True)),
        boundaries=first.boundaries,
        translation_invariant=config.translation_invariant,
        parameters=tuple(first.parameters),
        static_channels=first.static_channels,
        equation=config.equation,
        source=config.source or f"{first.dataset_name}, files in The Well's layout",
        licence=config.licence,
    )


class TheWellSource:
    """Trajectories of a folder in The Well's layout; the files of a split follow one another in sorted order.

    Args:
        name: the dataset's name in this project.
        config: where the files are, and how many trajectories of each split to take. A limit above what a split
            holds takes all of it; a split without files has no trajectories.

    Raises:
        DataError: the folder or a file is not in the layout, is damaged, or files do not agree.
    """

    def __init__(self, name: str, config: ConvertConfig) -> None:
        self._path = Path(config.path).expanduser()
        self._headers = _read_headers(self._path)
        self.info: DatasetInfo = dataset_info(name, [h for headers in self._headers.values() for h in headers], config)
        counts = {split: sum(h.trajectories for h in headers) for split, headers in self._headers.items()}
        limits: Mapping[str, int] = {str(split): count for split, count in config.limit.items()}
        self.splits: Mapping[str, int] = {s: min(count, limits.get(s, count)) for s, count in counts.items()}

    def read(self, split: str, start: int, stop: int) -> Iterator[Trajectory]:
        """Trajectories start .. stop of a split, each read when it is asked for.

        Raises:
            DataError: no such split or trajectory; bytes cannot be read; a field holds NaN or Inf.
        """
        if split not in self.splits:
            raise DataError("no such split", file=self._path, found=split, remedy=nearest(split, list(SPLITS)))
        if not 0 <= start <= stop <= self.splits[split]:
            raise DataError(
                "no such trajectories",
                file=self._path,
                key=split,
                found=f"{start} .. {stop}",
                expected=f"a range within 0 .. {self.splits[split]}",
            )
        return self._read(split, start, stop)

    def _read(self, split: str, start: int, stop: int) -> Iterator[Trajectory]:
        headers = self._headers[split]
        ends = list(accumulate(header.trajectories for header in headers))
        for header, end in zip(headers, ends, strict=True):
            first = end - header.trajectories
            here = range(max(start, first) - first, min(stop, end) - first)
            if not here:
                continue
            with open_hdf5(header.path) as reader:
                for index in here:
                    yield read_trajectory(reader, header, index)

    def fingerprint(self) -> Any:
        """Name, size and time of change of every file."""
        files = [header.path for headers in self._headers.values() for header in headers]
        return [[file.relative_to(self._path).as_posix(), *_size_and_time(file)] for file in files]


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise DataError("file not found", file=file, found=error) from None
    return status.st_size, status.st_mtime_ns


def _read_headers(path: Path) -> dict[str, list[WellHeader]]:
    """Headers of the files of each split, checked alone and against each other."""
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise DataError("no such dataset folder", file=path, found=found, expected=_EXPECTED)
    files = well_files(path)
    if not any(files.values()):
        names = sorted(item.name for item in path.iterdir())[:20]
        raise DataError("no dataset in The Well's layout", file=path, found=names or "nothing", expected=_EXPECTED)
    problems = Problems()
    headers = {split: [read_header(file, problems) for file in files[split]] for split in SPLITS}
    whole = {split: [header for header in headers[split] if header is not None] for split in SPLITS}
    everything = [header for split in SPLITS for header in whole[split]]
    for other in everything[1:]:
        problems.extend(disagreements(everything[0], other))
    if problems:
        raise problems[0]
    return whole
