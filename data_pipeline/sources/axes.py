"""Axes of an array as a configuration writes them, and arrays whose axes are split as they say."""

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from numpy.typing import NDArray

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.sources.arrays import Array
from data_pipeline.sources.npy import Index

LETTERS = "btxyzc"
Axes = tuple[str, ...]
"""One entry for each axis of the stored array: its letter, or the letters of an axis in brackets, the fastest last."""


def parse_axes(text: str, key: str) -> Axes:
    """`"(x y) t"` as `("xy", "t")`; spaces do not matter outside of brackets.

    Args:
        text: the axes.
        key: where it stands in the configuration.

    Raises:
        ConfigError: an unknown letter, a letter twice, or brackets that do not match.
    """
    tokens = re.findall(r"\(([^()]*)\)|(\S)", text)
    axes = tuple("".join(inner.split()) if inner else single for inner, single in tokens)
    letters = [letter for letter in "".join(axes) if letter != "1"]
    brackets = all(len(axis) == 1 or "1" not in axis for axis in axes)
    if not brackets or set(letters) - set(LETTERS) or len(set(letters)) != len(letters):
        expected = f"each of {', '.join(LETTERS)} at most once, 1 for a length of one, brackets around axes in one"
        raise ConfigError("not the axes of an array", key=key, found=text, expected=expected)
    return axes


def split(array: Array, axes: Axes, sizes: Mapping[str, int]) -> Array:
    """An array with one axis for every letter. An axis in brackets is read whole, whatever part of it is asked for.

    Args:
        array: the stored array.
        axes: its axes.
        sizes: known lengths of axes in brackets; one in each bracket may be left out.

    Raises:
        DataError: the array has another number of axes, or a length does not divide.
    """
    if len(axes) != len(array.shape):
        shown = " ".join(axis if len(axis) == 1 else f"({' '.join(axis)})" for axis in axes)
        expected = f"{len(axes)} axes: {shown}"
        raise array.error("wrong rank", found=f"shape {array.shape}", expected=expected)
    lengths = [
        (size,) if len(axis) == 1 else _lengths(array, axis, size, sizes)
        for axis, size in zip(axes, array.shape, strict=True)
    ]
    if all(len(axis) == 1 for axis in axes):
        return array

    def part(index: Index) -> NDArray[Any]:
        outer: list[int | slice] = []
        inner: list[int | slice] = []
        shape: list[int] = []
        place = 0
        for axis, own in zip(axes, lengths, strict=True):
            mine = index[place : place + len(axis)]
            place += len(axis)
            if len(axis) == 1:
                outer.append(mine[0])
                if isinstance(mine[0], slice):
                    shape.append(len(range(*mine[0].indices(own[0]))))
                    inner.append(slice(None))
            else:
                outer.append(slice(None))
                shape += own
                inner += mine
        return array.read(tuple(outer)).reshape(shape)[tuple(inner)]

    return Array(array.path, array.key, tuple(n for own in lengths for n in own), part)


def _lengths(array: Array, axis: str, size: int, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Lengths of the axes that one stored axis holds."""
    missing = [letter for letter in axis if letter not in sizes]
    if len(missing) > 1:
        raise ConfigError(
            "lengths of axes in brackets are missing",
            file=array.path,
            key="convert.plain.sizes",
            found=dict(sizes),
            expected=f"the lengths of all but one of {', '.join(axis)}",
        )
    known = prod(sizes[letter] for letter in axis if letter in sizes)
    if size % known or (not missing and size != known):
        raise DataError(
            "the axis cannot be split",
            file=array.path,
            key=array.key,
            found=f"length {size} in shape {array.shape}",
            expected=f"{'a multiple of ' if missing else ''}{known}: {' * '.join(axis)}, see convert.plain.sizes",
        )
    return tuple(sizes.get(letter, size // known) for letter in axis)
