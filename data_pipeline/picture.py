"""A picture of one trajectory: a row for each channel, a column for each of a few frames."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from data_pipeline.base.files import write_bytes
from data_pipeline.trajectory import DatasetInfo, FloatArray

_COLUMNS = 6


def draw_trajectory(fields: FloatArray, info: DatasetInfo, path: Path) -> None:
    """Write a PNG of a trajectory.

    Curves in 1D, images in 2D, in 3D images of the middle slice along the last axis. The colours of a row are the same
    in all frames; a channel with both signs gets a scale that is symmetric about zero.

    Args:
        fields: float32 (T, *space, C).
        info: names of the channels and axes, extent and time step.
        path: the PNG file.
    """
    frames = np.unique(np.linspace(0, len(fields) - 1, _COLUMNS).round().astype(int))
    shown = fields if len(info.space) < 3 else fields[:, :, :, info.space[2] // 2]
    rows = len(info.channels)
    figure = Figure(figsize=(2.4 * len(frames) + 1.5, 2.4 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, len(frames), squeeze=False)
    for row, channel in enumerate(info.channels):
        values = shown[frames][..., row]
        low, high = _limits(values)
        for panel, frame, picture in zip(panels[row], frames, values, strict=True):
            image = _draw_frame(panel, picture, info, low, high)
            panel.set_title(f"{channel}, t = {frame * info.dt:.4g}", fontsize=8)
        if image is not None:
            figure.colorbar(image, ax=list(panels[row]), shrink=0.9)
    figure.suptitle(_title(info))
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes(path, buffer.getvalue())


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
    panel.tick_params(labelsize=6)
    panel.set_xlabel(info.axes[0], fontsize=7)
    if values.ndim == 1:
        panel.plot(np.linspace(*info.extent[0], len(values), endpoint=info.boundaries[0] != "periodic"), values, lw=1)
        margin = 0.05 * (high - low)
        panel.set_ylim(low - margin, high + margin)
        return None
    panel.set_ylabel(info.axes[1], fontsize=7)
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


def _span(ends: tuple[float, float]) -> tuple[float, float]:
    """The ends of an axis, pulled apart where it has one point only."""
    low, high = ends
    return (low, high) if low < high else (low - 0.5, high + 0.5)
