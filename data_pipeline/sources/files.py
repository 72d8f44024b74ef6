"""Files of any published layout as a source of trajectories."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.base.errors import ConfigError, DataError, nearest
from data_pipeline.config import SPLITS, ConvertConfig, Split
from data_pipeline.sources.agreement import disagreement, facts
from data_pipeline.sources.layout import Header, Layout, Read
from data_pipeline.sources.registry import find_layout
from data_pipeline.sources.splits import Run, assign, in_words, stride, strided
from data_pipeline.trajectory import DatasetInfo, Trajectory

MASK = "mask"
"""Name of the mask among `convert.channels`."""


def chosen_files(layout: Layout, config: ConvertConfig) -> list[Path]:
    """The files of a dataset, in the order in which `convert.files` names them.

    Raises:
        DataError: there is nothing of this layout, or a name or pattern matches nothing.
    """
    path = Path(config.path).expanduser()
    if not path.exists():
        raise DataError("nothing there", file=path, expected=layout.expected)
    if config.plain is not None and config.plain.own_files:
        return [path]
    files = layout.files(path)
    if not files:
        found = sorted(item.name for item in path.iterdir())[:20] if path.is_dir() else "a file"
        other = find_layout(path)
        raise DataError(
            f"nothing in the layout of {layout.title}",
            file=path,
            found=found or "an empty folder",
            expected=layout.expected,
            remedy=f"this looks like `layout: {other}`" if other else None,
        )
    if not config.files:
        return files
    names = {file: file.relative_to(path).as_posix() for file in files}
    picked: list[Path] = []
    for pattern in config.files:
        matches = [file for file in files if fnmatch(names[file], pattern) and file not in picked]
        if not matches:
            remedy = nearest(pattern, list(names.values()))
            if config.layout is None:
                remedy += f" (if this is not {layout.title}, give convert.layout)"
            raise DataError(
                "no such file in the dataset", file=path, key="convert.files", found=pattern, remedy=remedy
            )
        picked += matches
    return picked


def dataset_info(name: str, title: str, headers: Sequence[Header], config: ConvertConfig) -> DatasetInfo:
    """What files that agree have in common; the extent is the smallest box that holds all their grids.

    Raises:
        ConfigError: the configuration asks for fields that are not there, or leaves open what the files do not say.
    """
    first = headers[0]
    extents = zip(*(header.extent for header in headers), strict=True)
    same_grid = all(header.coordinates == first.coordinates for header in headers)
    dt = config.every or (config.dt if config.dt is not None else first.dt) * config.stride
    if math.isnan(dt):
        raise ConfigError("the files do not say the time step", file=first.path, key="convert.dt", expected="a number")
    new = config.rename
    return DatasetInfo(
        name=name,
        channels=tuple(new.get(channel, channel) for channel in _channels(first, config)),
        space=first.space,
        frames=config.frames or strided(first, config),
        dt=dt if first.frames > 1 else 0.0,
        axes=first.axes,
        extent=config.extent or tuple((min(low for low, _ in axis), max(up for _, up in axis)) for axis in extents),
        coordinates=first.coordinates if same_grid and config.extent is None else (),
        boundaries=config.boundaries or first.boundaries,
        translation_invariant=config.translation_invariant,
        parameters=tuple(new.get(p, p) for p in dict.fromkeys((*first.parameters, *config.parameters))),
        static_channels=tuple(new.get(channel, channel) for channel in first.static_channels),
        masked=first.masked and MASK not in config.channels,
        equation=config.equation or first.equation,
        source=_source(first, title, config),
        licence=config.licence,
    )


def _source(header: Header, title: str, config: ConvertConfig) -> str:
    """Where the data come from, and by whose rule they are divided where nobody here said."""
    source = config.source or f"files in the layout of {title}"
    if header.rule is None or config.splits is not None:
        return source
    return f"{source}; split by their publisher's rule: {in_words(header.rule)}"


def _channels(header: Header, config: ConvertConfig) -> tuple[str, ...]:
    """The chosen fields, under their names in the files."""
    known = (*header.channels, MASK) if header.masked else header.channels
    for channel in config.channels:
        if channel not in known:
            remedy = nearest(channel, list(known))
            raise ConfigError("no such field", file=header.path, key="convert.channels", found=channel, remedy=remedy)
    for what, given in (("extent", config.extent), ("boundaries", config.boundaries)):
        if given is not None and len(given) != len(header.axes):
            expected = f"one entry for each of the axes {', '.join(header.axes)}"
            raise ConfigError("wrong length", file=header.path, key=f"convert.{what}", found=given, expected=expected)
    return config.channels or header.channels


class FileSource:
    """Trajectories of files in one layout, as `Source`.

    Args:
        name: the dataset's name in this project.
        config: where the files are and what is taken of them.
        layout: their layout.

    Raises:
        DataError: a file is not in the layout, is damaged, or files do not agree.
        ConfigError: the splits or what else is configured does not fit the files.
    """

    def __init__(self, name: str, config: ConvertConfig, layout: Layout) -> None:
        self._config, self._layout = config, layout
        self._path = Path(config.path).expanduser()
        headers = [layout.header(file, config) for file in chosen_files(layout, config)]
        error = disagreement(headers, facts(headers, config))
        if error is not None:
            raise error
        self._headers = headers
        self._fields = _channels(headers[0], config)
        self.info: DatasetInfo = dataset_info(name, layout.title, headers, config)
        self._runs: Mapping[Split, list[Run]] = assign(headers, config)
        self.splits: Mapping[str, int] = {split: sum(run.count for run in self._runs[split]) for split in SPLITS}

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
        return self._read(next(runs for name, runs in self._runs.items() if name == split), start, stop)

    def _read(self, runs: Sequence[Run], start: int, stop: int) -> Iterator[Trajectory]:
        for run, end in zip(runs, accumulate(run.count for run in runs), strict=True):
            first = end - run.count
            here = range(max(start, first) - first, min(stop, end) - first)
            if not here:
                continue
            with self._layout.open(run.header, self._config) as read:
                for number in here:
                    yield self._segment(read, run, run.first + number)

    def _segment(self, read: Read, run: Run, number: int) -> Trajectory:
        """Segment `number` of a file, with what the configuration changes about it."""
        config, frames = self._config, self.info.frames
        index, segment = divmod(number, run.segments)
        step = stride(run.header, config)
        start = segment * frames * step
        one = read(index, slice(start, min(start + frames * step, run.header.frames), step))
        missing = frames - len(one.fields)
        if missing:  # the last segment, with `remainder: repeat_last`
            later = one.times[-1] + self.info.dt * np.arange(1, missing + 1)
            times = np.concatenate([one.times, later]).astype(np.float64)
            one = replace(one, fields=np.concatenate([one.fields, one.fields[-1:].repeat(missing, 0)]), times=times)
        provenance = {"file": self._name(run.header.path), "index": index, **one.provenance}
        if run.segments > 1:
            provenance["first_frame"] = start
        self._check_finite(one, run.header, index, range(start, run.header.frames, step))
        return replace(self._configured(one, run.header), provenance=provenance)

    def _configured(self, one: Trajectory, header: Header) -> Trajectory:
        """Fields chosen and renamed, times and parameters replaced."""
        config, fields = self._config, one.fields
        if self._fields != header.channels:
            inside = None if one.mask is None else np.broadcast_to(one.mask, fields.shape[:-1]).astype(np.float32)
            columns = [inside if f == MASK else fields[..., header.channels.index(f)] for f in self._fields]
            fields = np.stack(columns, axis=-1)  # type: ignore[arg-type]  # a mask that is asked for is there
        times = one.times if config.dt is None else self.info.dt * np.arange(len(fields), dtype=np.float64)
        given = {**one.parameters, **config.parameters}
        parameters = {config.rename.get(name, name): value for name, value in given.items()}
        mask = None if MASK in self._fields else one.mask
        return replace(one, fields=fields, times=times, parameters=parameters, mask=mask)

    def _check_finite(self, one: Trajectory, header: Header, index: int, frames: range) -> None:
        static = None if one.static is None else one.static[None]
        for values, names in ((one.fields, header.channels), (static, header.static_channels)):
            if values is None or np.isfinite(values).all():
                continue
            bad = ~np.isfinite(values)
            frame, *_, channel = np.argwhere(bad)[0]
            first = f", first in frame {frames[frame]}" if values is one.fields else ""
            raise DataError(
                "NaN or Inf in a field",
                file=header.path,
                key=f"channel {names[channel]}, trajectory {index}",
                found=f"{int(bad.sum())} values{first}",
                expected="finite numbers, within the range of float32",
                remedy="leave the trajectory out, or mend the simulation",
            )

    def _name(self, file: Path) -> str:
        return file.relative_to(self._path).as_posix() if file != self._path else file.name

    def fingerprint(self) -> Any:
        """Name, size and time of change of every file."""
        files = [file for header in self._headers for file in header.content or (header.path,)]
        return [[self._name(file), *_size_and_time(file)] for file in files]


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError as error:
        raise DataError("file not found", file=file, found=error) from None
    return status.st_size, status.st_mtime_ns
