"""What the steady families have in common."""

from torch import Tensor
from torch.nn.functional import pad

from data_pipeline.base.errors import ConfigError

_INTERVALS = 4


class Steady:
    """A solved steady problem with zero boundary values, in the place of an evolution.

    Args:
        inner: the solution at the inner points, (B, nx - 2, ny - 2).
    """

    def __init__(self, inner: Tensor) -> None:
        self._fields = pad(inner, (1, 1, 1, 1)).unsqueeze(1)

    def advance(self, duration: float) -> None:
        """Nothing changes."""

    def fields(self) -> Tensor:
        """The solution at all points, (B, 1, nx, ny)."""
        return self._fields


def check_correlation(family: str, spacing: tuple[float, ...], inverse_length: float) -> None:
    """Refuse a grid that has fewer than four intervals in the length 1 / tau over which a Gaussian field changes.

    The bound is this project's: at it, two-phase Darcy flow is off by up to 7 % (`validation/test_darcy_2d.py`).
    """
    largest = 1 / (_INTERVALS * max(spacing))
    if inverse_length > largest:
        raise ConfigError(
            f"the grid of {family} is too coarse for its random field",
            key="generate.parameters.inverse_length",
            found=f"{inverse_length:g}",
            expected=f"at most {largest:.4g}: {_INTERVALS} intervals of the grid in 1 / inverse_length",
        )
