"""Configuration of a dataset: where it comes from, how it is split, how it is stored and exported."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data_pipeline.base.config import Config
from data_pipeline.resample import Resampling
from data_pipeline.trajectory import Boundary

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class GenerateConfig(Config):
    """A dataset that a solver makes."""

    family: str
    """Name of the PDE family (`pdepot data generate --list`)."""
    resolution: tuple[Annotated[int, Field(ge=4)], ...]
    """Grid points along each axis of the stored fields."""
    frames: Annotated[int, Field(ge=1)] = 1
    """Stored frames; 1 for a steady family."""
    dt: Annotated[float, Field(ge=0)] = 0.0
    """Time between two stored frames; 0 for a steady family."""
    start: Annotated[float, Field(ge=0)] = 0.0
    """Time of the first stored frame."""
    parameters: dict[str, Any] = {}
    """The family's own parameters; the rest keep their defaults."""
    seed: int = 0
    splits: dict[Literal["train", "valid", "test"], Annotated[int, Field(ge=0)]]
    """Number of trajectories in each split."""
    precision: Literal["float64", "float32"] = "float64"
    """Precision of the solver; what is stored is float32 in either."""
    error_samples: Annotated[int, Field(ge=0)] = 2
    """Trajectories that are solved a second time, about twice as fine in space and time, to estimate the error."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the solver runs. With `cuda` each shard takes one GPU, and solves its trajectories together."""
    compile: bool = False
    """Compile the steps that are bound by memory traffic (finite volumes): pays after some minutes of work."""


Share = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] | Literal["rest"]


class SplitRule(Config):
    """How trajectories that have no splits of their own are divided: ranges, in the order of the files.

    A whole number counts trajectories, a fraction is that share of all of them (rounded down), and `rest` is what the
    others leave. Without a `rest`, trajectories after the last range are not taken.
    """

    order: tuple[Split, ...] = SPLITS
    """Which range comes first."""
    train: Share = "rest"
    valid: Share = 0
    test: Share
    of: Literal["trajectories", "segments"] = "trajectories"
    """What is counted. `trajectories` keeps all segments of one trajectory (`convert.frames`) in one split; `segments`
    divides what may be a single long trajectory: neighbours in time then stand on either side of a border."""
    each: Literal["dataset", "file"] = "dataset"
    """Whether the ranges are cut once, out of all files in a row, or out of every file (one for each value of a PDE
    parameter, say), whose parts of one split are then put in a row."""

    @model_validator(mode="after")
    def _one_range_each(self) -> Self:
        if sorted(self.order) != sorted(SPLITS):
            raise ValueError(f"order must name each of {', '.join(SPLITS)} once")
        if [self.train, self.valid, self.test].count("rest") > 1:
            raise ValueError("only one split can take the rest")
        return self


class ArrayConfig(Config):
    """One array in a plain file (NPY, NPZ, MAT, HDF5, NetCDF, Zarr), and what its axes mean."""

    key: str | None = None
    """Name of the array in the file; none in an NPY file."""
    file: str | None = None
    """File of this array, relative to `convert.path`, where each array has a file of its own."""
    axes: str
    """Its axes in order: b trajectory, t time, x y z space, c channel, 1 an axis of length one that is dropped.
    Brackets split an axis: "(x y) t" is a matrix of 21 * 21 points by 100 frames, with `plain.sizes: {x: 21}`."""
    channels: tuple[str, ...] = ()
    """Names along the axis c; for an array without one, its own name stands."""


class PlainConfig(Config):
    """What the arrays of a plain file mean."""

    fields: dict[str, ArrayConfig]
    """What changes in time (or, in a steady problem, the solution)."""
    static: dict[str, ArrayConfig] = {}
    """What does not: coefficients, forcing, the input of a steady problem."""
    mask: ArrayConfig | None = None
    """Not zero at the points that belong to the domain."""
    parameters: dict[str, ArrayConfig] = {}
    """PDE parameters, one value a trajectory, or one for all."""
    time: ArrayConfig | None = None
    coordinates: dict[str, ArrayConfig] = {}
    """Positions of the grid points, by axis."""
    sizes: dict[str, Annotated[int, Field(ge=1)]] = {}
    """Lengths of axes in brackets."""

    @property
    def places(self) -> dict[str, ArrayConfig]:
        """All arrays by their place in this description: `fields.pressure`."""
        groups = {
            "fields": self.fields,
            "static": self.static,
            "parameters": self.parameters,
            "coordinates": self.coordinates,
        }
        found = {f"{group}.{name}": array for group, arrays in groups.items() for name, array in arrays.items()}
        return found | {n: array for n, array in (("mask", self.mask), ("time", self.time)) if array is not None}

    @property
    def own_files(self) -> bool:
        """Arrays have files of their own, so that the folder of these is one file of the dataset."""
        return any(array.file is not None for array in self.places.values())


