"""A dataset as it is looked at: whatever its form, its trajectories one after another, a few frames at a time."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError, DataError, PdepotError
from data_pipeline.base.remote import is_url
from data_pipeline.config import SPLITS, ConvertConfig, DatasetConfig
from data_pipeline.sources.agreement import differing, disagreement, facts, unsettled
from data_pipeline.sources.files import MASK, FileSource, dataset_info
from data_pipeline.sources.layout import Header, Layout
from data_pipeline.sources.registry import known_layout, layout
from data_pipeline.sources.splits import assign, in_words
from data_pipeline.sources.the_well import TheWell
from data_pipeline.stores import open_store, read_manifest, verify
from data_pipeline.stores.manifest import MANIFEST
from data_pipeline.stores.protocol import TrajectoryStore, read_window
from data_pipeline.trajectory import DatasetInfo, Trajectory

_UNDIVIDED = "undivided"
_MASK = frozenset({MASK})
"""A mask that became a field is one everywhere where there is no obstacle."""
_NAMED = 10
"""Files that a note names of many."""
_EXPECTED = "a Zarr store, WebDataset shards, a dataset's configuration, or files in a published layout"
_STORES = {"zarr": "Zarr store", "shards": "WebDataset shards"}


@dataclass(frozen=True)
class Handle:
    """One trajectory that has not been read: `read(slice)` gives these frames, NaN and Inf let through.

    `info` is what is known of it; of files that are not one dataset, each has its own.
    """

    split: str
    where: str
    info: DatasetInfo
    read: Callable[[slice], Trajectory]


@dataclass
class Look:
    """What is known of a dataset before its fields are read; `info` is None where files are not one dataset."""

    layout: str
    info: DatasetInfo | None
    splits: Mapping[str, int]
    rule: str = ""
    """How trajectories are divided."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    zero_channels: frozenset[str] = frozenset()
    """Fields that may be constant."""


class Dataset(Protocol):
    """A dataset to look at."""

    look: Look

    def handles(self) -> Iterator[Handle]:
        """All trajectories; each is to be read before the next one is asked for."""
        ...

    def damage(self) -> list[str]:
        """Stored files that are not what their manifest says."""
        ...


def open_dataset(path: Path | str) -> Dataset:
    """A committed store, the configuration of a dataset to convert, or files in a published layout.

    Raises:
        DataError, ConfigError: there is nothing at `path`, or it is none of these.
    """
    if is_url(path):
        return _Stored(path)
    path = Path(path)
    if not path.exists():
        raise DataError("nothing there", file=path, expected=_EXPECTED)
    if path.is_dir() and (path / MANIFEST).exists():
        return _Stored(path)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return _Configured(load(DatasetConfig, path), path)
    return _Raw(path, layout(known_layout(path)))


