"""Arrays in files that say nothing of themselves (NPY, NPZ, MAT, HDF5, NetCDF, Zarr): a configuration does.

`convert.plain` names the arrays and their axes; space comes out in the order x, y, z, whatever the order in the file.
What the files cannot say must stand in the configuration: `convert.boundaries`; `convert.extent` where there are no
coordinates; `convert.dt` where there are no times. An array without the axis t is a steady solution; one without b
belongs to one trajectory, or, as a static field or a mask, to all of them.

The path is a file, or a folder of files that each hold all the arrays; where arrays have files of their own
(`file: velocity.npy`), it is the folder of those.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.config import ArrayConfig, ConvertConfig, PlainConfig
from data_pipeline.sources.arrays import SUFFIXES, Array, Arrays, open_arrays
from data_pipeline.sources.axes import parse_axes, split
from data_pipeline.sources.blocks import Block, BlockHeader, channels, keep, measure, reading
from data_pipeline.sources.find import natural
from data_pipeline.sources.grids import Grid, grid_of, uniform_times
from data_pipeline.sources.layout import Header, Read
from data_pipeline.sources.npy import Index
from data_pipeline.trajectory import Trajectory

_MASK = "mask"


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a configuration by their place in it (`fields.pressure`), as a `grids.Reader`.

    `axes` has one letter an axis, brackets opened.
    """

    path: Path
    axes: Mapping[str, str]
    opener: Callable[[str], Array]

    def error(self, problem: str, key: str | None = None, **details: Any) -> DataError:
        """A DataError that names the array's file and its key there."""
        array = self.opener(key) if key is not None and key in self.axes else None
        file, own = (array.path, array.key or key) if array is not None else (self.path, key)
        return DataError(problem, file=file, key=own, **details)

    def dataset(self, key: str) -> Array:
        """The array at a place, unread."""
        return self.opener(key)

    def slab(self, dataset: Any, key: str, index: Index) -> NDArray[Any]:
        """A part of an array."""
        values: NDArray[Any] = dataset.read(index)
        return values

    def numbers(self, key: str) -> NDArray[Any]:
        """A whole small array without its axes of length one, b first. Raises DataError when it holds NaN or Inf."""
        array, axes = self.opener(key), self.axes[key]
        if any(n != 1 for n, axis in zip(array.shape, axes, strict=True) if axis == "1"):
            raise self.error("an axis is not of length one", key, found=array.shape, expected=f"({', '.join(axes)})")
        values = array.read(tuple(0 if axis == "1" else slice(None) for axis in axes))
        if not np.isfinite(values).all():
            raise self.error("NaN or Inf", key, expected="finite numbers")
        return values.T if axes.replace("1", "") == "tb" else values


class Plain:
    """See the head of this file."""

    title = "plain arrays"
    expected = f"files with {', '.join(SUFFIXES)}"

    def files(self, path: Path) -> list[Path]:
        """See `Layout.files`; not asked where arrays have files of their own."""
        if path.is_file() or path.suffix == ".zarr":
            return [path]
        found = [item for item in path.iterdir() if item.suffix in SUFFIXES] if path.is_dir() else []
        return sorted((item for item in found if item.name[0] != "."), key=lambda item: natural(item.name))

    def header(self, path: Path, config: ConvertConfig) -> Header:
        """See `Layout.header`.

        Raises:
            ConfigError: the description contradicts itself, or leaves something out.
        """
        plain = _described(config)
        with _open(path, plain) as arrays:
            return _header(arrays, path, plain, config)

    @contextmanager
    def open(self, header: Header, config: ConvertConfig) -> Iterator[Read]:
        """See `Layout.open`."""
        assert isinstance(header, BlockHeader)
        with _open(header.path, _described(config)) as arrays:
            yield reading(arrays, header, partial(_masked, arrays, header) if header.masked else keep)


LAYOUT = Plain()


def _described(config: ConvertConfig) -> PlainConfig:
    assert config.plain is not None  # `ConvertConfig` sees to it
    return config.plain


@contextmanager
def _open(path: Path, plain: PlainConfig) -> Iterator[_Arrays]:
    places = plain.places
    if plain.own_files and (not path.is_dir() or any(array.file is None for array in places.values())):
        raise ConfigError(
            "arrays with files of their own, and others without",
            file=path,
            key="convert.plain",
            expected="a folder as convert.path, and a file for each array",
        )
    axes = {place: parse_axes(array.axes, f"convert.plain.{place}.axes") for place, array in places.items()}
    with ExitStack() as stack:

        @cache
        def file(name: str | None) -> Arrays:
            return stack.enter_context(open_arrays(path / name if name else path))

        @cache
        def opener(place: str) -> Array:
            array = places[place]
            return split(file(array.file).array(array.key), axes[place], plain.sizes)

        yield _Arrays(path, {place: "".join(own) for place, own in axes.items()}, opener)


