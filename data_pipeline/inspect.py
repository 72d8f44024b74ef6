"""What a dataset holds and what is wrong with it, whatever its layout; every problem is found, not just the first."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError
from data_pipeline.base.progress import Progress
from data_pipeline.config import SPLITS, ConvertConfig
from data_pipeline.sources.hdf5 import open_hdf5
from data_pipeline.sources.the_well import dataset_info, disagreements, well_files
from data_pipeline.sources.well_header import SUFFIXES, Problems, WellHeader, read_header
from data_pipeline.sources.well_trajectory import read_trajectory
from data_pipeline.stores import open_store, read_manifest, verify
from data_pipeline.stores.manifest import MANIFEST
from data_pipeline.stores.protocol import TrajectoryStore, read_window
from data_pipeline.trajectory import DatasetInfo, FloatArray

_STORES = {"zarr": "Zarr store", "shards": "WebDataset shards"}
_EXPECTED = "a folder or an HDF5 file in The Well's layout, a Zarr store, or a folder of WebDataset shards"


@dataclass
class ChannelFigures:
    """Figures of one channel over all trajectories, frames and grid points; NaN and Inf are counted and left out."""

    name: str
    static: bool = False
    min: float = np.inf
    max: float = -np.inf
    mean: float = 0.0
    count: int = 0
    nan: int = 0
    inf: int = 0
    trajectories_with_gaps: int = 0
    first_gap: str = ""
    _squares: float = 0.0

    @property
    def std(self) -> float:
        """Standard deviation (population)."""
        return float(np.sqrt(self._squares / self.count)) if self.count else float("nan")

    def add(self, values: NDArray[np.float32], where: str) -> None:
        """Take in the values of one trajectory (T, *space), or (*space) for a static channel.

        Mean and squares are merged as in T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise
        algorithm for computing sample variances" (1979): no difference of large sums.
        """
        finite = np.isfinite(values)
        if not finite.all():
            self._add_gap(values, finite, where)
        good = values[finite].astype(np.float64)
        if not good.size:
            return
        mean, total = float(good.mean()), self.count + good.size
        delta = mean - self.mean
        self._squares += float(np.square(good - mean).sum()) + delta**2 * self.count * good.size / total
        self.mean += delta * good.size / total
        self.count = total
        self.min, self.max = min(self.min, float(good.min())), max(self.max, float(good.max()))

    def _add_gap(self, values: NDArray[np.float32], finite: NDArray[np.bool_], where: str) -> None:
        self.nan += int(np.isnan(values).sum())
        self.inf += int(np.isinf(values).sum())
        self.trajectories_with_gaps += 1
        if not self.first_gap:
            frame = "" if self.static else f", frame {int(np.argwhere(~finite)[0][0])}"
            self.first_gap = f"{where}{frame}"


@dataclass
class Report:
    """What a dataset holds, and its problems. `info` is None when not even its outline can be read."""

    path: Path
    layout: str
    info: DatasetInfo | None
    splits: Mapping[str, int]
    parameters: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest value of each PDE parameter."""
    channels: dict[str, ChannelFigures] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is worth knowing but not wrong."""

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def text(self) -> str:
        """The report for a terminal."""
        lines = [f"{self.path}", f"  layout      {self.layout}"]
        lines += _outline(self.info) if self.info is not None else []
        lines.append(f"  splits      {', '.join(f'{split} {count}' for split, count in self.splits.items())}")
        for name, (low, high) in self.parameters.items():
            lines.append(f"  parameter   {name} = {low:g}" + (f" .. {high:g}" if high > low else ""))
        if self.channels:
            lines.append(f"  {'channel':<24}{'min':>12}{'max':>12}{'mean':>12}{'std':>12}")
        for one in self.channels.values():
            name = f"{one.name} (static)" if one.static else one.name
            lines.append(f"  {name:<24}{one.min:>12.4g}{one.max:>12.4g}{one.mean:>12.4g}{one.std:>12.4g}")
        lines += [f"  note: {note}" for note in self.notes]
        if self.ok:
            return "\n".join([*lines, "no problems found"])
        plural = "problem" if len(self.problems) == 1 else "problems"
        return "\n".join([*lines, f"{len(self.problems)} {plural}:", *(f"- {problem}" for problem in self.problems)])


def validate(path: Path) -> Report:
    """Read a whole dataset and report everything that is wrong with it, digests of stored files included.

    Args:
        path: a folder or an HDF5 file in The Well's layout, a canonical Zarr store, or a folder of WebDataset shards.

    Raises:
        DataError: there is nothing at `path`, or it is none of these.
    """
    dataset = _open(path)
    report = _scan(dataset, path)
    report.problems[:0] = dataset.damage()
    return report


def info(path: Path, picture: Path | None = None) -> Report:
    """Describe a dataset, and draw its first trajectory into the PNG file `picture`.

    Raises:
        DataError: there is nothing at `path`, it is no dataset, or a picture is asked for and no trajectory is whole.
    """
    dataset = _open(path)
    report = _scan(dataset, path)
    if picture is not None:
        # Deferred: matplotlib takes a second to import, and only pictures need it.
        from data_pipeline.picture import draw_trajectory

        outline, first = report.info, next((r for r in dataset.records() if isinstance(r, _Record)), None)
        if outline is None or first is None:
            raise DataError("no trajectory to draw", file=path, found="; ".join(report.problems) or "an empty dataset")
        draw_trajectory(first.fields, outline, picture)
    return report


@dataclass(frozen=True)
class _Record:
    """One trajectory, wherever it came from."""

    split: str
    where: str
    fields: FloatArray
    parameters: Mapping[str, float]
    static: FloatArray | None
    channels: tuple[str, ...]
    static_channels: tuple[str, ...]


class _Dataset(Protocol):
    """What the scan needs of a layout."""

    layout: str
    info: DatasetInfo | None
    splits: Mapping[str, int]
    problems: list[str]
    notes: list[str]
    zero_channels: frozenset[str]

    def records(self) -> Iterator[_Record | DataError]:
        """All trajectories, one at a time; an error in the place of one that cannot be read."""
        ...

    def damage(self) -> list[str]:
        """Stored files that are not what their manifest says."""
        ...


def _open(path: Path) -> _Dataset:
    if not path.exists():
        raise DataError("nothing there", file=path, expected=_EXPECTED)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError("not a dataset", file=path, found=f"a file {path.suffix!r}", expected=_EXPECTED)
        split = path.parent.name if path.parent.name in SPLITS else "file"
        return _Well(path, {split: [path]})
    files = well_files(path)
    if any(files.values()):
        return _Well(path, files)
    if not (path / MANIFEST).exists():
        names = sorted(item.name for item in path.iterdir())[:20]
        raise DataError("not a dataset", file=path, found=names or "an empty folder", expected=_EXPECTED)
    return _Stored(path)


class _Well:
    """Files in The Well's layout; faulty files and fields are reported, and the rest is looked at."""

    def __init__(self, path: Path, files: Mapping[str, list[Path]]) -> None:
        faults = Problems()
        read = {split: [read_header(file, faults) for file in files[split]] for split in files}
        self._headers: dict[str, list[WellHeader]] = {s: [h for h in read[s] if h is not None] for s in read}
        headers = [header for split in self._headers.values() for header in split]
        for other in headers[1:]:
            faults.extend(disagreements(headers[0], other))
        self.layout = "The Well"
        name = headers[0].dataset_name if headers else path.stem
        config = ConvertConfig(layout="the_well", path=str(path))
        self.info = dataset_info(name, headers, config) if headers else None
        self.splits: Mapping[str, int] = {
            split: sum(header.trajectories for header in self._headers[split]) for split in files
        }
        self.problems = [str(fault) for fault in faults]
        self.notes = sorted({f"not converted: {what}" for header in headers for what in header.left_out})
        self.zero_channels = frozenset(name for h in headers for one in h.fields for name in one.zero_channels)
        if path.is_dir():
            _note_empty_splits(self.splits, self.problems, self.notes)

    def records(self) -> Iterator[_Record | DataError]:
        for split, headers in self._headers.items():
            for header in headers:
                yield from self._records_of(split, header)

    def _records_of(self, split: str, header: WellHeader) -> Iterator[_Record | DataError]:
        with open_hdf5(header.path) as reader:
            for index in range(header.trajectories):
                try:
                    one = read_trajectory(reader, header, index, finite=False)
                except DataError as error:
                    yield error
                    continue
                where = f"{split}/{header.path.name} trajectory {index}"
                names = (header.channels, header.static_channels)
                yield _Record(split, where, one.fields, one.parameters, one.static, *names)

    def damage(self) -> list[str]:
        return []


