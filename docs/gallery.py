"""A picture of every family that pdepot solves, from its configuration: `python docs/gallery.py FILE.png`.

Planes show the first channel's middle frame, lines all frames (time runs upwards), boxes a slice through the middle.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from data_pipeline.base.config import load
from data_pipeline.base.progress import Progress
from data_pipeline.config import DatasetConfig
from data_pipeline.solvers.registry import FAMILIES
from data_pipeline.solvers.source import SolverSource
from data_pipeline.trajectory import DatasetInfo, Trajectory

COLUMNS = 7


def sources() -> dict[str, SolverSource]:
    """The source of every family, by the first of the project's configurations that generates it."""
    found: dict[str, SolverSource] = {}
    for file in sorted((Path(__file__).parents[1] / "configs/data").glob("*.yaml")):
        config = load(DatasetConfig, file)
        if config.generate is not None and config.generate.family not in found:
            found[config.generate.family] = SolverSource(config.name, config.generate)
    missing = sorted(FAMILIES.keys() - found.keys())
    if missing:
        raise SystemExit(f"configs/data has no configuration of {', '.join(missing)}")
    return dict(sorted(found.items()))


def picture(info: DatasetInfo, trajectory: Trajectory) -> np.ndarray:
    """What is drawn of a trajectory, (rows, columns): NaN outside of the domain."""
    values = trajectory.fields[..., 0].astype(np.float64)
    if trajectory.mask is not None:
        values = np.where(trajectory.mask, values, np.nan)
    if len(info.space) == 1:
        return values
    frame = values[len(values) // 2]
    return frame.T if len(info.space) == 2 else frame[..., info.space[2] // 2].T


def main(file: Path) -> None:
    """Solve one trajectory of each family and draw them all."""
    torch.set_num_threads(1)
    families = sources()
    rows = -(-len(families) // COLUMNS)
    figure = Figure(figsize=(1.7 * COLUMNS, 1.95 * rows), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    with Progress("solving", len(families), unit="families") as progress:
        for panel, (name, source) in zip(panels, families.items(), strict=False):
            values = picture(source.info, next(source.read("train", 0, 1)))
            bound = np.nanmax(np.abs(values))
            signed = np.nanmin(values) < 0 < np.nanmax(values)
            limits = {"vmin": -bound, "vmax": bound} if signed else {}
            panel.imshow(values, origin="lower", aspect="auto", cmap="RdBu_r" if signed else "viridis", **limits)
            panel.set_title(f"{name}\n{source.info.channels[0]}", fontsize=6)
            progress.advance()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
