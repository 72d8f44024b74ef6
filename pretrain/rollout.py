"""Autoregressive inference: the operator's predictions become its history."""

from collections.abc import Iterator

import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from pretrain.model.operator import Operator


def rollout(
    operator: Operator, history: Tensor, dataset: Tensor, steps: int, parameters: Tensor | None = None
) -> Iterator[Tensor]:
    """Predict `steps` frames, and yield each as it comes.

    No gradients are kept, and memory does not grow with `steps`: only the last T_in frames are held. Slots of
    channels that a sample's dataset does not have are zero, in the operator's inputs and in the yielded frames,
    whatever `history` holds there and whatever the network puts there. The operator's training mode is left alone.

    Args:
        operator: predicts T_out >= 1 frames at a time.
        history: (B, *space, T_in, C), physical units, channels in the operator's slots.
        dataset: (B,) int64, row of each sample's dataset.
        steps: frames to predict; surplus frames of the last block are dropped.
        parameters: (B, P), each sample's PDE parameters, as in `Operator.forward`.

    Returns:
        An iterator of frames (B, *space, C), physical units.

    Raises:
        ConfigError: history, dataset, steps or parameters do not fit the operator. Raised at the call, not at the
            first frame.
    """
    _check(operator, history, dataset, steps, parameters)
    expand = (slice(None), *(None,) * (history.ndim - 2))
    return _frames(operator, history, dataset, operator.owned[dataset][expand], steps, parameters)


def rollout_block(
    operator: Operator, history: Tensor, dataset: Tensor, steps: int, parameters: Tensor | None = None
) -> Tensor:
    """All frames of `rollout` at once: (B, steps, *space, C)."""
    frames = rollout(operator, history, dataset, steps, parameters)
    block = history.new_empty(history.shape[0], steps, *history.shape[1:-2], history.shape[-1])
    for step, frame in enumerate(frames):
        block[:, step] = frame
    return block


# The decorator, not a `with` block: the mode then ends at every yield instead of leaking into the caller.
@torch.inference_mode()
def _frames(
    operator: Operator, history: Tensor, dataset: Tensor, owned: Tensor, steps: int, parameters: Tensor | None
) -> Iterator[Tensor]:
    # `where`, not a product: zero times NaN is NaN.
    window = torch.where(owned, history, 0.0)
    folded = operator.fold(history.shape[1:-2])
    done = 0
    while done < steps:
        block = torch.where(owned, operator(window, dataset, parameters, folded), 0.0)
        window = torch.cat([window, block], dim=-2)[..., -operator.frames_in :, :]
        for frame in block.unbind(dim=-2)[: steps - done]:
            done += 1
            yield frame


def _check(operator: Operator, history: Tensor, dataset: Tensor, steps: int, parameters: Tensor | None) -> None:
    space = history.shape[1:-2] if operator.takes_grid(history.shape[1:-2]) else operator.config.network.space
    expected = (*space, operator.frames_in, len(operator.config.channels))
    if tuple(history.shape[1:]) != expected:
        raise ConfigError(
            "the history does not fit the operator",
            key="history",
            found=tuple(history.shape),
            expected=f"(B, *space, T_in, C) = (B, {', '.join(map(str, expected))})",
        )
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
