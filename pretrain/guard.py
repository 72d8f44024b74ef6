"""Which steps are not taken: losses that are not finite, or far above what they have been.

The decision needs nothing but the loss over all ranks, so every rank comes to the same one.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from typing import Any

from pretrain.config import TrainingConfig

_ENOUGH = 20  # losses before one can be called far above them
_WINDOW = 100


class LossGuard:
    """Judges the loss of each step before its update.

    Args:
        training: `max_loss_ratio` and `patience` count.
    """

    def __init__(self, training: TrainingConfig) -> None:
        self._ratio, self._patience = training.max_loss_ratio, training.patience
        self._recent: deque[float] = deque(maxlen=_WINDOW)
        self.skipped, self.in_a_row = 0, 0
        self.offenders: list[int] = []
        """Positions of the samples that the last steps in a row objected to."""

    @property
    def bound(self) -> float:
        """The largest loss that is let pass."""
        if not self._ratio or len(self._recent) < _ENOUGH:
            return math.inf
        return self._ratio * statistics.median(self._recent)

    def objection(self, loss: float) -> str | None:
        """Why the step is not to be taken; None if it is."""
        if not math.isfinite(loss):
            return "the loss is not finite"
        if loss > self.bound:
            return f"the loss is {loss:.3g}, and the median of the last {len(self._recent)} steps {self._median:.3g}"
        return None

    @property
    def _median(self) -> float:
        return statistics.median(self._recent)

    def note_taken(self, loss: float) -> None:
        """Take note of a step that was taken."""
        self._recent.append(loss)
        self.in_a_row = 0
        self.offenders.clear()

    def note_skipped(self, positions: Iterable[int]) -> None:
        """Take note of a step that was not, and of the samples that were objected to."""
        self.skipped += 1
        self.in_a_row += 1
        self.offenders += positions

    @property
    def exhausted(self) -> bool:
        """Whether so many steps in a row were not taken that the run should go back."""
        return self.in_a_row >= self._patience

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"recent": list(self._recent), "skipped": self.skipped, "in_a_row": self.in_a_row,
                "offenders": self.offenders}  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's."""
        self._recent.extend(state["recent"])
        self.skipped, self.in_a_row, self.offenders = state["skipped"], state["in_a_row"], list(state["offenders"])
