"""The canonical store: a Zarr v3 group, lossless, at native resolution, that describes itself.

    <name>.zarr/                attributes: dataset (DatasetInfo), provenance
      train/ valid/ test/       attributes: provenance of each trajectory; splits without trajectories are absent
        fields      float32 (N, T, *space, C)   a chunk is one frame, a shard some whole trajectories
        time        float64 (N, T)
        parameters  float64 (N, P)              where the dataset has parameters
        static      float32 (N, *space, S)      where the dataset has static fields
      manifest.json

Every chunk carries a crc32c. A lost Zarr shard reads as the fill value without an error, so the fill value is NaN,
which no committed field holds, and sizes are checked against the manifest when a store is opened.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from data_pipeline.base.errors import DataError
from data_pipeline.stores.committed import CommittedSplit
from data_pipeline.stores.manifest import Manifest
from data_pipeline.trajectory import DatasetInfo, FloatArray, Trajectory


def create(
    folder: Path, info: DatasetInfo, splits: Mapping[str, int], per_shard: int, provenance: Mapping[str, Any]
) -> None:
    """Make the groups and the empty arrays; `per_shard` trajectories share a file of each array."""
    attributes = {"dataset": info.model_dump(mode="json"), "provenance": dict(provenance)}
    zarr.create_group(folder, attributes=attributes)
    for split, count in splits.items():
        zarr.create_group(folder, path=split)
        for name, (shape, dtype, names) in _arrays(info).items():
            whole = (per_shard, *shape)
            zarr.create_array(
                folder,
                name=f"{split}/{name}",
                shape=(count, *shape),
                dtype=dtype,
                chunks=(1, 1, *shape[1:]) if name == "fields" else whole,
                shards=whole if name == "fields" else None,
                compressors=[Crc32cCodec()],
                fill_value=float("nan"),
                config={"write_empty_chunks": True},
                dimension_names=("trajectory", *names),
            )


def _arrays(info: DatasetInfo) -> dict[str, tuple[tuple[int, ...], str, tuple[str, ...]]]:
    """Shape of one trajectory's entry, dtype and dimension names of each array that the dataset has."""
    arrays: dict[str, tuple[tuple[int, ...], str, tuple[str, ...]]] = {
        "fields": ((info.frames, *info.space, len(info.channels)), "float32", ("time", *info.axes, "channel")),
        "time": ((info.frames,), "float64", ("time",)),
        "parameters": ((len(info.parameters),), "float64", ("parameter",)),
        "static": ((*info.space, len(info.static_channels)), "float32", (*info.axes, "static_channel")),
    }
    return {name: entry for name, entry in arrays.items() if 0 not in entry[0]}


def write(
    folder: Path, info: DatasetInfo, split: str, shard: int, start: int, trajectories: Sequence[Trajectory]
) -> list[str]:
    """Write one whole shard of each array; returns the files' paths relative to the store."""
    columns: dict[str, list[Any]] = {
        "fields": [t.fields for t in trajectories],
        "time": [t.times for t in trajectories],
        "parameters": [[t.parameters[name] for name in info.parameters] for t in trajectories],
        "static": [t.static for t in trajectories],
    }
    files = []
    for name, (shape, dtype, _) in _arrays(info).items():
        file = shard_file(split, name, shard, len(shape))
        # Zarr merges into a file that is there already; one left by a killed attempt must not be read.
        (folder / file).unlink(missing_ok=True)
        array = zarr.open_array(folder, path=f"{split}/{name}", mode="r+", config={"write_empty_chunks": True})
        array[start : start + len(trajectories)] = np.stack([np.asarray(entry, dtype) for entry in columns[name]])
        files.append(file)
    return files


def write_provenance(folder: Path, split: str, provenance: list[dict[str, Any]]) -> None:
    """Note in the split's attributes where each trajectory came from."""
    zarr.open_group(folder, path=split, mode="r+").attrs["provenance"] = provenance


def shard_file(split: str, array: str, shard: int, axes: int) -> str:
    """Path of a file within the store; `axes` counts the axes after the trajectory's."""
    return f"{split}/{array}/c/{shard}/{'/'.join('0' * axes)}"


