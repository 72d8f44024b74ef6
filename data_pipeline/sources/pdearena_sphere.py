"""PDEArena's shallow water on the sphere (SpeedyWeather): NetCDF files of single runs, and Zarr groups made of them.

`{train,valid,test}/seed=*/run*/output.nc` holds one run (time, lev, lat, lon), `{train,valid,test}.zarr` all of a
split (trajectory, time, lev, lat, lon). Where a split has both, the Zarr group is read. NetCDF may be classic or
version 4.

Choices:

- Channels are velocity_x (eastward), velocity_y (northward), divergence, vorticity, pressure. There is one level.
- Axes are (lat, lon), in degrees; longitude is periodic, and latitude open, as in The Well.
- Time is in the unit of the files' coordinate `time`; where there is none, `convert.dt` is needed.
- `normstats.pt` (the publisher's statistics) is not read.
"""

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from data_pipeline.config import SPLITS, ConvertConfig, Split
from data_pipeline.sources import names
from data_pipeline.sources.arrays import Arrays, open_arrays
from data_pipeline.sources.blocks import Block, BlockHeader, channels, measure
from data_pipeline.sources.find import natural
from data_pipeline.sources.grids import uniform_times

_RUN = "output.nc"
_LEVELS = {
    "u": names.VELOCITY[0], "v": names.VELOCITY[1], "div": names.DIVERGENCE, "vor": names.VORTICITY
}  # fmt: skip
_METADATA = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata", "*/zarr.json", "*/.zarray", "*/.zattrs")
_EXTENT = {"lat": (-90.0, 90.0), "lon": (0.0, 360.0)}


def is_sphere(path: Path) -> bool:
    """Whether a path that `files` gave, or a sibling layout did, is one of these."""
    return path.suffix in (".nc", ".zarr")


def opened(path: Path) -> AbstractContextManager[Arrays]:
    """The arrays of a file or Zarr group. Raises DataError when it cannot be opened."""
    return open_arrays(path)


def files(path: Path) -> list[Path]:
    """The Zarr groups and runs at a path: one of them, a split's folder, or a folder of splits."""
    if (path.name == _RUN and path.is_file()) or _is_group(path):
        return [path]
    found = _runs(path)
    for split in SPLITS:
        group = path / f"{split}.zarr"
        found += [group] if _is_group(group) else _runs(path / split)
    return found


def _is_group(path: Path) -> bool:
    return path.suffix == ".zarr" and all((path / key).is_dir() for key in ("u", "vor"))


def _runs(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"seed=*/run*/{_RUN}"), key=lambda file: natural(file.as_posix()))


def _split(path: Path) -> Split | None:
    name = path.stem if path.suffix == ".zarr" else path.parents[2].name
    return next((split for split in SPLITS if split == name), None)


def header(path: Path, config: ConvertConfig) -> BlockHeader:
    """The checked header of a run or of a Zarr group. Raises DataError."""
    lead = "bt" if path.suffix == ".zarr" else "t"
    blocks = (
        *(Block(key, f"{lead}1xy", (channel,)) for key, channel in _LEVELS.items()),
        Block("pres", f"{lead}xy", (names.PRESSURE,)),
    )
    with opened(path) as reader:
        sizes = measure(reader, blocks)
        space = (sizes["x"], sizes["y"])
        if "time" in reader.keys or config.dt is not None:
            times, dt = uniform_times(reader, "time", sizes["t"], config)
        else:
            times, dt = np.arange(sizes["t"], dtype=np.float64)[None], float("nan")  # frames: nobody says
        taken = {block.key for block in blocks} | {"time", "lev", *_EXTENT}
        return BlockHeader(
            path=path,
            trajectories=sizes.get("b", 1),
            frames=sizes["t"],
            channels=channels(blocks),
            axes=("lat", "lon"),
            space=space,
            extent=tuple(_EXTENT.values()),
            coordinates=_coordinates(reader, space),
            boundaries=("open", "periodic"),
            dt=dt,
            split=_split(path),
            equation="shallow water on the rotating sphere, in vorticity and divergence",
            blocks=blocks,
            times=times,
            content=_content(path),
            left_out=tuple(f"array {key!r}" for key in reader.keys if key not in taken),
        )


def _coordinates(reader: Arrays, space: tuple[int, int]) -> tuple[tuple[float, ...], ...]:
    """Latitudes and longitudes, where the file has them."""
    if not set(_EXTENT) <= set(reader.keys):
        return ()
    points = []
    for key, size in zip(_EXTENT, space, strict=True):
        values = reader.numbers(key)
        if values.shape != (size,):
            raise reader.error("wrong shape of a coordinate", key, found=values.shape, expected=(size,))
        points.append(tuple(float(value) for value in values))
    return tuple(points)


def _content(path: Path) -> tuple[Path, ...]:
    """The metadata of a Zarr group, whose folder does not change when they do."""
    return tuple(sorted(file for pattern in _METADATA for file in path.glob(pattern))) if path.is_dir() else ()
