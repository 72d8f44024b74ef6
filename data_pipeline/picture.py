"""A picture of one trajectory: a row for each channel, a column for each of a few frames, and what does not change."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data_pipeline.base.files import write_bytes
from data_pipeline.trajectory import BoolArray, DatasetInfo, FloatArray, grid

_COLUMNS = 6


def drawn_frames(frames: int) -> list[int]:
    """Numbers of the frames that a picture of a trajectory shows."""
    numbers: list[int] = np.unique(np.linspace(0, frames - 1, _COLUMNS).round().astype(int)).tolist()
    return numbers


def draw_trajectory(
    fields: FloatArray,
    numbers: Sequence[int],
    info: DatasetInfo,
    path: Path,
    *,
    static: FloatArray | None = None,
    mask: BoolArray | None = None,
) -> None:
    """Write a PNG of a trajectory: a row for each channel, a column for each frame, then the static fields.

    Curves in 1D, images in 2D, in 3D images of the middle slice along the last axis. The colours of a row are the same
    in all frames; a channel with both signs gets a scale that is symmetric about zero. Points outside of the domain
    are grey.

    Args:
        fields: float32 (n, *space, C), some frames.
        numbers: (n,), which ones, `drawn_frames`.
        info: names of the channels and axes, extent and time step.
        path: the PNG file.
        static: float32 (*space, S), or None.
        mask: bool (*space), or None.
    """
    channels = np.moveaxis(_visible(fields, info, mask), -1, 0)
    unknown = np.isnan(info.dt)
    captions = [f"frame {number}" if unknown else f"t = {number * info.dt:.4g}" for number in numbers]
    rows = [(name, captions, values) for name, values in zip(info.channels, channels, strict=True)]
    if static is not None:
        fixed = np.moveaxis(_visible(static[None], info, mask), -1, 0)
        rows += [(name, ["static"], values) for name, values in zip(info.static_channels, fixed, strict=True)]
    figure = Figure(figsize=(2.4 * len(numbers) + 1.5, 2.4 * len(rows) + 0.6), layout="constrained")
    panels = figure.subplots(len(rows), len(numbers), squeeze=False)
    for number, (line, (name, captions, values)) in enumerate(zip(panels, rows, strict=True)):
        low, high = _limits(values)
        for panel in line[len(captions) :]:
            panel.set_axis_off()
        for panel, caption, picture in zip(line, captions, values, strict=False):
            image = _draw_frame(panel, picture, info, low, high)
            panel.set_title(f"{name}, {caption}", fontsize=8)
            # Axes are the same in all panels: they are labelled below the last field and at the left.
            _label(panel, info, below=number >= len(info.channels) - 1, left=panel is line[0])
        if image is not None:
            figure.colorbar(image, ax=list(line), shrink=0.9)
    figure.suptitle(_title(info))
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())


def _visible(fields: FloatArray, info: DatasetInfo, mask: BoolArray | None) -> FloatArray:
    """(n, *space, C) to what is drawn of it, (n, X[, Y], C): NaN outside of the domain, the middle slice in 3D."""
    shown = fields if mask is None else np.where(mask[..., None], fields, np.float32(np.nan))
    return shown if len(info.space) < 3 else shown[:, :, :, info.space[2] // 2]


def _title(info: DatasetInfo) -> str:
    if len(info.space) < 3:
        return info.name
    return f"{info.name}, slice {info.space[2] // 2} of {info.space[2]} along {info.axes[2]}"


def _limits(values: NDArray[np.float32]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < 0 < high:
        high = max(-low, high)
        low = -high
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _draw_frame(panel: Any, values: NDArray[np.float32], info: DatasetInfo, low: float, high: float) -> Any:
    """Draw one frame; the image, for the colour bar, or None for a curve."""
    if values.ndim == 1:
        panel.plot(grid(info)[0], values, lw=1)
        margin = 0.05 * (high - low)
        panel.set_ylim(low - margin, high + margin)
        return None
    panel.set_facecolor("0.6")  # shows through where there are no values
    colours = "RdBu_r" if low == -high else "viridis"
    (left, right), (bottom, top) = (_span(ends) for ends in info.extent[:2])
    ratio = (right - left) / (top - bottom)
    # imshow puts the first axis upright; transposed and from below, x runs to the right and y upwards.
    return panel.imshow(
        values.T,
        origin="lower",
        extent=(left, right, bottom, top),
        aspect="equal" if 0.2 < ratio < 5 else "auto",
        vmin=low,
        vmax=high,
        cmap=colours,
    )


def _label(panel: Any, info: DatasetInfo, *, below: bool, left: bool) -> None:
    panel.tick_params(labelsize=6, labelbottom=below, labelleft=left)
    if below:
        panel.set_xlabel(info.axes[0], fontsize=7)
    if left and len(info.axes) > 1:
        panel.set_ylabel(info.axes[1], fontsize=7)


def _span(ends: tuple[float, float]) -> tuple[float, float]:
    """The ends of an axis, pulled apart where it has one point only."""
    low, high = ends
    return (low, high) if low < high else (low - 0.5, high + 0.5)
