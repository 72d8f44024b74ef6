"""The arrays of a Zarr folder that others wrote, version 2 or 3, where a chunk that is not there is an error."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.errors import BaseZarrError

from data_pipeline.base.errors import DataError
from data_pipeline.sources.arrays import Array, Arrays, damage, numeric_array
from data_pipeline.sources.npy import Index


@contextmanager
def open_zarr(path: Path) -> Iterator[Arrays]:
    """Open the folder of an array or group. Raises DataError when it cannot be read."""
    try:
        with damage(path):
            node = zarr.open(path, mode="r")
    except BaseZarrError as error:
        raise DataError("not a readable Zarr array or group", file=path, found=error) from None
    if isinstance(node, zarr.Array):
        yield Arrays(path, (), lambda _: _zarr_array(path, None, node))
        return
    members = {name: one for name, one in node.members(max_depth=None) if isinstance(one, zarr.Array)}
    yield Arrays(path, tuple(members), lambda key: _zarr_array(path, key, members[key]))


def _zarr_array(path: Path, key: str | None, array: Any) -> Array:
    def part(index: Index) -> NDArray[Any]:
        _check_chunks(path, key, array, index)
        return np.asarray(array[index])

    return numeric_array(path, key, array.shape, array.dtype, part)


def _check_chunks(path: Path, key: str | None, array: Any, index: Index) -> None:
    """Raise DataError when a file that holds some of a part is not there or is empty."""
    sizes = array.shards or array.chunks
    picked = [range(i, i + 1) if isinstance(i, int) else range(n)[i] for i, n in zip(index, array.shape, strict=True)]
    touched = [sorted({i // size for i in axis}) for axis, size in zip(picked, sizes, strict=True)]
    for place in product(*touched):
        file = path / array.path / array.metadata.encode_chunk_key(place)
        if not file.is_file() or not file.stat().st_size:
            raise DataError(
                "a chunk is missing, which Zarr would read as the fill value",
                file=file,
                key=key,
                found="an empty file" if file.exists() else "no such file",
                remedy="fetch the array again; if its writer left chunks out because they hold nothing but the fill "
                "value, copy it with zarr.config.set({'array.write_empty_chunks': True})",
            )
