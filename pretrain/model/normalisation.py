"""How fields enter the network: what is subtracted from them, and what they are divided by."""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

# A deviation below this share of the mean is rounding: float32 holds seven digits.
_ROUNDING = 1e-6


def _present_name(value: object) -> object:
    return "mean_std" if value == "dataset" else value  # its name in the operators saved at first


Normalisation = Annotated[Literal["none", "mean_std", "rms", "sample"], BeforeValidator(_present_name)]
"""What a field is shifted and divided by before the network sees it.

- `none`: nothing.
- `mean_std`: its mean and deviation over the dataset.
- `rms`: no shift; its RMS over the dataset. Zero stays zero, and signs stay; not for fields that hardly leave a mean
  far from zero.
- `sample`: its mean and deviation over space and time of this sample's own history. The statistics of a dataset play
  no part, so nothing need be known of a new one; in a roll-out the figures follow the predicted frames.
"""


def dataset_figures(
    normalisation: Normalisation, mean: Sequence[float], std: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Shift and scale of each field of a dataset. A constant field (`rms`: one of zeros) keeps its units."""
    nothing = [0.0] * len(mean)
    if normalisation == "mean_std":
        return list(mean), [s or 1.0 for s in std]
    if normalisation == "rms":
        return nothing, [math.hypot(m, s) or 1.0 for m, s in zip(mean, std, strict=True)]
    return nothing, [1.0] * len(mean)


def sample_figures(history: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale of each sample and channel, from (B, *space, T, C): two (B, 1, ..., 1, C).

    The deviation is that of the population. A constant channel keeps its units.
    """
    variance, mean = torch.var_mean(history, tuple(range(1, history.ndim - 1)), correction=0, keepdim=True)
    constant = variance.sqrt() <= _ROUNDING * mean.abs()
    # Before the root, whose gradient at zero is infinite.
    return mean, torch.where(constant, 1.0, variance).sqrt()