class ZarrStore(CommittedSplit):
    """Reads one split through zarr-python. See `TrajectoryStore`."""

    def __init__(self, path: Path, manifest: Manifest, split: str) -> None:
        super().__init__(path, manifest, split)
        try:
            self._group = zarr.open_group(path, path=split, mode="r")
            self._fields = self._group["fields"]
        except (ValueError, KeyError, OSError) as error:
            raise DataError("not a readable Zarr group", file=path / split, found=error) from None

    def read_into(self, trajectory: int, start: int, out: FloatArray) -> None:
        """See `TrajectoryStore.read_into`."""
        self._check_window(trajectory, start, out)
        try:
            out[...] = self._fields[trajectory, start : start + len(out)]
            damaged = bool(np.isnan(out).any())
        except Exception as error:  # the codecs' own errors differ with the damage and with the release of zarr
            raise self._blame(trajectory, start, len(out), error) from error
        if damaged:
            raise self._blame(trajectory, start, len(out), "a chunk is missing")

    def parameters(self, trajectory: int) -> dict[str, float]:
        """See `TrajectoryStore.parameters`."""
        self._check_trajectory(trajectory)
        if not self.info.parameters:
            return {}
        return dict(zip(self.info.parameters, self._parameters[trajectory].tolist(), strict=True))

    def trajectory(self, number: int) -> Trajectory:
        """A whole trajectory with all that is stored beside its fields."""
        fields = np.empty((self.info.frames, *self.info.space, len(self.info.channels)), np.float32)
        self.read_into(number, 0, fields)
        static = self._read("static", number) if self.info.static_channels else None
        return Trajectory(
            fields=fields,
            times=self._read("time", number),
            parameters=self.parameters(number),
            static=static,
            provenance=self._provenance[number],
        )

    def close(self) -> None:
        """Zarr opens files only while it reads; nothing is held."""

    @cached_property
    def _parameters(self) -> NDArray[np.float64]:
        values: NDArray[np.float64] = self._read("parameters", slice(None))
        return values

    @cached_property
    def _provenance(self) -> list[dict[str, str | int | float]]:
        return list(self._group.attrs["provenance"])

    def _read(self, name: str, selection: int | slice) -> Any:
        try:
            values = np.asarray(self._group[name][selection])
        except Exception as error:  # as in read_into
            raise DataError(
                f"damaged data: {error}", file=self.path / self.split / name, key=f"{selection}"
            ) from error
        if np.isnan(values).any():
            raise DataError("damaged data: a chunk is missing", file=self.path / self.split / name, key=f"{selection}")
        return values

    def _blame(self, trajectory: int, start: int, count: int, problem: object) -> DataError:
        """The error for a damaged window: finds its first bad frame, and where that lies in the shard."""
        per_shard = self._fields.shards[0]
        file = self.path / shard_file(self.split, "fields", trajectory // per_shard, self._fields.ndim - 1)
        frame: int | str = f"{start}..{start + count}"
        for candidate in range(start, start + count):
            try:
                if np.isnan(self._fields[trajectory, candidate]).any():
                    frame = candidate
                    break
            except Exception:  # as in read_into
                frame = candidate
                break
        offset = _chunk_offset(file, self._fields.shape[1], per_shard, trajectory % per_shard, frame)
        return self._damaged(problem, file=file, trajectory=trajectory, frame=frame, offset=offset)


def _chunk_offset(file: Path, frames: int, per_shard: int, trajectory: int, frame: int | str) -> int | str:
    """Byte offset of a frame, from the shard's index: (offset, length) pairs and a crc32c at the file's end."""
    size = 16 * frames * per_shard
    try:
        with file.open("rb") as shard:
            shard.seek(-(size + 4), os.SEEK_END)
            tail = shard.read(size)
    except OSError:  # gone, or too short
        return "unknown"
    if len(tail) != size or isinstance(frame, str):
        return "unknown"
    return int(np.frombuffer(tail, "<u8").reshape(per_shard, frames, 2)[trajectory, frame, 0])