class _Stored:
    """A committed store of this project: Zarr or WebDataset shards."""

    def __init__(self, path: Path) -> None:
        manifest = read_manifest(path)
        self._path = path
        self._stores: dict[str, TrajectoryStore] = {}
        self.layout = _STORES[manifest.kind]
        self.info: DatasetInfo | None = manifest.info
        counts: Mapping[str, int] = {str(name): one.trajectories for name, one in manifest.splits.items()}
        self.splits: Mapping[str, int] = {split: counts[split] for split in SPLITS if split in counts}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.zero_channels: frozenset[str] = frozenset()
        _note_empty_splits(self.splits, self.problems, self.notes)
        for split, count in self.splits.items():
            if not count:
                continue
            try:
                self._stores[split] = open_store(path, split)
            except DataError as error:
                self.problems.append(f"split {split} cannot be opened: {error}")

    def records(self) -> Iterator[_Record | DataError]:
        for split, store in self._stores.items():
            for number in range(len(store)):
                try:
                    fields = read_window(store, number, 0, store.info.frames)
                except DataError as error:
                    yield error
                    continue
                where, names = f"{split} trajectory {number}", store.info.channels
                yield _Record(split, where, fields, store.parameters(number), None, names, ())

    def damage(self) -> list[str]:
        return verify(self._path)