class ConvertConfig(Config):
    """A dataset in one of the published layouts."""

    layout: Literal[
        "the_well", "pdebench", "pdearena", "poseidon", "cfdbench", "fno", "neuraloperator", "pbdl", "dpot", "plain"
    ] | None = None  # fmt: skip
    """The layout; found from the files if not given."""
    path: str
    """Folder or file of the dataset."""
    files: tuple[str, ...] = ()
    """Take only these files, in this order: names or patterns (`*_0.1_*.h5`), relative to `path`."""
    splits: SplitRule | None = None
    """Needed where the layout has no splits of its own."""
    merge: dict[Split, Split] = {}
    """Put the trajectories of one split after those of another: `{valid: train}`."""
    limit: dict[Split, Annotated[int, Field(ge=0)]] = {}
    """Take at most so many trajectories of a split (few-shot studies, tests)."""
    stride: Annotated[int, Field(ge=1)] = 1
    """Take every so many frames."""
    every: Annotated[float, Field(gt=0)] | None = None
    """Take frames so far apart in time: a stride of its own for each file, where files differ in their time step."""
    frames: Annotated[int, Field(ge=1)] | None = None
    """Cut each trajectory into segments of so many frames, each of which becomes a trajectory. Needed where
    trajectories differ in length."""
    remainder: Literal["drop", "repeat_last"] = "drop"
    """What happens to the frames after the last whole segment: dropped, or filled up with the last frame."""
    channels: tuple[str, ...] = ()
    """Take only these fields, in this order. `mask` stands for the mask as a field of ones and zeros; it then is one
    field among others, and all points count."""
    rename: dict[str, str] = {}
    """New names of fields, static fields and parameters."""
    dt: Annotated[float, Field(gt=0)] | None = None
    """This and the next ones replace what the files say, or say it where they do not."""
    extent: tuple[tuple[float, float], ...] | None = None
    boundaries: tuple[Boundary, ...] | None = None
    parameters: dict[str, float] = {}
    """PDE parameters that hold for all trajectories."""
    source: str = ""
    licence: str = ""
    equation: str = ""
    translation_invariant: bool = False
    """The equation is the same everywhere, so that training may shift the fields along periodic axes."""
    plain: PlainConfig | None = None
    """For `layout: plain`."""

    @model_validator(mode="after")
    def _plain_is_described(self) -> Self:
        if (self.layout == "plain") != (self.plain is not None):
            raise ValueError("'layout: plain' and 'plain' (what the arrays mean) go together")
        if self.every is not None and (self.stride != 1 or self.dt is not None):
            raise ValueError("'every' sets the stride and the time step: leave 'stride' and 'dt' out")
        return self


class StoreConfig(Config):
    """How the canonical Zarr store is cut."""

    trajectories_per_shard: Annotated[int, Field(ge=1)] = 8


class ExportConfig(Config):
    """How the WebDataset shards are cut."""

    trajectories_per_shard: Annotated[int, Field(ge=1)] = 16
    dtype: Literal["float32", "float16"] = "float32"
    resolution: tuple[Annotated[int, Field(ge=2)], ...] | None = None
    """Grid points along each axis; by default those of the store."""
    resampling: Resampling = "none"
    """How the fields come onto `resolution`. `bilinear`: linear along each axis, half-pixel centres, no filter against
    aliasing (the rule of the published DPOT models); `bilinear_corners`: the same with the first and last points kept
    in place (their rule for CFDBench); `spectral`: Fourier modes cut off or added, for periodic axes."""

    @model_validator(mode="after")
    def _resolution_and_rule(self) -> Self:
        if (self.resolution is None) != (self.resampling == "none"):
            raise ValueError(
                "'resolution' and 'resampling' (bilinear, bilinear_corners or spectral) go together: give both or none"
            )
        return self


class ScoreConfig(Config):
    """What an evaluation scores of each trajectory; all that is predicted, by default."""

    frames: Annotated[int, Field(ge=1)] | None = None
    """So many predicted frames, the first ones."""
    every: Annotated[int, Field(ge=1)] = 1
    """Every so many grid points along each axis, from the first on (data that were resized to a finer grid)."""
    channels: tuple[str, ...] = ()
    """Only these fields."""


class DatasetConfig(Config):
    """One dataset, from its source to its shards (`configs/data/*.yaml`)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    generate: GenerateConfig | None = None
    convert: ConvertConfig | None = None
    store: StoreConfig = StoreConfig()
    export: ExportConfig = ExportConfig()
    score: ScoreConfig = ScoreConfig()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.generate is None) == (self.convert is None):
            raise ValueError("give exactly one of 'generate' and 'convert'")
        return self
