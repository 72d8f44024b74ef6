"""A whole number that each trajectory draws."""

from typing import Annotated

from numpy.random import Generator
from pydantic import AfterValidator


def _ordered(value: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= value[0] <= value[1]:
        raise ValueError("expected 1 <= low <= high in [low, high]")
    return value


Counts = Annotated[tuple[int, int], AfterValidator(_ordered)]
"""Least and largest value; all between are as likely."""


def draw_count(rng: Generator, bounds: tuple[int, int]) -> int:
    """A value of `Counts`."""
    return int(rng.integers(bounds[0], bounds[1] + 1))
