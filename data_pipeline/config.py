"""Configuration of a dataset: where it comes from, how it is split, how it is stored and exported."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from data_pipeline.base.config import Config

SPLITS = ("train", "valid", "test")


class GenerateConfig(Config):
    """A dataset that a solver makes."""

    family: str
    """Name of the PDE family (`pdepot data generate --list`)."""
    resolution: tuple[Annotated[int, Field(ge=4)], ...]
    """Grid points along each axis of the stored fields."""
    frames: Annotated[int, Field(ge=2)]
    dt: Annotated[float, Field(gt=0)]
    """Time between two stored frames."""
    start: Annotated[float, Field(ge=0)] = 0.0
    """Time of the first stored frame."""
    parameters: dict[str, Any] = {}
    """The family's own parameters; the rest keep their defaults."""
    seed: int = 0
    splits: dict[Literal["train", "valid", "test"], Annotated[int, Field(ge=0)]]
    """Number of trajectories in each split."""


class ConvertConfig(Config):
    """A dataset in one of the published layouts."""

    layout: Literal["the_well"]
    path: str
    """Folder of the dataset."""
    limit: dict[Literal["train", "valid", "test"], Annotated[int, Field(ge=0)]] = {}
    """Take at most so many trajectories of a split (few-shot studies, tests)."""
    source: str = ""
    licence: str = ""
    equation: str = ""
    translation_invariant: bool = False
    """The equation is the same everywhere, so that training may shift the fields along periodic axes."""


class StoreConfig(Config):
    """How the canonical Zarr store is cut."""

    trajectories_per_shard: Annotated[int, Field(ge=1)] = 8


class ExportConfig(Config):
    """How the WebDataset shards are cut."""

    trajectories_per_shard: Annotated[int, Field(ge=1)] = 16
    dtype: Literal["float32", "float16"] = "float32"


class DatasetConfig(Config):
    """One dataset, from its source to its shards (`configs/data/*.yaml`)."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    generate: GenerateConfig | None = None
    convert: ConvertConfig | None = None
    store: StoreConfig = StoreConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.generate is None) == (self.convert is None):
            raise ValueError("give exactly one of 'generate' and 'convert'")
        return self
