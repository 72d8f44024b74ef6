"""How well an operator predicts a dataset's split: roll-outs from the first frames to the end, beside persistence."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import Field, InstanceOf
from torch import Tensor, nn

from data_pipeline.base.config import Config
from data_pipeline.base.errors import ConfigError, DataError, nearest
from data_pipeline.base.progress import Progress
from data_pipeline.config import ScoreConfig
from data_pipeline.stores.protocol import TrajectoryStore, read_window
from data_pipeline.trajectory import DatasetInfo, FloatArray, parameter_row
from pretrain.execution import full_float32
from pretrain.metrics import relative_l2_per_channel, relative_l2_per_frame, vrmse
from pretrain.model.operator import Operator
from pretrain.rollout import rollout

_EVERYTHING = ScoreConfig()


@dataclass(frozen=True, eq=False)
class Example:
    """One roll-out beside the truth; both (T, *space, C), predicted frames only, physical units."""

    dataset: str
    channels: tuple[str, ...]
    dt: float
    truth: FloatArray
    prediction: FloatArray


class Evaluation(Config):
    """Errors over a split, means over its trajectories and the dataset's own channels, physical units.

    Of data with a mask only the points in the domain count. `None` stands for an error that is not finite: a mean over
    the trajectories that did not diverge would flatter the operator. Persistence repeats the last frame of the
    history. `model_dump(mode="json")` is JSON-able.
    """

    dataset: str
    split: str
    digest: str
    """The store's digest of the data."""
    channels: tuple[str, ...]
    """Those that were scored."""
    dt: float
    """Time between two frames."""
    trajectories: int
    frames: int
    """Frames of each trajectory that were predicted and scored."""
    every: int = 1
    """Every so many grid points along each axis were scored."""
    diverged: int
    """Trajectories whose roll-out is not finite."""
    relative_l2: float | None
    """Of the whole roll-out, as in `pretrain.metrics.relative_l2`."""
    persistence: float
    one_step: float | None
    """Relative L2 of the first frame predicted from a true history, mean over every possible history."""
    one_step_persistence: float
    vrmse: float | None
    """`pretrain.metrics.vrmse` of the roll-out, mean over frames and channels."""
    persistence_vrmse: float
    per_channel: dict[str, float | None]
    """`relative_l2` by field name."""
    persistence_per_channel: dict[str, float]
    error_over_time: tuple[float | None, ...]
    """Relative L2 of each predicted frame, mean over channels."""
    persistence_over_time: tuple[float, ...]
    example: InstanceOf[Example] | None = Field(default=None, exclude=True, repr=False)
    """The first trajectory's roll-out, for the picture; not part of the JSON."""


def evaluate(
    operator: Operator,
    store: TrajectoryStore,
    *,
    batch_size: int = 8,
    device: str | torch.device = "cpu",
    limit: int | None = None,
    score: ScoreConfig = _EVERYTHING,
    quiet: bool = False,
) -> Evaluation:
    """Roll out every trajectory of the store's split from its first T_in frames to its end.

    Args:
        operator: moved to `device`; evaluated in eval mode, its mode restored afterwards.
        store: an open split.
        batch_size: trajectories at a time; the result does not depend on it.
        device: where to predict, in full float32 and without TF32, however the operator was trained. Errors are
            computed on the host.
        limit: take only so many trajectories, the first ones.
        score: which frames, points and fields count.
        quiet: show no progress.

    Raises:
        DataError: the split is empty, its trajectories are too short, or it holds NaN or Inf.
        ConfigError: the operator does not know the dataset, or knows it with other channels, grid or dt; a field to
            score is not there.
    """
    if batch_size < 1 or (limit is not None and limit < 1):
        raise ConfigError(
            "nothing to evaluate", found=f"batch_size {batch_size}, limit {limit}", expected="at least 1"
        )
    _check_split(store, operator.frames_in)
    slots = _slots(operator, store.info)
    row = operator.dataset_index(store.info.name)
    scored = _scored(store.info, score)
    end = store.info.frames if score.frames is None else operator.frames_in + score.frames
    count = min(len(store), limit or len(store))
    batches: list[dict[str, Tensor]] = []
    example: Example | None = None
    operator.to(device)
    with (
        _eval_mode(operator),
        full_float32(),
        Progress(f"evaluate {store.info.name} {store.split}", count, unit="trajectories", quiet=quiet) as progress,
    ):
        for start in range(0, count, batch_size):
            trajectories = range(start, min(start + batch_size, count))
            frames = _read(store, trajectories)[:, :end]
            history, truth = frames[:, : operator.frames_in], frames[:, operator.frames_in :]
            parameters = _parameters(store, trajectories, operator.config.parameters)
            mask = _masks(store, trajectories)
            predict = partial(_predict, operator, row=row, slots=slots, parameters=parameters, mask=mask)
            prediction = predict(history, steps=truth.shape[1])
            example = example or _example(store.info, truth[0], prediction[0])
            points = _scored_points(mask, frames, score.every)
            one_step = _one_step(predict, frames, operator.frames_in, points)[..., scored]
            prediction, truth, frames = (x[..., scored] for x in (prediction, truth, frames))
            batches.append(_errors(prediction, truth, frames, points) | {"one_step": one_step})
            progress.advance(len(frames))
    errors = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
    return _summarise(store, errors, [store.info.channels[number] for number in scored], score.every, example)


