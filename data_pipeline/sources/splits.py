"""Which trajectories of which file belong to which split, and how trajectories are cut into segments."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import floor

from data_pipeline.base.errors import ConfigError
from data_pipeline.config import SPLITS, ConvertConfig, Share, Split, SplitRule
from data_pipeline.sources.layout import Header

_STEP_TOLERANCE = 1e-3
"""Relative difference that is taken for rounding in a file's time step."""


@dataclass(frozen=True)
class Run:
    """Consecutive segments of one file: number `first` .. `first + count`, where trajectory i has the segments
    `i * segments` .. `(i + 1) * segments`."""

    header: Header
    segments: int
    first: int
    count: int


def segments(header: Header, config: ConvertConfig) -> int:
    """Segments that each trajectory of a file gives, after its stride."""
    frames = strided(header, config)
    if config.frames is None:
        return 1
    return -(-frames // config.frames) if config.remainder == "repeat_last" else frames // config.frames


def strided(header: Header, config: ConvertConfig) -> int:
    """Frames of each trajectory of a file after the stride."""
    return -(-header.frames // stride(header, config))


def stride(header: Header, config: ConvertConfig) -> int:
    """How many frames of a file make one step. Raises ConfigError where `every` is no multiple of the time step."""
    if config.every is None or header.frames == 1:
        return config.stride
    steps = config.every / header.dt
    if not steps > 0.5 or abs(steps - round(steps)) > _STEP_TOLERANCE * steps:
        raise ConfigError(
            "frames are not that far apart",
            file=header.path,
            key="convert.every",
            found=config.every,
            expected=f"a multiple of the time step, {header.dt:g}",
        )
    return round(steps)


def in_words(rule: SplitRule) -> str:
    """A rule in print: `test 0.1, train rest, valid 0 of the trajectories of every file, in this order`."""
    shares = {"train": rule.train, "valid": rule.valid, "test": rule.test}
    parts = ", ".join(f"{split} {shares[split]}" for split in rule.order)
    return f"{parts} of the {rule.of} of {'every file' if rule.each == 'file' else 'the dataset'}, in this order"


def assign(headers: Sequence[Header], config: ConvertConfig) -> dict[Split, list[Run]]:
    """The runs of each split, in the order of the files, merged and limited as configured.

    Raises:
        ConfigError: the files have no splits and no rule is given, or the reverse; a rule asks for more than there is.
    """
    whole = [Run(h, segments(h, config), 0, h.trajectories * segments(h, config)) for h in headers]
    divide = _by_layout if any(header.split is not None for header in headers) else _by_rule
    runs = divide(whole, config)
    for old, new in config.merge.items():
        runs[new], runs[old] = runs[new] + runs[old], []
    return {split: _first(runs[split], config.limit.get(split)) for split in SPLITS}


def _by_layout(runs: Sequence[Run], config: ConvertConfig) -> dict[Split, list[Run]]:
    without = [run.header.path for run in runs if run.header.split is None]
    if config.splits is not None or without:
        raise ConfigError(
            "the files have splits of their own",
            file=config.path,
            key="convert.splits",
            found=f"a rule, and files of the splits {sorted({str(run.header.split) for run in runs})}",
            expected="no rule, and every file in a split",
            remedy="leave the rule out, or name the files of one split in convert.files",
        )
    return {split: [run for run in runs if run.header.split == split] for split in SPLITS}


def _by_rule(runs: Sequence[Run], config: ConvertConfig) -> dict[Split, list[Run]]:
    rule = config.splits or runs[0].header.rule
    if rule is None:
        raise ConfigError(
            "the files say nothing of training and test data",
            file=config.path,
            key="convert.splits",
            found=f"{sum(run.header.trajectories for run in runs)} trajectories",
            expected="a rule, for example: splits: {test: 0.1}  (the last tenth; see SplitRule)",
        )
    groups = [[run] for run in runs] if rule.each == "file" else [runs]
    parts = [_divide(group, rule, config) for group in groups]
    return {split: [run for part in parts for run in part[split]] for split in SPLITS}


def _divide(runs: Sequence[Run], rule: SplitRule, config: ConvertConfig) -> dict[Split, list[Run]]:
    sizes = [run.count if rule.of == "segments" else run.header.trajectories for run in runs]
    ranges = _ranges(rule, sum(sizes), config)
    return {split: _cut(runs, sizes, *ranges[split]) for split in SPLITS}


def _ranges(rule: SplitRule, total: int, config: ConvertConfig) -> Mapping[Split, tuple[int, int]]:
    asked: dict[Split, Share] = {"train": rule.train, "valid": rule.valid, "test": rule.test}
    counts = {s: floor(v * total + 1e-9) if isinstance(v, float) else v for s, v in asked.items() if v != "rest"}
    left = total - sum(counts.values())
    if left < 0:
        raise ConfigError(
            "the splits need more than there is",
            file=config.path,
            key="convert.splits",
            found=f"{total} {rule.of}",
            expected=f"at least {sum(counts.values())}: {counts}",
            remedy="give a rule that fits" if config.splits else "their publisher's rule does not fit: give another",
        )
    lengths = [counts.get(split, left) for split in rule.order]
    ends = list(accumulate(lengths))
    return {split: (end - n, end) for split, n, end in zip(rule.order, lengths, ends, strict=True)}


def _cut(runs: Sequence[Run], sizes: Sequence[int], start: int, stop: int) -> list[Run]:
    """The parts of the runs, whose sizes are counted in the rule's unit, within start .. stop."""
    parts = []
    for run, size, end in zip(runs, sizes, accumulate(sizes), strict=True):
        low, high = max(start, end - size) - (end - size), min(stop, end) - (end - size)
        each = run.count // size if size else 0
        if low < high and each:
            parts.append(Run(run.header, run.segments, run.first + low * each, (high - low) * each))
    return parts


def _first(runs: Sequence[Run], limit: int | None) -> list[Run]:
    counts = [run.count for run in runs]
    return list(runs) if limit is None else _cut(runs, counts, 0, limit)
