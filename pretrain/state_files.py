"""Tensors in safetensors files: written in one pass with their digest, read a stretch at a time.

The library's own writer wants every tensor as bytes, and gives no digest; a checkpoint is written behind a training
loop, which should find the processor and Python's lock free. The format is a header in JSON, then the tensors' bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipeline.base.errors import CheckpointError

_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.bfloat16: "BF16", torch.bool: "BOOL"}
_CHUNK = 2**24  # bytes that are hashed and written together, while they are in the processor's cache


class Written(NamedTuple):
    """A file that is on the disk."""

    size: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Write a new safetensors file, durably.

    Args:
        path: the file; it must not exist.
        tensors: in the host's memory, contiguous.
    """
    header, offset = {}, 0
    for name, tensor in tensors.items():
        assert tensor.is_contiguous()
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of their size
    digest, written = hashlib.sha256(), 0
    with path.open("xb", buffering=0) as file:
        parts: list[bytes | memoryview] = [len(text).to_bytes(8, "little") + text, *map(_bytes, tensors.values())]
        for part in (memoryview(each) for each in parts):
            for first in range(0, len(part), _CHUNK):
                chunk = part[first : first + _CHUNK]
                digest.update(chunk)
                _write_all(file.fileno(), chunk)
            written += len(part)
        os.fsync(file.fileno())
    return Written(written, digest.hexdigest())


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _write_all(handle: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(handle, chunk) :]


class Stretches:
    """Flat pieces of larger tensors, found in several files by the name of what they belong to.

    A piece is stored as `KEY|NAME|START`: the elements of tensor `NAME`'s state `KEY` from number START on.

    Args:
        files: the files, those first that are likely to hold what is asked for.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._unread, self._pieces = list(files), dict[str, list[tuple[int, int, Path, str]]]()
        self._keys: dict[str, set[str]] = {}

    @staticmethod
    def name(key: str, name: str, start: int) -> str:
        """What a piece is called in its file."""
        return f"{key}|{name}|{start}"

    def read(self, key: str, name: str, start: int, size: int) -> Tensor:
        """Elements `start` to `start + size` (N,) of a state.

        Raises:
            CheckpointError: the files do not hold all of them, or one cannot be read.
        """
        result, missing = torch.empty(size), size
        for first, length, path, stored in self._overlapping(f"{key}|{name}", start, size):
            begin, end = max(start, first), min(start + size, first + length)
            try:
                with safe_open(path, "pt") as file:
                    result[begin - start : end - start] = file.get_slice(stored)[begin - first : end - first]
            except (SafetensorError, OSError) as error:
                raise CheckpointError("a file of the checkpoint cannot be read", file=path, found=error) from None
            missing -= end - begin
        if missing:
            raise CheckpointError(
                f"the checkpoint lacks {missing} of {size} elements", key=f"{key} of {name}",
                remedy="take another checkpoint: this one was not written by this version",
            )  # fmt: skip
        return result

    def keys(self, name: str) -> set[str]:
        """What the files hold of a tensor. Files are opened until one has any of it: that one has a piece of each."""
        while name not in self._keys and self._unread:
            self._read_header(self._unread.pop(0))
        return self._keys.get(name, set())

    def _overlapping(self, what: str, start: int, size: int) -> list[tuple[int, int, Path, str]]:
        """Pieces that do not overlap one another and cover the range, as far as there are any; files are opened only
        until it is covered."""
        while True:
            found = [p for p in self._pieces.get(what, ()) if p[0] < start + size and p[0] + p[1] > start]
            covered = sum(min(start + size, first + n) - max(start, first) for first, n, *_ in found)
            if covered == size or not self._unread:
                return found
            self._read_header(self._unread.pop(0))

    def _read_header(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                for stored in file.keys():  # noqa: SIM118 - a reader, not a mapping
                    what, _, first = stored.rpartition("|")
                    key, _, name = what.partition("|")
                    self._keys.setdefault(name, set()).add(key)
                    length = file.get_slice(stored).get_shape()[0]
                    self._pieces.setdefault(what, []).append((int(first), length, path, stored))
        except (SafetensorError, OSError) as error:
            raise CheckpointError("a file of the checkpoint cannot be read", file=path, found=error) from None
