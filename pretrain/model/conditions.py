"""What the network is told of the equation beside the fields: time step, boundaries and PDE parameters, as numbers.

The features of a sample, in this order, so that a parameter which joins later changes none before it:

    log10(dt)                                       from the last frame to the predicted one (of several at once: the
                                                    first), in the equation's unit of time
    periodic, wall, open                            for each axis; all zero where the boundary is not known, and
                                                    periodic along axes of the network that the fields lack
    known, sign, log10(max(|value|, 1e-8))          for each parameter; all zero where the sample lacks it

Parameters span many powers of ten, may be zero or negative, and a new dataset must not change what the features of an
old one mean: so they are counted in powers of ten and not standardised over data. A parameter is known by its name.
"""

import math
from collections.abc import Iterable, Sequence
from typing import get_args

import torch
from torch import Tensor

from data_pipeline.trajectory import Boundary

BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)
_PER_PARAMETER = 3
_SMALLEST = 1e-8  # The published mixture's viscosity that stands for none.


def condition_count(axes: int, parameters: int) -> int:
    """Number of features."""
    return 1 + len(BOUNDARIES) * axes + _PER_PARAMETER * parameters


def parameter_union(carried: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """Every parameter of any dataset once, in the order of their first mention."""
    return tuple(dict.fromkeys(name for names in carried for name in names))


def dataset_features(dt: float, boundaries: Sequence[Boundary], axes: int) -> list[float]:
    """The features that all samples of a dataset share; `boundaries` is empty where they are not known.

    Fields of fewer than `axes` axes are constant along the others, and so periodic.
    """
    if not boundaries:
        return [math.log10(dt), *[0.0] * len(BOUNDARIES) * axes]
    everywhere = (*boundaries, *("periodic",) * (axes - len(boundaries)))
    return [math.log10(dt), *(float(kind == boundary) for boundary in everywhere for kind in BOUNDARIES)]


def with_lead(features: Tensor, lead: Tensor) -> Tensor:
    """The features (B, K) of predictions `lead` (B,) frames ahead, from those of one frame ahead."""
    return torch.cat([features[:, :1] + lead.to(features.dtype).log10()[:, None], features[:, 1:]], dim=-1)


def parameter_features(values: Tensor) -> Tensor:
    """The features of PDE parameters, (B, P), NaN where a sample lacks one: (B, 3 P)."""
    known = values.isfinite()
    values = torch.where(known, values, 0.0)
    powers = torch.where(known, values.abs().clamp(min=_SMALLEST).log10(), 0.0)
    return torch.stack([known.to(values.dtype), values.sign(), powers], dim=-1).flatten(1)