def _note_empty_splits(splits: Mapping[str, int], problems: list[str], notes: list[str]) -> None:
    for split in SPLITS:
        if not splits.get(split):
            # Nothing can be measured without a test split; the others are a choice.
            (problems if split == "test" else notes).append(f"the {split} split is empty")


def _scan(dataset: _Dataset, path: Path) -> Report:
    """Read every trajectory once."""
    report = Report(path, dataset.layout, dataset.info, dataset.splits)
    report.problems, report.notes = list(dataset.problems), list(dataset.notes)
    seen: dict[bytes, tuple[str, str]] = {}
    with Progress(f"reading {path.name}", sum(dataset.splits.values()), unit="trajectories") as progress:
        for record in dataset.records():
            if isinstance(record, DataError):
                report.problems.append(str(record))
            else:
                _add_record(report, record)
                _check_duplicate(report, record, seen)
            progress.advance()
    for figures in report.channels.values():
        _judge(report, figures, dataset.zero_channels)
    return report


def _add_record(report: Report, record: _Record) -> None:
    for number, name in enumerate(record.channels):
        report.channels.setdefault(name, ChannelFigures(name)).add(record.fields[..., number], record.where)
    for number, name in enumerate(record.static_channels):
        assert record.static is not None
        figures = report.channels.setdefault(name, ChannelFigures(name, static=True))
        figures.add(record.static[..., number], record.where)
    for name, value in record.parameters.items():
        low, high = report.parameters.get(name, (value, value))
        report.parameters[name] = (min(low, value), max(high, value))


def _check_duplicate(report: Report, record: _Record, seen: dict[bytes, tuple[str, str]]) -> None:
    digest = hashlib.sha256(np.ascontiguousarray(record.fields).data).digest()
    split, where = seen.setdefault(digest, (record.split, record.where))
    if where == record.where:
        return
    leak = f" (a leak from {split} into {record.split})" if split != record.split else ""
    report.problems.append(f"duplicate trajectories{leak}: {where} and {record.where} are equal")


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


def _outline(info: DatasetInfo) -> list[str]:
    domain = " x ".join(
        f"{axis} [{low:g}, {high:g}]" for axis, (low, high) in zip(info.axes, info.extent, strict=True)
    )
    boundaries = ", ".join(f"{axis} {kind}" for axis, kind in zip(info.axes, info.boundaries, strict=True))
    lines = [
        f"  name        {info.name}",
        f"  grid        {' x '.join(str(size) for size in info.space)} on {domain}",
        f"  boundaries  {boundaries}",
        f"  frames      {info.frames}, dt {info.dt:g}",
        f"  channels    {', '.join(info.channels)}",
    ]
    if info.static_channels:
        lines.append(f"  static      {', '.join(info.static_channels)}")
    about = {"equation": info.equation, "source": info.source, "licence": info.licence}
    return lines + [f"  {key:<12}{value}" for key, value in about.items() if value]
