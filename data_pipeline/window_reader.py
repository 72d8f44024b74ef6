"""One sample's window, from its store to its row of a batch: channels into slots, shifts along periodic axes."""

import threading
from collections.abc import Sequence
from itertools import product

import numpy as np

from data_pipeline.base.errors import DataError
from data_pipeline.mixture import Draw, positional_generator, positional_seed
from data_pipeline.stores.protocol import TrajectoryStore
from data_pipeline.trajectory import BoolArray, DatasetInfo, FloatArray

_scratch = threading.local()


class WindowReader:
    """Reads windows of one dataset. Safe to share between threads.

    Args:
        store: the dataset's split.
        slots: the channel slots that its fields fill, in the order of its channels.
        num_channels: channel slots of a batch.
        shift_seed: keys the random shifts; None for none. Only datasets whose equation is the same everywhere shift.
    """

    def __init__(
        self, store: TrajectoryStore, slots: Sequence[int], num_channels: int, shift_seed: int | None
    ) -> None:
        assert len(slots) == len(store.info.channels)
        self.store = store
        self._shift_seed = shift_seed if store.info.translation_invariant else None
        self._runs = _runs(slots)
        self._missing = sorted(set(range(num_channels)) - set(slots))
        self._in_place = list(slots) == list(range(num_channels))

    def read(
        self, draw: Draw, position: int, out: FloatArray, mask: BoolArray | None, lead: int | None = None
    ) -> None:
        """Fill a sample's row.

        Args:
            draw: the window.
            position: the sample's number.
            out: (T_in + T_out, *space, C).
            mask: (*space), gets the points that belong to the domain; None where no dataset has such a mask.
            lead: the last frame of `out` is to be that many frames after the one before it; None for frames in a row.

        Raises:
            DataError: the window cannot be read; names the sample, and says how to go on without its trajectory.
        """
        try:
            offsets = self._offsets(position)
            if self._in_place and not any(offsets):
                self._read_frames(draw, out, lead)
            else:
                window = _scratch_array((*out.shape[:-1], len(self.store.info.channels)))
                self._read_frames(draw, window, lead)
                self._place(window, out, offsets)
            if mask is not None:
                inside = self.store.mask(draw.trajectory) if self.store.info.masked else None
                _copy_rolled(np.ones_like(mask) if inside is None else inside, mask, offsets)
        except DataError as error:
            raise self._unreadable(error, draw, position, len(out) - 1 + (lead or 1)) from error

    def _read_frames(self, draw: Draw, out: FloatArray, lead: int | None) -> None:
        if lead is None:
            self.store.read_into(draw.trajectory, draw.start, out)
            return
        # Not the frames in between: far leads would cost as much as long windows.
        self.store.read_into(draw.trajectory, draw.start, out[:-1])
        self.store.read_into(draw.trajectory, draw.start + len(out) - 2 + lead, out[-1:])

    def _place(self, window: FloatArray, out: FloatArray, offsets: Sequence[int]) -> None:
        out[..., self._missing] = 0
        for first, last, slot in self._runs:
            _copy_rolled(window[..., first:last], out[..., slot : slot + last - first], (0, *offsets))

    def _offsets(self, position: int) -> list[int]:
        """Grid points by which the sample is rolled along each axis."""
        info = self.store.info
        if self._shift_seed is None:
            return [0] * len(info.space)
        drawn = positional_generator(self._shift_seed, position, "shift").integers(info.space)
        return [int(n) if b == "periodic" else 0 for n, b in zip(drawn, info.boundaries, strict=True)]

    def _unreadable(self, error: DataError, draw: Draw, position: int, frames: int) -> DataError:
        info: DatasetInfo = self.store.info
        entry = f"{{dataset: {info.name}, trajectories: [{draw.trajectory}], reason: damaged}}"
        return DataError(
            str(error),
            found=f"sample {position}: frames {draw.start}..{draw.start + frames} of trajectory {draw.trajectory} of "
            f"{info.name}",
            remedy="or leave the trajectory out from the last checkpoint on: pdepot pretrain CONFIG --new-segment, "
            f"with these lines in CONFIG\n    data:\n      quarantine:\n        - {entry}",
        )


def drawn_lead(seed: int, position: int, furthest: int) -> int:
    """The lead of sample number `position`, from 1 to `furthest` frames, each as likely as the others."""
    return 1 + positional_seed(seed, position, "lead") % furthest


def _runs(slots: Sequence[int]) -> list[tuple[int, int, int]]:
    """Fields that go to neighbouring slots: (first field, last field + 1, first slot)."""
    runs: list[tuple[int, int, int]] = []
    for field, slot in enumerate(slots):
        if runs and slot == runs[-1][2] + field - runs[-1][0]:
            runs[-1] = (runs[-1][0], field + 1, runs[-1][2])
        else:
            runs.append((field, field + 1, slot))
    return runs


def _scratch_array(shape: tuple[int, ...]) -> FloatArray:
    """This thread's working memory, which its next call uses again."""
    size = int(np.prod(shape))
    if getattr(_scratch, "memory", np.empty(0)).size < size:
        _scratch.memory = np.empty(size, np.float32)
    array: FloatArray = _scratch.memory[:size].reshape(shape)
    return array


def _copy_rolled(source: np.ndarray, target: np.ndarray, offsets: Sequence[int]) -> None:
    """`target[...] = np.roll(source, offsets)` along the first axes, in one copy."""
    # Along each axis, the part that moves up and the part that comes round; as (from, to) slices.
    parts = [
        [(slice(None, n - by), slice(by, None)), (slice(n - by, None), slice(None, by))]
        if by
        else [(slice(None),) * 2]
        for n, by in zip(source.shape, offsets, strict=False)
    ]
    for corner in product(*parts):
        there, here = tuple(part[1] for part in corner), tuple(part[0] for part in corner)
        target[there] = source[here]
