"""One trajectory at a time out of an HDF5 file in The Well's layout."""

import numpy as np

from data_pipeline.sources.hdf5 import Hdf5Reader
from data_pipeline.sources.well_header import Field, WellHeader
from data_pipeline.trajectory import FloatArray, Trajectory


def read_field(reader: Hdf5Reader, header: WellHeader, field: Field, index: int) -> FloatArray:
    """A field of one trajectory, float32 ([T,] *space, components), broadcast along axes where it does not vary.

    Raises:
        DataError: the bytes cannot be read.
    """
    stored = reader.slab(reader.dataset(field.key), field.key, (index,) if field.sample_varying else ())
    lead = (header.frames,) if field.time_varying else ()
    with np.errstate(over="ignore"):
        values = stored.astype(np.float32, copy=False).reshape(field.stored_shape)
    return np.broadcast_to(values, (*lead, *header.space, len(field.channels)))


def read_trajectory(reader: Hdf5Reader, header: WellHeader, index: int, *, finite: bool = True) -> Trajectory:
    """Trajectory `index` of a file.

    Args:
        reader: the open file.
        header: its header.
        index: number of the trajectory in this file.
        finite: raise on NaN and Inf (also on numbers too large for float32); else let them through.

    Raises:
        DataError: the bytes cannot be read, or a field holds NaN or Inf.
    """
    fields = np.empty((header.frames, *header.space, len(header.channels)), np.float32)
    static = np.empty((*header.space, len(header.static_channels)), np.float32)
    filled = {True: 0, False: 0}
    for field in header.fields:
        values = read_field(reader, header, field, index)
        if finite:
            _check_finite(reader, field, index, values)
        target, start = (fields if field.time_varying else static), filled[field.time_varying]
        filled[field.time_varying] = start + len(field.channels)
        target[..., start : start + len(field.channels)] = values
    return Trajectory(
        fields=fields,
        times=header.times[index if len(header.times) > 1 else 0],
        parameters={name: float(values[index]) for name, values in header.parameters.items()},
        static=static if header.static_channels else None,
        provenance={"file": header.path.name, "index": index, "boundary_conditions": header.conditions},
    )


def _check_finite(reader: Hdf5Reader, field: Field, index: int, values: FloatArray) -> None:
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    place = np.argwhere(bad)[0]
    first = f"trajectory {index}" + (f", first in frame {place[0]}" if field.time_varying else "")
    stored = reader.dataset(field.key).dtype
    raise reader.error(
        "NaN or Inf in a field",
        field.key,
        found=f"{int(bad.sum())} values in {first}, channel {field.channels[place[-1]]} (stored as {stored})",
        expected="finite numbers, within the range of float32",
        remedy="leave the trajectory out, or mend the simulation",
    )
