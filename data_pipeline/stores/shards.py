"""The training export: uncompressed WebDataset tars, and an index that makes every window one `preadv` away.

    <name>.shards/
      train-000000.tar ...      <name>-train-000012.fields.npy (T, *space, C), .meta.json, .static.npy, .mask.npy
      train.index.npy           a record a trajectory: shard, offsets of raw bytes, crc32c, times, parameters
      manifest.json

Equal data give equal bytes: members have no time and a fixed owner. Any reader of WebDataset can stream the tars.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError
from data_pipeline.stores.committed import CommittedSplit
from data_pipeline.stores.manifest import Manifest
from data_pipeline.stores.reading import Files
from data_pipeline.stores.shard_index import Index, Place, RecordIndex, WholeIndex, index_name
from data_pipeline.trajectory import BoolArray, FloatArray

_PLACES_IN_MEMORY = 1024  # a sample asks for the place of its trajectory more than once


def shard_name(split: str, shard: int) -> str:
    """File name of a shard."""
    return f"{split}-{shard:06d}.tar"


class ShardStore(CommittedSplit):
    """Reads windows of one split straight into the caller's array. See `TrajectoryStore` and `CommittedSplit`."""

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
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._frame_bytes = int(np.prod(self.info.space)) * len(self.info.channels) * self._dtype.itemsize
        self._open = Files(self.file, self.open_files)
        self._format = manifest.format_version
        name = index_name(split, self._format)
        self._index: Index = (
            WholeIndex(self.file(name))
            if self._format == 1
            else RecordIndex(self._open, self.file, name, self.info, len(self))
        )
        self._place: Callable[[int], Place] = lru_cache(_PLACES_IN_MEMORY)(self._index.place)

    def read_into(self, trajectory: int, start: int, out: FloatArray) -> None:
        """See `TrajectoryStore.read_into`."""
        self._check_window(trajectory, start, out)
        direct = out.dtype == self._dtype and out.flags.c_contiguous
        buffer: NDArray[Any] = out if direct else np.empty(out.shape, self._dtype)
        place = self._place(trajectory)
        self._read(buffer, place, trajectory, place.offset + start * self._frame_bytes, start)
        if self.checksums:
            for number, frame in enumerate(buffer, start):
                if google_crc32c.value(frame) != place.crc32c[number]:
                    offset = place.offset + number * self._frame_bytes
                    raise self._error("the checksum does not match", place, trajectory, number, offset)
        if not direct:
            out[...] = buffer

    def static(self, trajectory: int) -> FloatArray | None:
        """See `TrajectoryStore.static`."""
        self._check_trajectory(trajectory)
        if not self.info.static_channels:
            return None
        if self._format == 1:
            raise DataError(
                "shards of format 1 do not say where their static fields are",
                file=self.path,
                remedy="delete them and export the Zarr store again",
            )
        place, shape = self._place(trajectory), (*self.info.space, len(self.info.static_channels))
        values = np.empty(shape, "<f4")
        self._read_checked(values, place, trajectory, place.static_offset, place.static_crc32c, "static")
        return values

    def mask(self, trajectory: int) -> BoolArray | None:
        """See `TrajectoryStore.mask`."""
        self._check_trajectory(trajectory)
        if not self.info.masked:
            return None
        place, values = self._place(trajectory), np.empty(self.info.space, np.bool_)
        self._read_checked(values, place, trajectory, place.mask_offset, place.mask_crc32c, "mask")
        return values

    def parameters(self, trajectory: int) -> dict[str, float]:
        """See `TrajectoryStore.parameters`."""
        self._check_trajectory(trajectory)
        return dict(zip(self.info.parameters, self._place(trajectory).parameters.tolist(), strict=True))

    def close(self) -> None:
        """See `TrajectoryStore.close`."""
        self._open.close()

    def _read_checked(
        self, out: NDArray[Any], place: Place, trajectory: int, offset: int, crc32c: int, what: str
    ) -> None:
        self._read(out, place, trajectory, offset, what)
        if self.checksums and google_crc32c.value(out) != crc32c:
            raise self._error("the checksum does not match", place, trajectory, what, offset)

    def _read(self, out: NDArray[Any], place: Place, trajectory: int, offset: int, frame: int | str) -> None:
        """Fill `out`, contiguous, from `offset` on; `frame` is its first one, or what it is."""
        view = out.data.cast("B") if out.size else memoryview(b"")
        try:
            done = self._open.read_into(shard_name(self.split, place.shard), offset, [view])
        except OSError as error:
            raise self._error(error.strerror, place, trajectory, frame, offset) from error
        if done < len(view):
            frame = frame if isinstance(frame, str) else frame + done // self._frame_bytes
            raise self._error("the file ends too early", place, trajectory, frame, offset + done)

    def _error(self, problem: object, place: Place, trajectory: int, frame: int | str, offset: int) -> DataError:
        file = self.file(shard_name(self.split, place.shard))
        return self._damaged(problem, file=file, trajectory=trajectory, frame=frame, offset=offset)
