"""The training export: uncompressed WebDataset tars, and an index that makes every window one `preadv` away.

    <name>.shards/
      train-000000.tar ...      <name>-train-000012.fields.npy (T, *space, C), .meta.json, .static.npy
      train.index.npz           shard, offset of the raw array bytes, crc32c of every frame, times, parameters
      manifest.json

Equal data give equal bytes: members have no time and a fixed owner. Any reader of WebDataset can stream the tars.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import webdataset
from numpy.typing import NDArray

from data_pipeline.base.errors import DataError
from data_pipeline.base.files import write_bytes
from data_pipeline.stores.committed import CommittedSplit
from data_pipeline.stores.manifest import Manifest
from data_pipeline.trajectory import DatasetInfo, FloatArray, Trajectory

_OPEN_SHARDS = 64
_BLOCK = tarfile.BLOCKSIZE


def shard_name(split: str, shard: int) -> str:
    """File name of a shard."""
    return f"{split}-{shard:06d}.tar"


def index_name(split: str) -> str:
    """File name of a split's index."""
    return f"{split}.index.npz"


def write_shard(path: Path, prefix: str, first: int, trajectories: Iterable[Trajectory]) -> list[dict[str, Any]]:
    """Write trajectories number `first` and on to one tar; committed under `path` only when it is whole.

    Args:
        path: the tar.
        prefix: start of each sample's key, of [a-z0-9_-] only (WebDataset ends a key at its first dot).
        first: number of the first trajectory within its split.
        trajectories: their fields in the dtype that is to be stored.

    Returns:
        One index entry a trajectory: offset of the raw bytes of its fields, crc32c of each frame, times, parameters.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with webdataset.TarWriter(
                file, encoder=False, mtime=0, user="pdepot", group="pdepot", format="PAX_FORMAT"
            ) as writer:
                entries = [_write_sample(writer, f"{prefix}-{first + i:06d}", t) for i, t in enumerate(trajectories)]
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return entries


def _write_sample(writer: Any, key: str, trajectory: Trajectory) -> dict[str, Any]:
    content = _npy(trajectory.fields)
    writer.write({"__key__": key, "fields.npy": content})
    # The position is known only after the header: a long name or a member above 8 GiB lengthens it.
    end_of_member = writer.tarstream.offset
    start_of_member = end_of_member - -(-len(content) // _BLOCK) * _BLOCK
    meta = {
        "parameters": dict(trajectory.parameters),
        "times": trajectory.times.tolist(),
        "provenance": dict(trajectory.provenance),
    }
    writer.write({"__key__": key, "meta.json": json.dumps(meta, sort_keys=True).encode()})
    if trajectory.static is not None:
        writer.write({"__key__": key, "static.npy": _npy(trajectory.static)})
    return {
        "offset": start_of_member + len(content) - trajectory.fields.nbytes,
        "crc32c": [google_crc32c.value(frame) for frame in trajectory.fields],
        "times": meta["times"],
        "parameters": meta["parameters"],
    }


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def write_index(path: Path, info: DatasetInfo, shards: Sequence[tuple[int, list[dict[str, Any]]]]) -> None:
    """Write a split's index from the entries of its shards, given in order with their shard numbers."""
    entries = [(shard, entry) for shard, of_shard in shards for entry in of_shard]
    parameters = np.array(
        [[entry["parameters"][name] for name in info.parameters] for _, entry in entries], np.float64
    )
    buffer = io.BytesIO()
    np.savez(
        buffer,
        shard=np.array([shard for shard, _ in entries], np.int32),
        offset=np.array([entry["offset"] for _, entry in entries], np.int64),
        crc32c=np.array([entry["crc32c"] for _, entry in entries], np.uint32),
        times=np.array([entry["times"] for _, entry in entries], np.float64),
        parameters=parameters.reshape(len(entries), len(info.parameters)),
    )
    write_bytes(path, buffer.getvalue())


class _Descriptor:
    """An open file that closes when its last user lets go: eviction from the cache never cuts off a read."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class ShardStore(CommittedSplit):
    """Reads windows of one split straight into the caller's array. See `TrajectoryStore`."""

    def __init__(self, path: Path, manifest: Manifest, split: str) -> None:
        super().__init__(path, manifest, split)
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._frame_bytes = int(np.prod(self.info.space)) * len(self.info.channels) * self._dtype.itemsize
        try:
            with np.load(path / index_name(split), allow_pickle=False) as index:
                self._shard, self._offset = index["shard"], index["offset"]
                self._crc32c, self._parameters = index["crc32c"], index["parameters"]
        except (OSError, ValueError, KeyError) as error:
            raise DataError("not a readable index", file=path / index_name(split), found=error) from None
        self._open = lru_cache(maxsize=_OPEN_SHARDS)(lambda shard: _Descriptor(path / shard_name(split, shard)))

    def read_into(self, trajectory: int, start: int, out: FloatArray) -> None:
        """See `TrajectoryStore.read_into`."""
        self._check_window(trajectory, start, out)
        direct = out.dtype == self._dtype and out.flags.c_contiguous
        buffer: NDArray[Any] = out if direct else np.empty(out.shape, self._dtype)
        self._read_frames(trajectory, start, buffer)
        for i, frame in enumerate(buffer):
            if google_crc32c.value(frame) != self._crc32c[trajectory, start + i]:
                raise self._error("the checksum does not match", trajectory, start + i)
        if not direct:
            out[...] = buffer

    def _read_frames(self, trajectory: int, start: int, buffer: NDArray[Any]) -> None:
        """Fill `buffer`; `preadv` carries its own offset, so threads can share the descriptor."""
        view = buffer.data.cast("B") if buffer.size else memoryview(b"")
        position = int(self._offset[trajectory]) + start * self._frame_bytes
        done = 0
        try:
            descriptor = self._open(int(self._shard[trajectory]))
            while done < len(view):  # the kernel moves at most 2 GiB a call
                count = os.preadv(descriptor.number, [view[done:]], position + done)
                if not count:
                    raise self._error("the file ends too early", trajectory, start + done // self._frame_bytes)
                done += count
        except OSError as error:
            raise self._error(error.strerror, trajectory, start + done // self._frame_bytes) from error

    def _error(self, problem: object, trajectory: int, frame: int) -> DataError:
        return self._damaged(
            problem,
            file=self.path / shard_name(self.split, int(self._shard[trajectory])),
            trajectory=trajectory,
            frame=frame,
            offset=int(self._offset[trajectory]) + frame * self._frame_bytes,
        )

    def parameters(self, trajectory: int) -> dict[str, float]:
        """See `TrajectoryStore.parameters`."""
        self._check_trajectory(trajectory)
        return dict(zip(self.info.parameters, self._parameters[trajectory].tolist(), strict=True))

    def close(self) -> None:
        """See `TrajectoryStore.close`."""
        self._open.cache_clear()
