"""Frames of one trajectory out of an HDF5 file in The Well's layout."""

import numpy as np

from data_pipeline.sources.hdf5 import Hdf5Reader
from data_pipeline.sources.well_header import Field, WellHeader
from data_pipeline.trajectory import FloatArray, Trajectory


def read_field(reader: Hdf5Reader, header: WellHeader, field: Field, index: int, frames: slice) -> FloatArray:
    """A field of one trajectory, float32 ([T,] *space, components), broadcast along axes where it does not vary.

    Raises:
        DataError: the bytes cannot be read.
    """
    place: tuple[int | slice, ...] = (index,) if field.sample_varying else ()
    lead: tuple[int, ...] = ()
    if field.time_varying:
        place, lead = (*place, frames), (len(range(header.frames)[frames]),)
    stored = reader.slab(reader.dataset(field.key), field.key, place)
    with np.errstate(over="ignore"):
        values = stored.astype(np.float32, copy=False).reshape(*lead, *field.stored_shape[len(lead) :])
    return np.broadcast_to(values, (*lead, *header.space, len(field.channels)))


def read_trajectory(reader: Hdf5Reader, header: WellHeader, index: int, frames: slice) -> Trajectory:
    """Some frames of trajectory `index` of a file; NaN and Inf are let through.

    Raises:
        DataError: the bytes cannot be read.
    """
    times = header.times[index if len(header.times) > 1 else 0][frames]
    fields = np.empty((len(times), *header.space, len(header.channels)), np.float32)
    static = np.empty((*header.space, len(header.static_channels)), np.float32)
    filled = {True: 0, False: 0}
    for field in header.fields:
        values = read_field(reader, header, field, index, frames)
        target, start = (fields if field.time_varying else static), filled[field.time_varying]
        filled[field.time_varying] = start + len(field.channels)
        target[..., start : start + len(field.channels)] = values
    return Trajectory(
        fields=fields,
        times=times,
        parameters={name: float(values[index]) for name, values in header.parameters.items()},
        static=static if header.static_channels else None,
        provenance={"boundary_conditions": header.conditions},
    )
