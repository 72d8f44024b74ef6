"""What is learned: autoregressive denoising (DPOT, section 3), and its loss."""

from typing import cast

import torch
from torch import Tensor, nn

from data_pipeline.loader import Batch
from data_pipeline.mixture import positional_seed
from pretrain.config import ObjectiveConfig
from pretrain.model.operator import PADDING, Operator
from pretrain.rollout import held


def relative_l2_loss(
    prediction: Tensor, target: Tensor, channel_mask: Tensor, point_mask: Tensor | None = None
) -> Tensor:
    """Relative L2 per sample: ||y' - y|| / ||y|| over space and time of each channel, averaged over real channels.

    Args:
        prediction, target: (B, *space, T, C).
        channel_mask: (B, C) bool, true for the channels that the sample's dataset has.
        point_mask: (B, *space) bool, true at the points that count; None where all do.

    Returns:
        (B,). A channel whose target is zero everywhere counts by its absolute error, not by 1e8 times that.
    """
    axes = tuple(range(1, target.ndim - 1))
    if point_mask is not None:
        inside = point_mask[..., None, None]
        prediction, target = torch.where(inside, prediction, 0.0), torch.where(inside, target, 0.0)
    error = torch.linalg.vector_norm(prediction - target, dim=axes)
    scale = torch.linalg.vector_norm(target, dim=axes)
    ratio = error / torch.where(scale > 0, scale, torch.ones_like(scale))
    return cast(Tensor, (ratio * channel_mask).sum(-1) / channel_mask.sum(-1))


def add_noise(history: Tensor, deviation: Tensor, position: Tensor, seed: int) -> Tensor:
    """Gaussian noise on every frame; a function of (seed, position).

    Args:
        history: (B, *space, T, C).
        deviation: standard deviation of the noise, broadcastable to `history`.
        position: (B,) int64, global sample numbers.
    """
    # Laid out alike however the history is: the generator fills memory in its order.
    noise = torch.empty_like(history, memory_format=torch.contiguous_format)
    for row, number in zip(noise, position.tolist(), strict=True):
        generator = torch.Generator(history.device).manual_seed(positional_seed(seed, number, "noise"))
        row.normal_(generator=generator)
    return history + deviation * noise


class DenoisingObjective(nn.Module):
    """Loss of an operator on a batch: the frames after a noisy history are to be the clean ones."""

    def __init__(self, operator: Operator, config: ObjectiveConfig, seed: int) -> None:
        super().__init__()
        self.operator, self.config, self.seed = operator, config, seed

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean loss, and the loss of each sample (B,), detached."""
        history, padding = batch.history, None
        if self.config.noise > 0:
            deviation = self.config.noise * self._noise_unit(history, batch.dataset)
            history = add_noise(history, deviation, batch.position, self.seed)
            # Slots that a dataset lacks get noise, too: measured, it makes the others better (docs/results.md).
            padding = PADDING[self.operator.config.slots] + history
        predictions = []
        for _ in range(self.config.rollout_steps):
            frames = cast(Tensor, self.operator(history, batch.dataset, batch.parameters, padding=padding))
            frames = held(frames, batch.history, batch.point_mask)
            predictions.append(frames)
            padding = None
            history = torch.cat([history[..., frames.shape[-2] :, :], frames], dim=-2)
        prediction = torch.cat(predictions, dim=-2).float()
        losses = relative_l2_loss(prediction, batch.target, batch.channel_mask, batch.point_mask)
        return losses.mean(), losses.detach()

    def _noise_unit(self, history: Tensor, dataset: Tensor) -> Tensor:
        """(B, 1, ..., 1, C). The reference takes a norm for `field`: its eps is ours / sqrt(points in the history)."""
        expand = (slice(None), *(None,) * (history.ndim - 2))
        if self.config.noise_unit == "change":
            return torch.where(self.operator.owned, self.operator.change_rms, 1.0)[dataset][expand]
        axes = tuple(range(1, history.ndim - 1))
        shift, _ = self.operator.figures(history, dataset)
        return (history - shift).square().mean(axes, keepdim=True).sqrt()