class _Raw:
    """Files in a published layout; faulty ones are reported, and the rest is looked at."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path, self._layout = path, layout
        self._config = ConvertConfig(path=str(path), dt=None)
        faults: list[PdepotError] = []
        files = layout.files(path)
        found = [_header(file, layout, self._config, faults) for file in files]
        self._headers = [header for header in found if header is not None]
        splits = _counts(self._headers)
        self.look = Look(
            layout=layout.title,
            info=None,
            splits=splits,
            rule=_rule(self._headers),
            problems=[str(fault) for fault in faults],
            notes=_left_out(self._headers) + _other_files(path, files),
            zero_channels=frozenset(name for header in self._headers for name in header.zero_channels),
        )
        if self._headers:
            self._compare()
        if path.is_dir() and _UNDIVIDED not in splits:
            _note_empty_splits(self.look)

    def _compare(self) -> None:
        """See whether the files are one dataset, and what there is to say of it."""
        settled = self._config.model_copy(update={"frames": 1, "dt": 1.0})
        several = bool(differing(facts(self._headers, settled)))
        found = facts(self._headers, self._config)
        if several:
            self.look.problems.append(str(disagreement(self._headers, found)))
            return
        self.look.notes += unsettled(found)
        self.look.info = self._info(self._path.stem, self._headers)
        if self._headers[0].rule is not None:
            try:
                assign(self._headers, self._config)
            except ConfigError as error:
                self.look.notes.append(" ".join(str(error).split()))

    def _info(self, name: str, headers: Sequence[Header]) -> DatasetInfo:
        unknown = math.isnan(headers[0].dt)
        config = self._config.model_copy(update={"dt": 1.0 if unknown else None})
        found = dataset_info(name, self._layout.title, headers, config).model_copy(update={"source": ""})
        return found.model_copy(update={"dt": math.nan}) if unknown else found

    def handles(self) -> Iterator[Handle]:
        for header in self._headers:
            info = self._info(header.path.stem, [header])
            name = header.path.relative_to(self._path).as_posix() if header.path != self._path else header.path.name
            with self._layout.open(header, self._config) as read:
                for index in range(header.trajectories):
                    where = f"{name} trajectory {index}"
                    yield Handle(header.split or _UNDIVIDED, where, info, partial(read, index))

    def damage(self) -> list[str]:
        return []


def _counts(headers: Sequence[Header]) -> dict[str, int]:
    """Trajectories of each split that the layout knows, and of those without one."""
    counts: dict[str, int] = {}
    for header in headers:
        split = header.split or _UNDIVIDED
        counts[split] = counts.get(split, 0) + header.trajectories
    return {split: counts[split] for split in (*SPLITS, _UNDIVIDED) if split in counts}


def _rule(headers: Sequence[Header]) -> str:
    """By what rule the trajectories of files are divided, if nobody says another one."""
    if not headers:
        return ""
    if all(header.split is not None for header in headers):
        return "that of the files"
    rules = {header.rule for header in headers}
    if len(rules) > 1:
        return "not the same for all files: look at them one by one"
    (rule,) = rules
    return f"their publisher's: {in_words(rule)}" if rule else "none: give one as convert.splits"


def _left_out(headers: Sequence[Header]) -> list[str]:
    found = sorted({what for header in headers for what in header.left_out})
    return [f"not converted: {', '.join(found)}"] if found else []


def _other_files(path: Path, files: Sequence[Path]) -> list[str]:
    """What lies in a folder and holds no file of its layout."""
    if not path.is_dir() or path in files:
        return []
    taken = {file.relative_to(path).parts[0] for file in files}
    others = sorted(item.name for item in path.iterdir() if item.name not in taken and item.name[0] != ".")
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return [f"not of this layout, and not looked at: {', '.join(others[:_NAMED])}{more}"] if others else []


def _header(file: Path, layout: Layout, config: ConvertConfig, faults: list[PdepotError]) -> Header | None:
    if isinstance(layout, TheWell):
        of_file: list[DataError] = []
        header = layout.survey(file, of_file)
        faults.extend(of_file)
        return header
    try:
        return layout.header(file, config)
    except (DataError, ConfigError) as error:
        faults.append(error)
    try:  # with a time step that is made up: the rest is worth a look where only the time is wrong
        return replace(layout.header(file, config.model_copy(update={"dt": 1.0})), dt=math.nan)
    except (DataError, ConfigError):
        return None


class _Configured:
    """What a configuration makes of its files: chosen, divided, cut and named as they would be stored."""

    def __init__(self, config: DatasetConfig, path: Path) -> None:
        if config.convert is None:
            remedy = "use: pdepot data generate, and look at the store"
            raise ConfigError("a dataset that is still to be solved", file=path, key="generate", remedy=remedy)
        name = config.convert.layout or known_layout(Path(config.convert.path).expanduser())
        self._source = FileSource(config.name, config.convert, layout(name))
        splits = {split: count for split, count in self._source.splits.items() if count}
        rule = in_words(config.convert.splits) if config.convert.splits is not None else "that of the files"
        self.look = Look(layout(name).title, self._source.info, splits, rule, zero_channels=_MASK)
        _note_empty_splits(self.look)
        self._last: tuple[str, int] | None = None
        self._one: Trajectory | None = None

    def handles(self) -> Iterator[Handle]:
        info = self._source.info
        for split, count in self.look.splits.items():
            for number in range(count):
                read = partial(self._read, split, number)
                where = f"{split} trajectory {number}"
                yield Handle(split, where, info, read)

    def _read(self, split: str, number: int, frames: slice) -> Trajectory:
        if self._one is None or self._last != (split, number):  # the frames of one are asked for one after another
            self._one, self._last = None, (split, number)
            self._one = next(self._source.read(split, number, number + 1))
        return replace(self._one, fields=self._one.fields[frames], times=self._one.times[frames])

    def damage(self) -> list[str]:
        return []


class _Stored:
    """A committed store of this project: Zarr or WebDataset shards, here or behind a URL."""

    def __init__(self, path: Path | str) -> None:
        manifest = read_manifest(path)
        self._path = path
        self._stores: dict[str, TrajectoryStore] = {}
        counts = {str(name): one.trajectories for name, one in manifest.splits.items()}
        splits = {str(split): counts[split] for split in SPLITS if split in counts}
        self.look = Look(_STORES[manifest.kind], manifest.info, splits, zero_channels=_MASK)
        _note_empty_splits(self.look)
        if manifest.generation is not None:
            self.look.notes.append(manifest.generation.text())
        for split, count in splits.items():
            if not count:
                continue
            try:
                self._stores[split] = open_store(path, split)
            except DataError as error:
                self.look.problems.append(f"split {split} cannot be opened: {error}")

    def handles(self) -> Iterator[Handle]:
        for split, store in self._stores.items():
            for number in range(len(store)):
                where = f"{split} trajectory {number}"
                yield Handle(split, where, store.info, partial(_read_store, store, number))

    def damage(self) -> list[str]:
        return verify(self._path)


def _read_store(store: TrajectoryStore, number: int, frames: slice) -> Trajectory:
    start, stop, _ = frames.indices(store.info.frames)
    return Trajectory(
        fields=read_window(store, number, start, stop - start),
        times=store.info.dt * np.arange(start, stop, dtype=np.float64),
        parameters=store.parameters(number),
        static=store.static(number),
        mask=store.mask(number),
    )


def _note_empty_splits(look: Look) -> None:
    for split in SPLITS:
        if not look.splits.get(split):
            # Nothing can be measured without a test split; the others are a choice.
            (look.problems if split == "test" else look.notes).append(f"the {split} split is empty")
