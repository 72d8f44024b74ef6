"""Autoregressive inference: the operator's predictions become its history."""

from collections.abc import Iterator

import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from pretrain.model.operator import Operator


def rollout(
    operator: Operator,
    history: Tensor,
    dataset: Tensor,
    steps: int,
    parameters: Tensor | None = None,
    mask: Tensor | None = None,
) -> Iterator[Tensor]:
    """Predict `steps` frames, and yield each as it comes.

    No gradients are kept, and memory does not grow with `steps`: only the last T_in frames are held. Slots of
    channels that a sample's dataset does not have are zero, in the operator's inputs and in the yielded frames,
    whatever `history` holds there and whatever the network puts there. The operator's training mode is left alone.

    Args:
        operator: predicts T_out >= 1 frames at a time.
        history: (B, *space, T_in, C), physical units, channels in the operator's slots. Axes of the network that the
            datasets lack are left out, or have one point.
        dataset: (B,) int64, row of each sample's dataset.
        steps: frames to predict; surplus frames of the last block are dropped.
        parameters: (B, P), each sample's PDE parameters, as in `Operator.forward`.
        mask: bool (B, *space), true at the points that belong to the domain; None where all do. The others keep the
            values of the last frame of the history: no loss has taught the operator what is there.

    Returns:
        An iterator of frames (B, *space, C), physical units.

    Raises:
        ConfigError: history, dataset, steps, parameters or mask do not fit the operator. Raised at the call, not at
            the first frame.
    """
    _check(operator, history, dataset, steps, parameters)
    _check_mask(mask, history)
    expand = (slice(None), *(None,) * (history.ndim - 2))
    return _frames(operator, history, dataset, operator.owned[dataset][expand], steps, parameters, mask)


def rollout_block(
    operator: Operator,
    history: Tensor,
    dataset: Tensor,
    steps: int,
    parameters: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """All frames of `rollout` at once: (B, steps, *space, C)."""
    frames = rollout(operator, history, dataset, steps, parameters, mask)
    block = history.new_empty(history.shape[0], steps, *history.shape[1:-2], history.shape[-1])
    for step, frame in enumerate(frames):
        block[:, step] = frame
    return block


# The decorator, not a `with` block: the mode then ends at every yield instead of leaking into the caller.
@torch.inference_mode()
def _frames(
    operator: Operator,
    history: Tensor,
    dataset: Tensor,
    owned: Tensor,
    steps: int,
    parameters: Tensor | None,
    mask: Tensor | None,
) -> Iterator[Tensor]:
    # `where`, not a product: zero times NaN is NaN.
    window = torch.where(owned, history, 0.0)
    folded = operator.fold(history.shape[1:-2])
    done = 0
    while done < steps:
        block = torch.where(owned, operator(window, dataset, parameters, folded), 0.0)
        block = held(block, window, mask)
        window = torch.cat([window, block], dim=-2)[..., -operator.frames_in :, :]
        for frame in block.unbind(dim=-2)[: steps - done]:
            done += 1
            yield frame


def held(frames: Tensor, history: Tensor, mask: Tensor | None) -> Tensor:
    """Frames (B, *space, T, C) with the last frame of `history` at the points outside `mask` (B, *space)."""
    return frames if mask is None else torch.where(mask[..., None, None], frames, history[..., -1:, :])


def _check(operator: Operator, history: Tensor, dataset: Tensor, steps: int, parameters: Tensor | None) -> None:
    _check_history(operator, history, dataset)
    rows = range(len(operator.config.datasets))
    if dataset.shape != history.shape[:1] or any(row not in rows for row in dataset.tolist()):
        raise ConfigError(
            "the datasets do not fit the operator",
            key="dataset",
            found=dataset.tolist(),
            expected=f"for each of the {history.shape[0]} samples the row of a dataset, 0 to {rows[-1]}",
        )
    names = operator.config.parameters
    if parameters is not None and tuple(parameters.shape) != (len(history), len(names)):
        raise ConfigError(
            "the parameters do not fit the operator",
            key="parameters",
            found=tuple(parameters.shape),
            expected=f"(B, P) = ({len(history)}, {len(names)}): {', '.join(names) or 'the operator is told none'}",
        )
    if steps < 1:
        raise ConfigError("nothing to predict", key="steps", found=steps, expected="at least 1")


def _check_history(operator: Operator, history: Tensor, dataset: Tensor) -> None:
    given, rows = tuple(history.shape[1:-2]), set(dataset.tolist())
    for name in [d.name for row, d in enumerate(operator.config.datasets) if row in rows]:
        space = given if operator.takes_grid(given, name) else operator.grid(name)
        expected = (*space, operator.frames_in, len(operator.config.channels))
        if tuple(history.shape[1:]) != expected:
            raise ConfigError(
                f"the history does not fit the operator for dataset {name!r}",
                key="history",
                found=tuple(history.shape),
                expected=f"(B, *space, T_in, C) = (B, {', '.join(map(str, expected))})",
            )


def _check_mask(mask: Tensor | None, history: Tensor) -> None:
    if mask is not None and (mask.shape != history.shape[:-2] or mask.dtype != torch.bool):
        raise ConfigError(
            "the mask does not fit the history",
            key="mask",
            found=f"{mask.dtype} {tuple(mask.shape)}",
            expected=f"torch.bool {tuple(history.shape[:-2])}",
        )
