"""Uncompressed WebDataset tars, written as they come: no member is held twice, and equal data give equal bytes."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.files import replace_file
from data_pipeline.stores.manifest import FileRecord
from data_pipeline.trajectory import Trajectory

_PADDING = bytes(tarfile.RECORDSIZE)


def write_shard(
    path: Path, prefix: str, first: int, trajectories: Iterable[Trajectory]
) -> tuple[FileRecord, list[dict[str, Any]]]:
    """Write trajectories number `first` and on to one tar; committed under `path` only when it is whole.

    Args:
        path: the tar.
        prefix: start of each sample's key, of [a-z0-9_-] only (WebDataset ends a key at its first dot).
        first: number of the first trajectory within its split.
        trajectories: their fields in the dtype that is to be stored.

    Returns:
        Size and SHA-256 of the tar, taken while it was written, and one index entry a trajectory: offsets and crc32c
        of the raw bytes of its fields (a crc32c a frame), static fields and mask (offset -1: none); times, parameters.
    """
    with replace_file(path, unseen=True) as file:
        tar = _Tar(file)
        entries = [_write_sample(tar, f"{prefix}-{first + i:06d}", one) for i, one in enumerate(trajectories)]
        tar.end()
    return FileRecord(size=tar.offset, sha256=tar.sha256.hexdigest()), entries


def _write_sample(tar: "_Tar", key: str, trajectory: Trajectory) -> dict[str, Any]:
    meta = {
        "parameters": dict(trajectory.parameters),
        "times": trajectory.times.tolist(),
        "provenance": dict(trajectory.provenance),
    }
    entry = {
        "times": meta["times"],
        "parameters": meta["parameters"],
        "crc32c": [google_crc32c.value(np.ascontiguousarray(frame)) for frame in trajectory.fields],
        "offset": tar.add_array(f"{key}.fields.npy", trajectory.fields),
    }
    tar.add(f"{key}.meta.json", json.dumps(meta, sort_keys=True).encode())
    beside: dict[str, NDArray[Any] | None] = {"static": trajectory.static, "mask": trajectory.mask}
    for name, values in beside.items():
        entry[f"{name}_offset"] = -1 if values is None else tar.add_array(f"{key}.{name}.npy", values)
        entry[f"{name}_crc32c"] = 0 if values is None else google_crc32c.value(np.ascontiguousarray(values))
    return entry


class _Tar:
    """Members without a time and with a fixed owner; a name or a size too large for USTAR gets a PAX header.

    The bytes are those of `webdataset.TarWriter`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.offset = 0
        self.sha256 = hashlib.sha256()

    def add(self, name: str, *parts: bytes | memoryview) -> None:
        """A member whose content is the parts, one after another."""
        member = tarfile.TarInfo(name)
        member.size = sum(len(part) for part in parts)
        member.mode, member.uname, member.gname = 0o444, "pdepot", "pdepot"
        self._write(member.tobuf(tarfile.PAX_FORMAT))
        for part in parts:
            self._write(part)
        self._write(_PADDING[: -member.size % tarfile.BLOCKSIZE])

    def add_array(self, name: str, values: NDArray[Any]) -> int:
        """A member in NumPy's file format; returns the offset of the array's raw bytes."""
        values = np.ascontiguousarray(values)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(values))
        self.add(name, header.getvalue(), values.reshape(-1).view(np.uint8).data)
        padding = -(header.tell() + values.nbytes) % tarfile.BLOCKSIZE
        return self.offset - padding - values.nbytes

    def end(self) -> None:
        """The marker of the tar's end, filled up to whole records."""
        self._write(_PADDING[: 2 * tarfile.BLOCKSIZE])
        self._write(_PADDING[: -self.offset % tarfile.RECORDSIZE])

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self.sha256.update(content)
        self.offset += len(content)
