"""The canonical store: a Zarr v3 group, lossless, at native resolution, that describes itself.

    <name>.zarr/                  attributes: dataset (DatasetInfo), provenance
      train/ valid/ test/         attributes: physics, licence, provenance; splits without trajectories are absent
        fields      float32 (N, T, *space, C)   a chunk is one frame, a shard some whole trajectories
        time        float64 (N, T)
        parameters  float64 (N, P)              where the dataset has parameters
        static      float32 (N, *space, S)      where the dataset has static fields
        mask        bool    (N, *space)         where points lie outside of the domain
        x, y, ...   float64 (n,)                position of the grid points along each axis
      train.provenance/000000.jsonl ...         where each trajectory of a shard came from
      manifest.json

Any Zarr v3 reader opens it; so does xarray (`xarray.open_zarr(store, group="train", consolidated=False)`), with named
dimensions and coordinates. Here it is read directly: chunks are plain bytes, so a window is one `preadv` into the
caller's array. Every chunk carries a crc32c. Other readers take a lost shard file for fill values without an error, so
the fill value is NaN, which no committed field holds.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError, PdepotError
from data_pipeline.base.files import read_json
from data_pipeline.stores.committed import CommittedSplit
from data_pipeline.stores.manifest import Manifest
from data_pipeline.stores.reading import Files
from data_pipeline.stores.zarr_layout import array_file, arrays, origin_text, provenance_file
from data_pipeline.stores.zarr_shard import ChunkError, ShardReader, read_chunk
from data_pipeline.trajectory import BoolArray, FloatArray, Trajectory

_CHUNKS_IN_MEMORY = 64  # times and parameters of as many shards


class ZarrStore(CommittedSplit):
    """Reads one split straight into the caller's array. See `TrajectoryStore` and `CommittedSplit`."""

    def __init__(
        self,
        path: Path | str,
        manifest: Manifest,
        split: str,
        *,
        files: Callable[[str], Path] | None = None,
        checksums: bool = True,
    ) -> None:
        super().__init__(path, manifest, split, files=files, checksums=checksums)
        self._specs = arrays(self.info)
        self._format = manifest.format_version
        self._per_shard = self._read_per_shard()
        self._open = Files(self.file, self.open_files)
        self._readers = {
            name: ShardReader(
                self._open,
                chunks=self._per_shard * spec.chunks,
                chunk_bytes=prod(spec.shape) // spec.chunks * np.dtype(spec.dtype).itemsize,
                checksums=checksums,
            )
            for name, spec in self._specs.items()
            if spec.chunks
        }
        self._rows = lru_cache(maxsize=_CHUNKS_IN_MEMORY)(self._read_rows)

    def read_into(self, trajectory: int, start: int, out: FloatArray) -> None:
        """See `TrajectoryStore.read_into`."""
        self._check_window(trajectory, start, out)
        direct = out.dtype == np.dtype("<f4") and out.flags.c_contiguous
        buffer: NDArray[Any] = out if direct else np.empty(out.shape, "<f4")
        self._read("fields", trajectory, start, buffer)
        if not direct:
            out[...] = buffer

    def parameters(self, trajectory: int) -> dict[str, float]:
        """See `TrajectoryStore.parameters`."""
        self._check_trajectory(trajectory)
        if not self.info.parameters:
            return {}
        return dict(zip(self.info.parameters, self._row("parameters", trajectory).tolist(), strict=True))

    def static(self, trajectory: int) -> FloatArray | None:
        """See `TrajectoryStore.static`."""
        self._check_trajectory(trajectory)
        if not self.info.static_channels:
            return None
        if self._format == 1:  # one chunk for all trajectories of a shard
            row: FloatArray = self._read_rows("static", trajectory // self._per_shard)[trajectory % self._per_shard]
            return row.copy()
        values = np.empty((1, *self._specs["static"].shape), "<f4")
        self._read("static", trajectory, 0, values)
        first: FloatArray = values[0]
        return first

    def mask(self, trajectory: int) -> BoolArray | None:
        """See `TrajectoryStore.mask`."""
        self._check_trajectory(trajectory)
        if not self.info.masked:
            return None
        values = np.empty((1, *self.info.space), np.bool_)
        self._read("mask", trajectory, 0, values)
        first: BoolArray = values[0]
        return first

    def trajectory(self, number: int) -> Trajectory:
        """A whole trajectory with all that is stored beside its fields. Raises DataError as `read_into`."""
        fields = np.empty((self.info.frames, *self.info.space, len(self.info.channels)), np.float32)
        self.read_into(number, 0, fields)
        return Trajectory(
            fields=fields,
            times=self._row("time", number).copy(),
            parameters=self.parameters(number),
            static=self.static(number),
            mask=self.mask(number),
            provenance=self._provenance(number),
        )

    def close(self) -> None:
        """See `TrajectoryStore.close`."""
        self._open.close()
        for reader in self._readers.values():
            reader.close()
        self._rows.cache_clear()

    def _read_per_shard(self) -> int:
        """Trajectories in a shard, as the metadata of the fields say."""
        file = self.file(f"{self.split}/fields/zarr.json")
        try:
            shape = read_json(file)["chunk_grid"]["configuration"]["chunk_shape"]
            if shape[1:] == list(self._specs["fields"].shape) and int(shape[0]) > 0:
                return int(shape[0])
        except (PdepotError, KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError("not readable metadata of a Zarr array", file=file, found=error) from None
        raise DataError("the shape of a shard does not fit the dataset", file=file, found=shape)

    def _name(self, array: str, shard: int) -> str:
        return array_file(self.split, array, shard, len(self._specs[array].shape))

    def _read(self, array: str, trajectory: int, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (n, ...), contiguous, with the chunks of a trajectory from `start` on."""
        if not out.size:
            return
        shard, place = divmod(trajectory, self._per_shard)
        name, first = self._name(array, shard), place * self._specs[array].chunks
        try:
            self._readers[array].read_into(name, first + start, out.view(np.uint8).reshape(len(out), -1))
        except OSError as error:
            raise self._error(error.strerror, name, trajectory, start if array == "fields" else array) from error
        except ChunkError as damage:
            frame = max(damage.chunk - first, start) if array == "fields" else array
            raise self._error(damage, name, trajectory, frame, damage.offset) from None

    def _row(self, array: str, trajectory: int) -> NDArray[np.float64]:
        shard, place = divmod(trajectory, self._per_shard)
        row: NDArray[np.float64] = self._rows(array, shard)[place]
        return row

    def _read_rows(self, array: str, shard: int) -> NDArray[Any]:
        """The file of an array that holds one chunk, a row a trajectory."""
        spec, name = self._specs[array], self._name(array, shard)
        try:
            return read_chunk(self._open, name, spec.dtype, (self._per_shard, *spec.shape))
        except OSError as error:
            raise self._error(error.strerror, name, shard * self._per_shard, array) from error
        except ChunkError as damage:
            raise self._error(damage, name, shard * self._per_shard, array, damage.offset) from None

    def _provenance(self, trajectory: int) -> dict[str, str | int | float]:
        if self._format == 1:
            attributes = read_json(self.file(f"{self.split}/zarr.json"))["attributes"]
            return dict(attributes["provenance"][trajectory])
        shard, place = divmod(trajectory, self._per_shard)
        name = provenance_file(self.split, shard)
        try:
            line = json.loads(self._open.read(name).splitlines()[place])
            if google_crc32c.value(origin_text(line["provenance"])) == line["crc32c"]:
                return dict(line["provenance"])
            problem: object = "the checksum does not match"
        except OSError as error:
            problem = error.strerror
        except (ValueError, KeyError, TypeError, IndexError) as error:
            problem = f"not a readable line ({error})"
        raise self._error(problem, name, trajectory, "provenance")

    def _error(
        self, problem: object, name: str, trajectory: int, frame: int | str, offset: int | str = "unknown"
    ) -> DataError:
        return self._damaged(problem, file=self.file(name), trajectory=trajectory, frame=frame, offset=offset)
