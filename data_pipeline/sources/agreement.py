"""Whether files are one dataset: what has to be the same in all of them."""

from collections.abc import Mapping, Sequence
from math import isnan
from os.path import commonpath
from typing import Any

from data_pipeline.base.errors import DataError
from data_pipeline.config import ConvertConfig
from data_pipeline.sources.layout import Header
from data_pipeline.sources.splits import strided

_SAME = ("axes", "space", "channels", "static_channels", "boundaries", "parameters", "masked")
SETTLED = {"frames": "convert.frames", "time step": "convert.every"}
"""What files of one dataset may differ in, if the configuration says what becomes of it."""
_DT_TOLERANCE = 1e-3
"""Relative difference of the time step between two files of a dataset that is taken for rounding."""
_SHOWN = 8
"""Files, or values, that a message names of many."""


def facts(headers: Sequence[Header], config: ConvertConfig) -> list[dict[str, Any]]:
    """What has to be the same in all files, by name, for each file; without what the configuration settles."""
    steps: list[float] = []
    return [_facts(header, config, steps) for header in headers]


def _facts(header: Header, config: ConvertConfig, steps: list[float]) -> dict[str, Any]:
    """`steps` are the time steps of other files; one that is almost the same counts as the same."""
    found = {what.replace("_", " "): getattr(header, what) for what in _SAME} | {"steady": header.frames == 1}
    if config.frames is None:
        found["frames"] = strided(header, config)
    if config.dt is None and config.every is None:
        step = -1.0 if isnan(header.dt) else header.dt  # not known: the same for all such files
        steps.append(next((one for one in steps if abs(one - step) <= _DT_TOLERANCE * abs(one)), step))
        found["time step"] = steps[-1]
    return found


def differing(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is not the same in all files."""
    return [what for what in found[0] if any(one[what] != found[0][what] for one in found)]


def disagreement(headers: Sequence[Header], found: Sequence[Mapping[str, Any]]) -> DataError | None:
    """Why files are not one dataset, with the files of each dataset that they are; None where they are one.

    Args:
        headers: of the files.
        found: their `facts`.
    """
    what = differing(found)
    if not what:
        return None
    datasets: dict[tuple[Any, ...], list[Header]] = {}
    for header, one in zip(headers, found, strict=True):
        datasets.setdefault(tuple(one[name] for name in what), []).append(header)
    root = commonpath([header.path.parent for header in headers])
    lines = [f"{_names(files, root)}: {_values(what, values)}" for values, files in datasets.items()]
    others = [f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    settings = [f"{SETTLED[name]}" for name in what if name in SETTLED]
    settled = f"or settle it by {' and '.join(settings)}" if len(settings) == len(what) else ""
    second = list(datasets.values())[1][0]
    return DataError(
        f"files of one dataset differ in {', '.join(what)}",
        file=second.path,
        found="\n    ".join([f"{len(datasets)} datasets", *lines[:_SHOWN], *others]),
        expected="one dataset",
        remedy=f"convert them one by one: give the path of one, or name its files in convert.files {settled}".strip(),
    )


def _names(files: Sequence[Header], root: str) -> str:
    names = [file.path.relative_to(root).as_posix() for file in files[:2]]
    return f"{', '.join(names)}{f' and {len(files) - 2} more' if len(files) > 2 else ''}"


def _values(what: Sequence[str], values: Sequence[Any]) -> str:
    return "; ".join(f"{name} {show(value)}" for name, value in zip(what, values, strict=True))


def show(value: Any) -> str:
    """A value in print: `velocity_x, velocity_y`, `64, 64`, `0.1`."""
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value == -1 else f"{value:g}"


def unsettled(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """For files that are one dataset otherwise: what the configuration has to settle before they are, a line each."""
    lines = []
    for what in differing(found):
        values = list(dict.fromkeys(show(one[what]) for one in found))
        shown = ", ".join(values[:_SHOWN]) + (f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else "")
        lines.append(f"files differ in {what} ({shown}): {SETTLED[what]} settles it, else they are separate datasets")
    return lines
