"""What a look at a dataset finds: figures of every channel, and everything that is wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_pipeline.trajectory import DatasetInfo

_PRINTED = 50
"""Problems that are printed of many."""


@dataclass
class ChannelFigures:
    """Figures of one channel over all trajectories, frames and grid points; NaN and Inf are counted and left out."""

    name: str
    static: bool = False
    min: float = np.inf
    max: float = -np.inf
    mean: float = 0.0
    count: int = 0
    nan: int = 0
    inf: int = 0
    first_gap: str = ""
    _squares: float = 0.0
    _with_gaps: set[str] = field(default_factory=set)

    @property
    def std(self) -> float:
        """Standard deviation (population)."""
        return float(np.sqrt(self._squares / self.count)) if self.count else float("nan")

    @property
    def trajectories_with_gaps(self) -> int:
        """Trajectories that hold NaN or Inf."""
        return len(self._with_gaps)

    def add(self, values: NDArray[np.float32], where: str, first_frame: int = 0) -> None:
        """Take in the values of some frames of one trajectory (n, *space), or (*space) for a static channel.

        Mean and squares are merged as in T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise
        algorithm for computing sample variances" (1979): no difference of large sums.
        """
        finite = np.isfinite(values)
        if not finite.all():
            self._add_gap(values, finite, where, first_frame)
        good = values[finite].astype(np.float64)
        if not good.size:
            return
        mean, total = float(good.mean()), self.count + good.size
        delta = mean - self.mean
        self._squares += float(np.square(good - mean).sum()) + delta**2 * self.count * good.size / total
        self.mean += delta * good.size / total
        self.count = total
        self.min, self.max = min(self.min, float(good.min())), max(self.max, float(good.max()))

    def _add_gap(self, values: NDArray[np.float32], finite: NDArray[np.bool_], where: str, first_frame: int) -> None:
        self.nan += int(np.isnan(values).sum())
        self.inf += int(np.isinf(values).sum())
        self._with_gaps.add(where)
        if not self.first_gap:
            frame = "" if self.static else f", frame {first_frame + int(np.argwhere(~finite)[0][0])}"
            self.first_gap = f"{where}{frame}"


@dataclass
class Report:
    """What a dataset holds, and its problems. `info` is None when not even its outline can be read, or when the files
    are several datasets."""

    path: Path | str
    layout: str
    info: DatasetInfo | None
    splits: Mapping[str, int]
    rule: str = ""
    """How trajectories are divided."""
    parameters: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Smallest and largest value of each PDE parameter."""
    channels: dict[str, ChannelFigures] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is worth knowing but not wrong."""

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def text(self) -> str:
        """The report for a terminal."""
        lines = [f"{self.path}", f"  layout      {self.layout}"]
        lines += _outline(self.info) if self.info is not None else []
        if self.splits:
            lines.append(f"  splits      {', '.join(f'{split} {count}' for split, count in self.splits.items())}")
        lines += [f"  split rule  {self.rule}"] if self.rule else []
        for name, (low, high) in self.parameters.items():
            lines.append(f"  parameter   {name} = {low:g}" + (f" .. {high:g}" if high > low else ""))
        if self.channels:
            lines.append(f"  {'channel':<24}{'min':>12}{'max':>12}{'mean':>12}{'std':>12}")
        for one in self.channels.values():
            name = f"{one.name} (static)" if one.static else one.name
            lines.append(f"  {name:<24}{one.min:>12.4g}{one.max:>12.4g}{one.mean:>12.4g}{one.std:>12.4g}")
        lines += [f"  note: {note}" for note in self.notes]
        if self.ok:
            return "\n".join([*lines, "no problems found"])
        count = len(self.problems)
        lines += [f"{count} {'problem' if count == 1 else 'problems'}:"]
        lines += [f"- {problem}" for problem in self.problems[:_PRINTED]]
        return "\n".join(lines + ([f"- and {count - _PRINTED} more"] if count > _PRINTED else []))


def _step(dt: float) -> str:
    return "the time step is not known: give it as convert.dt" if np.isnan(dt) else f"dt {dt:g}"


def _outline(info: DatasetInfo) -> list[str]:
    domain = " x ".join(
        f"{axis} [{low:g}, {high:g}]" for axis, (low, high) in zip(info.axes, info.extent, strict=True)
    )
    boundaries = ", ".join(f"{axis} {kind}" for axis, kind in zip(info.axes, info.boundaries, strict=True))
    lines = [
        f"  name        {info.name}",
        f"  grid        {' x '.join(str(size) for size in info.space)} on {domain}",
        f"  boundaries  {boundaries}",
        f"  frames      {info.frames}, {_step(info.dt)}" if info.frames > 1 else "  frames      1 (steady)",
        f"  channels    {', '.join(info.channels)}",
    ]
    if info.static_channels:
        lines.append(f"  static      {', '.join(info.static_channels)}")
    if info.masked:
        lines.append("  mask        each trajectory says which points belong to the domain")
    about = {"equation": info.equation, "source": info.source, "licence": info.licence}
    return lines + [f"  {key:<12}{value}" for key, value in about.items() if value]
