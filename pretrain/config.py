"""Configuration of a pretraining job (`configs/pretrain/*.yaml`) and of one training run, which is a part of it."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_pipeline.base.config import Config, build, read_yaml
from data_pipeline.config import DatasetConfig
from pretrain.model.dpot import Count
from pretrain.model.sizes import SIZES

Fraction = Annotated[float, Field(ge=0, le=1)]


class MixtureEntryConfig(Config):
    """One dataset of the mixture."""

    config: str
    """The dataset's own configuration, a path relative to the file that names it."""
    weight: Count = 1
    """Share of the samples, relative to the other datasets' weights."""


class DataConfig(Config):
    """The mixture of datasets to train on."""

    root: str = "data"
    """Folder that holds the stores and shards; made when it is missing."""
    datasets: Annotated[tuple[MixtureEntryConfig, ...], Field(min_length=1)]
    history: Count = 10
    """Frames that the operator sees."""

    def load_datasets(self, folder: Path) -> list[DatasetConfig]:
        """The datasets' own configurations; `folder` is that of the file which names them."""
        return [build(DatasetConfig, read_yaml(folder / d.config), file=folder / d.config) for d in self.datasets]


class ModelConfig(Config):
    """Shape of the network; what follows from the data (grid, channels) is not asked for."""

    size: Literal["nano", "Ti", "S", "M", "L", "H"] | None = None
    """A published size; it fixes width, depth, MLP ratio, heads and head width."""
    width: Count | None = None
    depth: Count | None = None
    mlp_ratio: Annotated[float, Field(gt=0)] | None = None
    heads: Count | None = None
    head_width: Count | None = None
    patch_size: Count = 8
    modes: Count = 32
    activation: Literal["gelu", "tanh", "sigmoid", "relu", "leaky_relu", "softplus", "ELU", "silu"] = "gelu"
    time_aggregation: Literal["exp_mlp", "mlp"] = "exp_mlp"
    normalize: bool = False

    @model_validator(mode="after")
    def _size_or_shape(self) -> Self:
        shape = {k: getattr(self, k) for k in SIZES["nano"]}
        if self.size is None and None in shape.values():
            missing = [k for k, v in shape.items() if v is None]
            raise ValueError(f"give a size, or each of {', '.join(shape)} (missing: {', '.join(missing)})")
        if self.size is not None and any(v is not None for v in shape.values()):
            given = [k for k, v in shape.items() if v is not None]
            raise ValueError(f"size {self.size} fixes {', '.join(given)}: give one or the other")
        return self


class ObjectiveConfig(Config):
    """What is learned."""

    predict: Literal["state", "change"] = "change"
    """The next state, or the change since the last frame of the history."""
    normalisation: Literal["dataset", "none"] = "dataset"
    noise: Fraction = 0.2
    """Standard deviation of the noise on the history, as a fraction of what `noise_unit` says; 0 for no denoising."""
    noise_unit: Literal["change", "field"] = "change"
    """`change`: the dataset's RMS change from frame to frame, so that slow fields are not drowned in noise. `field`:
    each sample's RMS about the dataset's mean (the reference's norm, over the square root of its points)."""
    shift: bool = True
    """Random shifts along periodic axes, of datasets whose equation is the same everywhere."""
    rollout_steps: Count = 1
    """Predictions in a row that the loss covers, each one fed the ones before it."""

    @model_validator(mode="after")
    def _unit_is_known(self) -> Self:
        if self.noise and self.noise_unit == "change" and self.normalisation == "none":
            raise ValueError("noise_unit 'change' needs normalisation 'dataset'; with 'none' use noise_unit 'field'")
        return self


class TrainingConfig(Config):
    """How it is learned."""

    steps: Count
    batch_size: Count = 16
    """Samples in one step, over all ranks."""
    micro_batch: Count = 8
    """Samples that go through the network at once. batch_size / micro_batch must be a multiple of the ranks."""
    ranks: Count | Literal["auto"] = "auto"
    """Training processes: `auto` is one for each GPU, or two on CPU, as far as the batch divides among them."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    warmup: Fraction = 0.1
    """Share of the steps in which the learning rate rises; afterwards it falls along a cosine to nearly zero."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Upper bound of the gradient's norm; 0 for none."""
    checkpoint_every: Count = 200
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    log_every: Count = 10


class TrackingConfig(Config):
    """MLflow. The server is $MLFLOW_TRACKING_URI, or a SQLite file in the output folder."""

    experiment: str = "pdepot"


class RegistryConfig(Config):
    """Where the trained operator is registered."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    alias: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$")] = "champion"

    @model_validator(mode="after")
    def _alias_is_free(self) -> Self:
        if re.fullmatch(r"latest|v\d+", self.alias):
            raise ValueError(
                f"alias {self.alias!r} is one that MLflow keeps for itself; choose another, like champion"
            )
        return self


class EvaluationConfig(Config):
    """Roll-outs on held-out trajectories."""

    split: Literal["valid", "test"] = "test"
    batch_size: Count = 8
    limit: Count | None = None
    """At most so many trajectories of each dataset."""


class JobConfig(Config):
    """What pretraining and fine-tuning jobs have in common."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    output: str
    """Folder of the job's results."""
    seed: int = 0
    data: DataConfig
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    registry: RegistryConfig | None = None


class PretrainConfig(JobConfig):
    """A pretraining job from its data to its report."""

    model: ModelConfig
    finetune: str | None = None
    """Configuration of a fine-tuning job that `launch/pretrain.sh` runs afterwards, relative to this file."""


class TrainedDataset(Config):
    """A dataset of a training run, as it was found."""

    name: str
    path: str
    weight: int
    digest: str


class RunConfig(Config):
    """One training run, fully resolved: `config.json` in the run's folder. The ranks read nothing else."""

    name: str
    seed: int
    data: tuple[TrainedDataset, ...]
    history: int
    objective: ObjectiveConfig
    training: TrainingConfig
    tracking: TrackingConfig
    parent: str | None = None
    """SHA-256 of the weights of the operator that the initial weights were adapted from; None for fresh ones."""
    trainable: tuple[str, ...] | None = None
    """Prefixes of the parameters that are trained; None for all."""
