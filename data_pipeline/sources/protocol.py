"""What a source of raw trajectories promises the build, whether it reads files or solves a PDE."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from data_pipeline.config import DatasetConfig
from data_pipeline.trajectory import DatasetInfo, FloatArray, Trajectory


class Source(Protocol):
    """Trajectories by split and number; opening one is cheap, and checks what can be checked without long work."""

    info: DatasetInfo
    splits: Mapping[str, int]
    """Number of trajectories in each split."""

    def read(self, split: str, start: int, stop: int) -> Iterator[Trajectory]:
        """Trajectories start .. stop of a split, one at a time.

        Raises:
            DataError: a file is damaged, or a field holds NaN or Inf; names file, key and trajectory.
        """
        ...

    def fingerprint(self) -> Any:
        """A JSON-able value that changes when the raw data change (file names, sizes and times; seed and version)."""
        ...


@runtime_checkable
class SolvingSource(Source, Protocol):
    """A source that solves: it can solve a trajectory again, more finely."""

    def refined(self, split: str, number: int) -> FloatArray:
        """The fields of a trajectory from a finer run, float32 (T, *space, C)."""
        ...

    def numerics(self) -> dict[str, Any]:
        """How the numbers are made, and those of the finer run: fields of `stores.generation.Generation`."""
        ...

    def working_bytes(self, trajectories: int) -> int:
        """Memory that solving so many trajectories together takes beside their stored frames."""
        ...


def open_source(config: DatasetConfig) -> Source:
    """The source that a dataset's configuration names. Raises ConfigError or DataError."""
    if config.generate is not None:
        from data_pipeline.solvers.source import SolverSource

        return SolverSource(config.name, config.generate)
    assert config.convert is not None
    from data_pipeline.sources.files import FileSource
    from data_pipeline.sources.registry import known_layout, layout

    name = config.convert.layout or known_layout(Path(config.convert.path).expanduser())
    return FileSource(config.name, config.convert, layout(name))
