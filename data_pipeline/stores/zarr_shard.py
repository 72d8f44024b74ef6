"""The bytes of our Zarr v3 files, written from start to end and read by position.

A shard file holds uncompressed chunks of one size, each followed by its crc32c; then its index, the offset and length
of every chunk as little-endian uint64 pairs (all ones: no chunk); then the crc32c of the index. That is the codec
`sharding_indexed` of the Zarr v3 specification with the index at the end. Chunks are written in C order, so the frames
of a window are neighbours in the file; in files of format 1 they may lie in any order.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_pipeline.base.files import replace_file
from data_pipeline.stores.manifest import FileRecord
from data_pipeline.stores.reading import Files

_CHECKSUM = 4  # bytes of a crc32c
_BLOCK = 2**17  # bytes that are written at once, where a chunk is smaller
_INDEX_BYTES = 16 * 2**20  # indices in memory, in total
_INDICES = 64
_NO_CHUNK = 2**64 - 1

Bytes = NDArray[np.uint8]


class ChunkError(Exception):
    """A chunk that cannot be trusted: its number in the shard file, and where its bytes are, if that is known."""

    def __init__(self, problem: object, chunk: int, offset: int | str) -> None:
        super().__init__(str(problem))
        self.chunk, self.offset = chunk, offset


class ShardWriter:
    """Writes the chunks of one shard file in their order."""

    def __init__(self, file: BinaryIO, chunks: int) -> None:
        self._file, self._chunks = file, chunks
        self._written, self._stride, self._size = 0, 0, 0
        self._sha256 = sha256()

    def append(self, chunks: NDArray[Any]) -> None:
        """Write the chunks that lie along the first axis of an array."""
        rows = np.ascontiguousarray(chunks).view(np.uint8).reshape(len(chunks), -1)
        self._stride = rows.shape[1] + _CHECKSUM
        step = max(1, _BLOCK // self._stride)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            checksums = _checksums([google_crc32c.value(row) for row in part])
            if step == 1:
                self._write(part)
                self._write(checksums)
            else:
                self._write(np.concatenate([part, checksums], axis=1))
        self._written += len(rows)

    def finish(self) -> FileRecord:
        """Write the index; chunks that were not given are noted as absent."""
        index = np.full((self._chunks, 2), _NO_CHUNK, "<u8")
        index[: self._written, 0] = np.arange(self._written) * self._stride
        index[: self._written, 1] = self._stride
        self._write(index)
        self._write(_checksums([google_crc32c.value(index)]))
        return FileRecord(size=self._size, sha256=self._sha256.hexdigest())

    def _write(self, content: NDArray[Any]) -> None:
        self._sha256.update(content.data)
        self._file.write(content.data)
        self._size += content.nbytes


@contextmanager
def new_shard(path: Path, chunks: int, records: dict[str, FileRecord], name: str) -> Iterator[ShardWriter]:
    """A shard file with room for `chunks` chunks; there once the block ends, with its record under `name`."""
    with replace_file(path, unseen=True) as file:
        writer = ShardWriter(file, chunks)
        yield writer
        record = writer.finish()
    records[name] = record


def write_chunk(path: Path, values: NDArray[Any]) -> FileRecord:
    """Write an array as the one chunk of a file, its crc32c behind it."""
    content = np.ascontiguousarray(values).tobytes()
    content += _checksums([google_crc32c.value(content)]).tobytes()
    with replace_file(path, unseen=True) as file:
        file.write(content)
    return FileRecord(size=len(content), sha256=sha256(content).hexdigest())


def read_chunk(files: Files, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """The chunk of a file with one.

    Raises:
        OSError: the file cannot be read.
        ChunkError: it has another size, or its checksum does not match.
    """
    content = files.read(name)
    expected = np.dtype(dtype).itemsize * math.prod(shape) + _CHECKSUM
    if len(content) != expected:
        raise ChunkError(f"the file has {len(content)} bytes, not {expected}", 0, 0)
    if _checksums([google_crc32c.value(content[:-_CHECKSUM])]).tobytes() != content[-_CHECKSUM:]:
        raise ChunkError("the checksum does not match", 0, 0)
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<"), math.prod(shape)).reshape(shape)


class ShardReader:
    """Reads chunks of the shard files of one array straight into the caller's memory. Safe to share between threads.

    Args:
        files: the open files.
        chunks: chunks for which a shard file has room.
        chunk_bytes: size of a chunk without its checksum.
        checksums: verify the checksum of every chunk that is read.
    """

    def __init__(self, files: Files, chunks: int, chunk_bytes: int, checksums: bool) -> None:
        self._files, self._chunks, self._checksums = files, chunks, checksums
        self._chunk_bytes, self._stride = chunk_bytes, chunk_bytes + _CHECKSUM
        keep = min(_INDICES, max(1, _INDEX_BYTES // (8 * chunks)))
        self._offsets = lru_cache(maxsize=keep)(self._read_offsets)

    def read_into(self, name: str, first: int, out: Bytes) -> None:
        """Fill the rows of `out` (n, chunk_bytes), contiguous, with chunk `first` of a file and those after it.

        Raises:
            OSError: the file cannot be read.
            ChunkError: a chunk is missing, cut, or does not match its checksum.
        """
        offsets: list[int] = self._offsets(name)[first : first + len(out)].tolist()
        if -1 in offsets:
            raise ChunkError("a chunk is missing", first + offsets.index(-1), "unknown")
        stored = np.empty(len(out), "<u4")
        for start, stop in _runs(offsets, self._stride):
            done = self._files.read_into(name, offsets[start], _interleaved(out[start:stop], stored[start:stop]))
            if done < (stop - start) * self._stride:
                last = start + done // self._stride
                raise ChunkError("the file ends too early", first + last, offsets[last])
        if self._checksums:
            for i, (chunk, expected) in enumerate(zip(out, stored.tolist(), strict=True)):
                if google_crc32c.value(chunk) != expected:
                    raise ChunkError("the checksum does not match", first + i, offsets[i])

    def close(self) -> None:
        """Let go of the indices."""
        self._offsets.cache_clear()

    def _read_offsets(self, name: str) -> NDArray[np.int64]:
        """Offset of each chunk of a file; -1 for a chunk that is not there."""
        size = 16 * self._chunks
        start = self._files.size(name) - size - _CHECKSUM
        content = bytearray(size + _CHECKSUM)
        if start < 0 or self._files.read_into(name, start, [memoryview(content)]) < len(content):
            raise ChunkError("the file is too short for its index", 0, 0)
        if google_crc32c.value(bytes(content[:size])) != int.from_bytes(content[size:], "little"):
            raise ChunkError("the checksum of the file's index does not match", 0, start)
        index = np.frombuffer(content, "<u8", 2 * self._chunks).reshape(-1, 2)
        there = index[:, 1] == self._stride
        there &= index[:, 0] <= np.uint64(max(0, start - self._stride))
        return np.where(there, index[:, 0].astype(np.int64), -1)


def _runs(offsets: list[int], stride: int) -> Iterator[tuple[int, int]]:
    """Ranges of chunks that are neighbours in the file."""
    start = 0
    for i in range(1, len(offsets) + 1):
        if i == len(offsets) or offsets[i] != offsets[i - 1] + stride:
            yield start, i
            start = i


def _interleaved(chunks: Bytes, checksums: NDArray[np.uint32]) -> list[memoryview]:
    """The memory of each chunk and of its checksum, in turn."""
    data, sums, size = chunks.data.cast("B"), checksums.data.cast("B"), chunks.shape[1]
    return [
        part
        for i in range(len(chunks))
        for part in (data[i * size : (i + 1) * size], sums[i * _CHECKSUM : (i + 1) * _CHECKSUM])
    ]


def _checksums(values: list[int]) -> Bytes:
    """crc32c values as rows of little-endian bytes."""
    return np.array(values, "<u4").view(np.uint8).reshape(-1, _CHECKSUM)