def _header(arrays: _Arrays, path: Path, plain: PlainConfig, config: ConvertConfig) -> BlockHeader:
    fields, static = _blocks(arrays, "fields", plain.fields), _blocks(arrays, "static", plain.static)
    mask = [Block(_MASK, arrays.axes[_MASK], (_MASK,))] if plain.mask else []
    sizes = measure(arrays, [*fields, *static, *mask])
    letters = "".join(letter for letter in "txyz" if any(letter in field.axes for field in fields))
    _check_axes(arrays, fields, letters, "")
    _check_axes(arrays, [*static, *mask], letters.replace("t", ""), "t")
    axes, trajectories = letters.replace("t", ""), sizes.get("b", 1)
    if not axes:
        raise ConfigError(
            "fields without space", file=path, key="convert.plain.fields", expected="axes with x, y or z"
        )
    if config.boundaries is None or len(config.boundaries) != len(axes):
        expected, found = f"periodic, wall or open for each of {', '.join(axes)}", config.boundaries
        raise ConfigError(
            "the boundaries are not known", file=path, key="convert.boundaries", found=found, expected=expected
        )
    frames = sizes.get("t", 1)
    grid = _grid(arrays, plain, config, {axis: sizes[axis] for axis in axes})
    times, dt = _times(arrays, plain, config, frames)
    values = {name: _values(arrays, f"parameters.{name}", trajectories) for name in plain.parameters}
    return BlockHeader(
        path=path,
        trajectories=trajectories,
        frames=frames,
        channels=channels(fields),
        static_channels=channels(static),
        axes=tuple(axes),
        space=tuple(sizes[axis] for axis in axes),
        extent=grid.extent,
        coordinates=grid.coordinates,
        boundaries=config.boundaries,
        dt=dt,
        times=times,
        parameters=tuple(values),
        values=values,
        masked=bool(mask),
        content=_content(path, plain),
        blocks=tuple(fields),
        static_blocks=tuple(static),
    )


def _blocks(arrays: _Arrays, group: str, described: Mapping[str, ArrayConfig]) -> list[Block]:
    blocks = []
    for name, array in described.items():
        axes = arrays.axes[f"{group}.{name}"]
        if ("c" in axes) != bool(array.channels):
            raise ConfigError(
                "an axis c and its channels go together",
                key=f"convert.plain.{group}.{name}",
                found=f"axes {array.axes!r} and channels {list(array.channels)}",
                expected="a name for each entry along c; without c, the name of the array stands",
            )
        blocks.append(Block(f"{group}.{name}", axes, array.channels or (name,)))
    return blocks


def _check_axes(arrays: _Arrays, blocks: list[Block], needed: str, forbidden: str) -> None:
    for block in blocks:
        missing = [letter for letter in needed if letter not in block.axes]
        if missing or set(forbidden) & set(block.axes):
            raise ConfigError(
                "the arrays do not have the same axes",
                file=arrays.path,
                key=f"convert.plain.{block.key}.axes",
                found=" ".join(block.axes),
                expected=f"{', '.join(needed)}{' and no t' if forbidden else ''}, as in the other arrays",
                remedy="what does not change in time stands under `static`",
            )


def _grid(arrays: _Arrays, plain: PlainConfig, config: ConvertConfig, sizes: Mapping[str, int]) -> Grid:
    if plain.coordinates:
        if set(plain.coordinates) != set(sizes):
            raise ConfigError(
                "coordinates of some axes only",
                key="convert.plain.coordinates",
                found=", ".join(plain.coordinates),
                expected=", ".join(sizes),
            )
        assert config.boundaries is not None
        return grid_of(arrays, {f"coordinates.{axis}": n for axis, n in sizes.items()}, config.boundaries)
    if config.extent is None or len(config.extent) != len(sizes):
        raise ConfigError(
            "the extent of the domain is not known",
            file=arrays.path,
            key="convert.extent",
            found=config.extent,
            expected=f"lower and upper end along each of {', '.join(sizes)}, or plain.coordinates",
        )
    return Grid(config.extent, ())


def _times(
    arrays: _Arrays, plain: PlainConfig, config: ConvertConfig, frames: int
) -> tuple[NDArray[np.float64], float]:
    if plain.time is not None and frames > 1:
        return uniform_times(arrays, "time", frames, config)
    # Without a time step the configuration is refused later; until then times count frames.
    dt = 0.0 if frames == 1 else config.dt or float("nan")
    return np.arange(frames, dtype=np.float64)[None] * (1.0 if np.isnan(dt) else dt), dt


def _values(arrays: _Arrays, place: str, trajectories: int) -> NDArray[np.float64]:
    """A PDE parameter of each trajectory, (B,)."""
    values = arrays.numbers(place).astype(np.float64)
    if values.shape not in ((), (trajectories,)):
        expected = f"one number, or {trajectories} along b"
        raise arrays.error("wrong shape of a parameter", place, found=values.shape, expected=expected)
    return np.broadcast_to(values, (trajectories,)).copy()


def _content(path: Path, plain: PlainConfig) -> tuple[Path, ...]:
    """The files of a dataset; of a Zarr store all there are, since its folder's time says nothing of its chunks."""
    files = sorted({path / array.file if array.file else path for array in plain.places.values()})
    inside = [sorted(file.rglob("*")) if file.is_dir() else [file] for file in files]
    return tuple(item for items in inside for item in items if not item.is_dir())


def _masked(arrays: _Arrays, header: BlockHeader, index: int, one: Trajectory) -> Trajectory:
    """With the mask of trajectory `index`."""
    alone = replace(
        header, blocks=(Block(_MASK, arrays.axes[_MASK], (_MASK,)),), channels=(_MASK,), static_channels=(), frames=1
    )
    fields = reading(arrays, alone)(index, slice(0, 1)).fields
    return replace(one, mask=fields[0, ..., 0] != 0)