def _scored(info: DatasetInfo, score: ScoreConfig) -> list[int]:
    """Numbers of the channels that count."""
    for channel in score.channels:
        if channel not in info.channels:
            remedy = nearest(channel, list(info.channels))
            raise ConfigError(
                "no such field to score", file=info.name, key="score.channels", found=channel, remedy=remedy
            )
    return [info.channels.index(channel) for channel in score.channels or info.channels]


def _scored_points(mask: Tensor | None, frames: Tensor, every: int) -> Tensor | None:
    """The points that count, bool (B, *space), of trajectories (B, T, *space, c); None where all do."""
    if every == 1:
        return mask
    chosen = torch.zeros_like(frames[:, 0, ..., 0], dtype=torch.bool)
    chosen[(slice(None), *(slice(None, None, every),) * (chosen.ndim - 1))] = True
    return chosen if mask is None else chosen & mask


def _check_split(store: TrajectoryStore, frames_in: int) -> None:
    info = store.info
    if len(store) == 0:
        raise DataError(
            f"dataset {info.name!r} has no trajectory in split {store.split!r}",
            file=store.path,
            remedy="evaluate another split, or build the dataset with trajectories in this one",
        )
    if info.frames <= frames_in:
        raise DataError(
            f"the trajectories of dataset {info.name!r} are too short to predict a frame of them",
            file=store.path,
            found=f"{info.frames} frames",
            expected=f"more than the operator's history of {frames_in}",
        )


def _slots(operator: Operator, info: DatasetInfo) -> list[int]:
    """The operator's slots of the store's channels, in the store's order."""
    known = operator.config.datasets[operator.dataset_index(info.name)]
    same = set(info.channels) == set(known.channels) and operator.takes_grid(info.space, info.name)
    if not same or not math.isclose(info.dt, known.dt, rel_tol=1e-6):
        raise ConfigError(
            f"dataset {info.name!r} is not as the operator knows it",
            found=f"channels {', '.join(info.channels)}; grid {info.space}; dt {info.dt:g}",
            expected=f"channels {', '.join(known.channels)}; grid {operator.grid(info.name)}; dt {known.dt:g}",
            remedy="evaluate on the data the operator was trained for, or adapt it to these by fine-tuning",
        )
    return operator.slots(info.name, info.channels)


@contextmanager
def _eval_mode(operator: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in operator.modules()]
    operator.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _read(store: TrajectoryStore, trajectories: range) -> Tensor:
    """Whole trajectories, (B, T, *space, c)."""
    frames = torch.stack([torch.from_numpy(read_window(store, i, 0, store.info.frames)) for i in trajectories])
    finite = frames.flatten(1).isfinite().all(dim=1)
    if not finite.all():
        raise DataError(
            f"split {store.split!r} of dataset {store.info.name!r} holds NaN or Inf",
            file=store.path,
            found=f"in trajectory {trajectories[int(finite.int().argmin())]}",
        )
    return frames


def _parameters(store: TrajectoryStore, trajectories: range, names: Sequence[str]) -> Tensor:
    """The PDE parameters of trajectories, (B, P)."""
    rows = [parameter_row(store.parameters(i), names) for i in trajectories]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(names))


