"""Pictures of an evaluation, as PNG bytes: a roll-out beside the truth, and the error over time."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pretrain.evaluate import Evaluation, Example

_COLUMNS = 6
_DPI = 100
_UNDEFINED = "0.8"
Array = NDArray[np.float64]
# Okabe and Ito's palette, told apart with every common colour blindness; line styles and markers help in grey.
_LINES = (("#0072B2", "-", "o"), ("#D55E00", "-.", "s"), ("#009E73", ":", "^"), ("#CC79A7", "-", "v"))


def picture_rollout(example: Example) -> bytes:
    """Truth, prediction and their difference for every channel; columns run over the predicted frames.

    Truth and prediction share the truth's colour scale; the difference has its own, symmetric around zero. Times
    count from the last frame of the history. Values that are not finite are grey. In three dimensions the middle
    plane of the last axis is shown; in one, all frames are one image, with time upwards.
    """
    frames = np.unique(np.linspace(0, len(example.truth) - 1, _COLUMNS).round().astype(int))
    titles = [f"t = +{(frame + 1) * example.dt:.4g}" for frame in frames]
    one_axis = example.truth.ndim == 3
    if one_axis:
        frames = np.arange(len(example.truth))
        titles = [f"t = +{example.dt:.4g} to +{len(frames) * example.dt:.4g}"]
    # In float64, the difference of two float32 values cannot overflow.
    truth, prediction = (_planes(x[frames].astype(np.float64)) for x in (example.truth, example.prediction))
    rows, aspect = 3 * len(example.channels), 1.0 if one_axis else truth.shape[2] / truth.shape[1]
    width = 1.8 * (2 if one_axis else len(titles)) + 1.6
    figure = Figure(figsize=(width, rows * (1.7 * min(aspect, 2) + 0.1) + 0.6), layout="constrained")
    axes = figure.subplots(rows, len(titles), squeeze=False)
    for channel, name in enumerate(example.channels):
        own = axes[3 * channel : 3 * channel + 3]
        _draw_channel(figure, own, name, truth[..., channel], prediction[..., channel], one_axis)
    for column, title in enumerate(titles):
        axes[0, column].set_title(title, fontsize=10)
    return _png(figure)


def picture_error_over_time(evaluations: Mapping[str, Evaluation]) -> bytes:
    """Relative L2 of every predicted frame, one line a model, beside persistence; logarithmic.

    Args:
        evaluations: by the models' names; all of one dataset and split. A line ends where a trajectory diverges.
    """
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    first = next(iter(evaluations.values()))
    for number, (name, evaluation) in enumerate(evaluations.items()):
        colour, line, marker = _LINES[number % len(_LINES)]
        label = f"{name} ({evaluation.diverged} diverged)" if evaluation.diverged else name
        errors = [np.nan if error is None else error for error in evaluation.error_over_time]
        axes.plot(_times(evaluation), errors, color=colour, linestyle=line, marker=marker, markersize=4, label=label)
    axes.plot(_times(first), first.persistence_over_time, color="black", linestyle="--", label="persistence")
    if any((error or 0) > 0 for e in evaluations.values() for error in (*e.error_over_time, *e.persistence_over_time)):
        axes.set_yscale("log", nonpositive="mask")
    axes.set_xlabel("time after the last known frame")
    axes.set_ylabel("relative L2 of the frame")
    axes.grid(which="both", alpha=0.3)
    for text in axes.legend().get_texts():
        text.set_parse_math(False)  # names are names, whatever signs they hold
    return _png(figure)


def _planes(fields: Array) -> Array:
    """(T, X, Y, C) of (T, X, Y, C) or (T, X, Y, Z, C); (1, X, T, C) of (T, X, C)."""
    if fields.ndim == 3:
        return fields.swapaxes(0, 1)[None]
    return fields if fields.ndim == 4 else fields[:, :, :, fields.shape[3] // 2]


def _draw_channel(figure: Figure, axes: Any, name: str, truth: Array, prediction: Array, stretched: bool) -> None:
    """Three rows of images from (T, X, Y); points are square, or (`stretched`) fill the picture."""
    error, aspect = prediction - truth, "auto" if stretched else "equal"
    largest = float(np.abs(error, where=np.isfinite(error), out=np.zeros_like(error)).max())
    field = {"vmin": float(truth.min()), "vmax": float(truth.max()), "cmap": "viridis", "aspect": aspect}
    difference = {"vmin": -largest, "vmax": largest, "cmap": "RdBu_r", "aspect": aspect}
    for row, (what, frames, scale) in enumerate(
        (("truth", truth, field), ("prediction", prediction, field), ("error", error, difference))
    ):
        for column, frame in enumerate(frames):
            _draw(axes[row, column], frame, scale)
        axes[row, 0].set_ylabel(f"{name}\n{what}", fontsize=10, parse_math=False)
    figure.colorbar(axes[0, 0].images[0], ax=axes[:2].ravel().tolist(), shrink=0.8, pad=0.01)
    figure.colorbar(axes[2, 0].images[0], ax=axes[2].tolist(), shrink=0.8, pad=0.01)


def _draw(axes: Any, frame: Array, scale: Mapping[str, Any]) -> None:
    axes.set_facecolor(_UNDEFINED)
    # First axis to the right, second axis up.
    axes.imshow(np.ma.masked_invalid(frame.T), origin="lower", interpolation="nearest", **scale)
    axes.set_xticks([])
    axes.set_yticks([])


def _times(evaluation: Evaluation) -> list[float]:
    return [(k + 1) * evaluation.dt for k in range(evaluation.frames)]


def _png(figure: Figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=_DPI)
    return content.getvalue()
