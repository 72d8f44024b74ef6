"""Which arrays a canonical store has, how each is cut into files, and what the files are called."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipeline.trajectory import DatasetInfo


class ArraySpec(NamedTuple):
    """One array of a split: its shape without the trajectories' axis, and how it is cut."""

    shape: tuple[int, ...]
    dtype: str
    names: tuple[str, ...]
    chunks: int
    """Chunks of one trajectory in a shard file; 0: the file is a single chunk."""
    attributes: dict[str, Any]


def arrays(info: DatasetInfo) -> dict[str, ArraySpec]:
    """The arrays that each split of a dataset has, besides the coordinates."""
    axes, channels, static = info.axes, len(info.channels), len(info.static_channels)
    specs = {
        "fields": ArraySpec(
            (info.frames, *info.space, channels),
            "float32",
            ("time", *axes, "channel"),
            info.frames,
            # `coordinates` is the CF convention, which xarray follows.
            {"coordinates": "time", "channels": list(info.channels)},
        ),
        "time": ArraySpec((info.frames,), "float64", ("time",), 0, {}),
        "parameters": ArraySpec(
            (len(info.parameters),), "float64", ("parameter",), 0, {"parameters": list(info.parameters)}
        ),
        "static": ArraySpec(
            (*info.space, static), "float32", (*axes, "static_channel"), 1, {"channels": list(info.static_channels)}
        ),
    }
    if info.masked:
        specs["mask"] = ArraySpec(info.space, "bool", axes, 1, {"description": "true at the points of the domain"})
    return {name: spec for name, spec in specs.items() if 0 not in spec.shape}


def array_file(split: str, array: str, shard: int, axes: int) -> str:
    """Path of a file within the store; `axes` counts the axes after the trajectory's."""
    return f"{split}/{array}/c/{shard}/{'/'.join('0' * axes)}"


def provenance_file(split: str, shard: int) -> str:
    """Path within the store of the file that tells where the trajectories of a shard came from."""
    return f"{split}.provenance/{shard:06d}.jsonl"


def origin_text(origin: Mapping[str, Any]) -> bytes:
    """What the checksum of a trajectory's provenance is taken of."""
    return json.dumps(origin, sort_keys=True, separators=(",", ":")).encode()
