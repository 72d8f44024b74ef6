"""A bound for the gradient's norm that follows the norms themselves.

A fixed bound is right for one dataset, one size and one part of the run; a quantile of the last norms is right
wherever the norms change slowly, and has no unit (AutoClip: Seetharaman et al. 2020, arXiv 2007.14469, which keeps all
norms; here the last ones, since norms fall by orders of magnitude in a run).
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence


class QuantileClip:
    """The bound for the next gradient: a quantile of the norms of the last ones.

    The bound is one of the norms seen (the smallest that at least a share `quantile` of them do not exceed), never an
    interpolated value. Norms are those before clipping, over all ranks: every rank that adds the same norms has the
    same bound.
    """

    def __init__(self, quantile: float, window: int) -> None:
        """
        Args:
            quantile: 0 to 1.
            window: number of norms kept.
        """
        self._quantile = quantile
        self._recent: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []
        # Fewer norms than this cannot tell the quantile from their largest.
        self._enough = window if quantile == 1 else min(window, _ceil(1 / (1 - quantile)))

    def bound(self) -> float:
        """The bound for the next gradient's norm; infinite before enough norms are known."""
        if len(self._sorted) < self._enough:
            return math.inf
        return self._sorted[max(0, _ceil(self._quantile * len(self._sorted)) - 1)]

    def add(self, norm: float) -> None:
        """Note a gradient's norm, as it was before clipping. One that is not finite is not noted."""
        if not math.isfinite(norm):
            return
        if len(self._recent) == self._recent.maxlen:
            del self._sorted[bisect_left(self._sorted, self._recent[0])]
        self._recent.append(norm)
        insort(self._sorted, norm)

    def state(self) -> list[float]:
        """The norms, oldest first: all that a run needs to go on with the same bounds, and exact in JSON."""
        return list(self._recent)

    def load(self, norms: Sequence[float]) -> None:
        """Go on from what `state` gave."""
        self._recent.clear()
        self._sorted.clear()
        for norm in norms:
            self.add(norm)


def _ceil(value: float) -> int:
    """The next whole number; 55.00000000000001 is 55 that was multiplied out."""
    return math.ceil(value - 1e-9)
