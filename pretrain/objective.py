"""What is learned: autoregressive denoising (DPOT, section 3), and its loss.

Beyond the published one-step objective, each by a key of `ObjectiveConfig`: roll-outs with gradients through all of
them, through one prediction at a time, or push-forward (Brandstetter, Worrall and Welling, "Message passing neural PDE
solvers", 2022); frames at any lead time, all-to-all (Herde et al., "Poseidon", 2024), whose targets the loader picks.
How many frames one prediction holds (temporal bundling) is the network's.
"""

from contextlib import nullcontext
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
        (B,). A channel whose target is zero everywhere counts by its absolute error, not by 1e8 times that: the
        reference divides by ||y|| + 1e-8, which float32 cannot tell from ||y|| once that is above 0.2.
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
    """Loss of an operator on a batch: the frames after a noisy history are to be the clean ones.

    The loss is a mean over samples. The reference sums over those of a rank: Adam takes the same steps with either, if
    its epsilon and its coupled weight decay are divided by their number.

    Args:
        operator: what learns.
        config: what is learned.
        seed: keys all that is drawn.
        batch_size: samples in an update; needed for `rollout_random`, which draws once for each.
    """

    def __init__(self, operator: Operator, config: ObjectiveConfig, seed: int, batch_size: int | None = None) -> None:
        super().__init__()
        assert batch_size or not config.rollout_random
        self.operator, self.config, self.seed, self.batch_size = operator, config, seed, batch_size

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The mean loss, and the loss of each sample (B,), detached."""
        prediction, target = self._prediction_and_target(batch)
        counted = batch.channel_mask
        if self.config.padding_loss:
            target = torch.where(_expand(counted, target), target, PADDING["anonymous"])
            counted = torch.ones_like(counted)
        losses = relative_l2_loss(prediction, target, counted, batch.point_mask)
        return losses.mean(), losses.detach()

    def _prediction_and_target(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The predicted frames that have a loss, and what they are to be, (B, *space, T, C) each."""
        history, padding = self._disturbed(batch)
        steps, reach = self._steps(batch), self.config.rollout_gradient
        predictions: list[Tensor] = []
        for step in range(steps):
            without_loss = reach == "push_forward" and step + 1 < steps
            with torch.no_grad() if without_loss else nullcontext():
                frames = cast(
                    Tensor,
                    self.operator(history, batch.dataset, batch.parameters, padding=padding, lead=batch.lead),
                )
            frames = held(frames, batch.history, batch.point_mask)
            predictions.append(frames)
            padding = None
            fed_back = frames.detach() if reach == "truncated" else frames
            kept = history[..., frames.shape[-2] :, :]  # none, if as many frames are predicted as are seen
            history = torch.cat([kept, fed_back[..., -self.operator.frames_in :, :]], dim=-2)
        block = predictions[0].shape[-2]
        first = steps - 1 if reach == "push_forward" else 0
        target = batch.target[..., first * block : steps * block, :]
        return torch.cat(predictions[first:], dim=-2).float(), target

    def _steps(self, batch: Batch) -> int:
        """Predictions in a row: one number for all of an update, for under ZeRO-3 all ranks must call the network
        equally often."""
        if not self.config.rollout_random:
            return self.config.rollout_steps
        update = int(batch.position[0]) // cast(int, self.batch_size)
        return 1 + positional_seed(self.seed, update, "rollout") % self.config.rollout_steps

    def _disturbed(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """The noisy history, and what the network sees in slots that a dataset lacks (None: what it always does)."""
        if self.config.noise == 0:
            return batch.history, None
        deviation = self.config.noise * self._noise_unit(batch.history, batch.dataset, batch.point_mask)
        history = add_noise(batch.history, deviation, batch.position, self.seed)
        # Slots that a dataset lacks get noise, too: measured, it makes the others better (docs/results.md).
        return history, PADDING[self.operator.config.slots] + history

    def _noise_unit(self, history: Tensor, dataset: Tensor, point_mask: Tensor | None = None) -> Tensor:
        """(B, 1, ..., 1, C). What stands outside the domain, false in `point_mask` (B, *space), does not count."""
        if self.config.noise_unit == "change":
            return _expand(torch.where(self.operator.owned, self.operator.change_rms, 1.0)[dataset], history)
        shift, _ = self.operator.figures(history, dataset)
        deviation = history - shift
        if self.config.noise_unit == "norm":  # the published noise is on the padding, too
            owned = _expand(self.operator.owned[dataset], history)
            deviation = torch.where(owned, deviation, PADDING[self.operator.config.slots])
        axes, squares = tuple(range(1, history.ndim - 1)), deviation.square()
        if point_mask is None:
            whole = squares.sum if self.config.noise_unit == "norm" else squares.mean
            return whole(axes, keepdim=True).sqrt()
        inside = point_mask[..., None, None].expand(squares.shape)
        total = torch.where(inside, squares, 0.0).sum(axes, keepdim=True)
        return (total if self.config.noise_unit == "norm" else total / inside.sum(axes, keepdim=True)).sqrt()


def _expand(figures: Tensor, like: Tensor) -> Tensor:
    """(B, C) -> (B, 1, ..., 1, C), to go with frames."""
    return figures[(slice(None), *(None,) * (like.ndim - 2))]