def _masks(store: TrajectoryStore, trajectories: range) -> Tensor | None:
    """The points in the domain of trajectories, bool (B, *space); None where all are."""
    masks = [store.mask(i) for i in trajectories] if store.info.masked else []
    found = [torch.from_numpy(mask) for mask in masks if mask is not None]
    return torch.stack(found) if found else None


def _predict(
    operator: Operator,
    frames: Tensor,
    *,
    row: int,
    slots: list[int],
    parameters: Tensor,
    mask: Tensor | None,
    steps: int,
) -> Tensor:
    """Roll out from frames (B, T_in, *space, c): (B, steps, *space, c), on the host."""
    batch, device = frames.shape[0], operator.scale.device
    history = torch.zeros(*frames.movedim(1, -2).shape[:-1], len(operator.config.channels))
    history[..., slots] = frames.movedim(1, -2)
    dataset = torch.full((batch,), row, device=device)
    inside = None if mask is None else mask.to(device)
    prediction = frames.new_empty(batch, steps, *frames.shape[2:])
    for step, frame in enumerate(rollout(operator, history.to(device), dataset, steps, parameters.to(device), inside)):
        prediction[:, step] = frame[..., slots].cpu()
    return prediction


def _one_step(predict: Callable[..., Tensor], frames: Tensor, T_in: int, mask: Tensor | None) -> Tensor:
    """Relative L2 of the frame after every true history: (B, T - T_in, c)."""
    starts = range(frames.shape[1] - T_in)
    predicted = [predict(frames[:, s : s + T_in], steps=1) for s in starts]
    return relative_l2_per_frame(torch.cat(predicted, dim=1), frames[:, T_in:], mask)


def _errors(prediction: Tensor, truth: Tensor, frames: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """Errors of each trajectory: (B, c) for the blocks, (B, T, c) for the others."""
    before = frames[:, -truth.shape[1] - 1 : -1]
    persistence = before[:, :1].expand_as(truth)
    return {
        "relative_l2": relative_l2_per_channel(prediction, truth, mask),
        "over_time": relative_l2_per_frame(prediction, truth, mask),
        "vrmse": vrmse(prediction, truth, mask),
        "persistence": relative_l2_per_channel(persistence, truth, mask),
        "persistence_over_time": relative_l2_per_frame(persistence, truth, mask),
        "persistence_vrmse": vrmse(persistence, truth, mask),
        "one_step_persistence": relative_l2_per_frame(before, truth, mask),
    }


def _example(info: DatasetInfo, truth: Tensor, prediction: Tensor) -> Example:
    # Copies: views would keep their whole batch in memory.
    return Example(info.name, info.channels, info.dt, truth.numpy().copy(), prediction.numpy().copy())


def _summarise(
    store: TrajectoryStore, errors: dict[str, Tensor], channels: list[str], every: int, example: Example | None
) -> Evaluation:
    info = store.info
    return Evaluation(
        dataset=info.name,
        split=store.split,
        digest=store.digest,
        channels=tuple(channels),
        every=every,
        dt=info.dt,
        trajectories=len(errors["relative_l2"]),
        frames=errors["over_time"].shape[1],
        diverged=int((~errors["relative_l2"].isfinite()).any(dim=1).sum()),
        relative_l2=_finite(errors["relative_l2"].mean()),
        persistence=errors["persistence"].mean().item(),
        one_step=_finite(errors["one_step"].mean()),
        one_step_persistence=errors["one_step_persistence"].mean().item(),
        vrmse=_finite(errors["vrmse"].mean()),
        persistence_vrmse=errors["persistence_vrmse"].mean().item(),
        per_channel=dict(zip(channels, map(_finite, errors["relative_l2"].mean(dim=0)), strict=True)),
        persistence_per_channel=dict(zip(channels, errors["persistence"].mean(dim=0).tolist(), strict=True)),
        error_over_time=tuple(map(_finite, errors["over_time"].mean(dim=(0, 2)))),
        persistence_over_time=tuple(errors["persistence_over_time"].mean(dim=(0, 2)).tolist()),
        example=example,
    )


def _finite(value: Tensor) -> float | None:
    return value.item() if value.isfinite() else None
