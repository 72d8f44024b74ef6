"""Exponential moving average of the weights: what is evaluated and published, while the weights themselves go on.

Each rank averages what it updates (`pretrain.fragments`), so the average costs no communication, and under ZeRO no
more memory than a moment of the optimizer. The idea is Polyak and Juditsky's (1992).
"""

from typing import Any

import torch
from torch import Tensor

from pretrain.fragments import Fragment, fragments

KEY = "ema"
"""What its pieces are called in a checkpoint."""


class WeightAverage:
    """The average of this rank's fragments.

    Args:
        engine: the DeepSpeed engine.
        decay: share of the old average that stays at each step. While there have been few steps, less of it stays:
            (1 + n) / (10 + n) after n updates, so that the initial weights are soon forgotten.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self._decay = decay
        self._fragments = fragments(engine)
        self.values = [fragment.values.clone() for fragment in self._fragments]

    def update(self, step: int) -> None:
        """Take the weights after update number `step` (from 0) into the average."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.values, [f.values for f in self._fragments], 1 - decay)

    def pieces(self) -> list[tuple[Fragment, Tensor]]:
        """Each fragment with its average (N,)."""
        return list(zip(self._fragments, self.values, strict=True))
