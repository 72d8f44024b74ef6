"""Configuration of a pretraining job (`configs/pretrain/*.yaml`) and of one training run, which is a part of it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from data_pipeline.base.config import Config, build, read_yaml
from data_pipeline.config import DatasetConfig
from data_pipeline.stores.cache import CacheConfig
from pretrain.model.baseline import BaselineModelConfig, chosen
from pretrain.model.config import Count
from pretrain.model.normalisation import Normalisation
from pretrain.model.sizes import SIZES

Fraction = Annotated[float, Field(ge=0, le=1)]


class MixtureEntryConfig(Config):
    """One dataset of the mixture."""

    config: str
    """The dataset's own configuration, a path relative to the file that names it."""
    weight: Count = 1
    """Share of the samples, relative to the other datasets' weights."""


class QuarantineConfig(Config):
    """Trajectories of one dataset that are not drawn; windows of its other ones are drawn in their place."""

    dataset: str
    trajectories: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Their numbers in the training split, as the message about a damaged one gives them."""
    reason: Annotated[str, Field(min_length=1)]


class DataConfig(Config):
    """The mixture of datasets to train on."""

    root: str = "data"
    """Folder that holds the stores and shards, made when it is missing; or the URL of one (`s3://bucket/prefix`)."""
    cache: CacheConfig = CacheConfig()
    """Where files behind a URL are kept on this machine. It may change between two starts of a run."""
    datasets: Annotated[tuple[MixtureEntryConfig, ...], Field(min_length=1)]
    history: Count = 10
    """Frames that the operator sees."""
    quarantine: tuple[QuarantineConfig, ...] = ()

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

    # Beyond the published network, each off by default but the slots' names.
    mode_truncation: Literal["one_sided", "symmetric"] = "one_sided"
    """Below the latent size, `modes` keeps the first frequencies of an axis as published, which drops all negative
    ones, or as many on either side of zero."""
    resize_position: bool = False
    """Take histories on other grids than the one trained on, with the position table interpolated to them."""
    initialisation: Literal["published", "edge_of_chaos"] = "published"
    """Initial spectral weights: as published, or of the variance at which gradients neither vanish nor explode."""
    condition: bool = False
    """Tell every block the time step, the boundaries and the PDE parameters (`pretrain.model.conditions`). Starts at
    zero: nothing changes before it is trained."""
    slots: Literal["named", "anonymous"] = "named"
    """`named`: fields of one name share a channel slot in all datasets. `anonymous`: each dataset's fields fill the
    first slots in their own order, and the network sees ones in the others, as published."""

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
    normalisation: Normalisation = "mean_std"
    """What fields are shifted and divided by before they enter the network: nothing (`none`), figures of the dataset
    (`mean_std`, `rms`), or each history's own mean and deviation (`sample`). It sets the unit of changes, too."""
    noise: Fraction = 0.2
    """Standard deviation of the noise on the history, as a fraction of what `noise_unit` says; 0 for no denoising."""
    noise_unit: Literal["change", "field"] = "change"
    """`change`: the dataset's RMS change from frame to frame, so that slow fields are not drowned in noise. `field`:
    each sample's RMS about what its normalisation subtracts: nothing with `none` and `rms` (the reference's norm, over
    the square root of its points), the dataset's mean with `mean_std`, its own with `sample`."""
    shift: bool = True
    """Random shifts along periodic axes, of datasets whose equation is the same everywhere."""
    rollout_steps: Count = 1
    """Predictions in a row that the loss covers, each one fed the ones before it."""


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
    """`bfloat16`: matrix products of the blocks and the head by autocast. Weights, optimizer, residuals, the stem and
    the Fourier transforms stay in float32."""
    tf32: bool = False
    """On GPUs, round the inputs of float32 products to TF32 (10 bits of mantissa): faster, and the error is about a
    thousand times float32's, also in the parts that bfloat16 leaves in float32. No effect on CPUs. Evaluation never
    does it."""
    compile: bool | Literal["cuda_graphs"] = False
    """Compile the network to one graph with torch.compile. It takes a minute or so at every start, before the first
    step, which short runs do not win back. `cuda_graphs`: replay its kernels as CUDA graphs, too, for small networks
    on GPUs, whose time goes into launching kernels; it copies the gradients of every micro-batch once, and is for
    datasets of one grid. A network is compiled for each grid."""
    recompute: bool = False
    """Keep only what enters the stem and each block, and compute the rest again in the backward pass: about half
    the memory, for one more forward pass of them."""
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

    @field_validator("precision", mode="before")
    @classmethod
    def _not_half(cls, value: Any) -> Any:
        if value in ("float16", "fp16", "half"):
            raise ValueError(
                "float16 ends at 65504, which spectra can exceed since they grow with the grid and the fields, and "
                "small gradients underflow in it; use bfloat16, which has float32's range, or float32"
            )
        return value

    @model_validator(mode="after")
    def _whole_weights_to_compile(self) -> Self:
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "zero_stage 3 gathers weights between the layers, so the network is not one graph to compile: "
                "use zero_stage 0, 1 or 2, or compile: false"
            )
        return self


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

    model: ModelConfig | BaselineModelConfig
    finetune: str | None = None
    """Configuration of a fine-tuning job that `launch/pretrain.sh` runs afterwards, relative to this file."""

    @field_validator("model", mode="before")
    @classmethod
    def _kind_of_model(cls, value: Any) -> Any:
        return chosen(value, ModelConfig, BaselineModelConfig)


class TrainedDataset(Config):
    """A dataset of a training run, as it was found."""

    name: str
    path: str
    weight: int
    digest: str
    # The digest covers these. 0 in the runs of versions that did not note them.
    trajectories: int = 0
    frames: int = 0
    space: tuple[int, ...] = ()


class SegmentConfig(Config):
    """What a run draws its samples from, from one step on."""

    first_step: int
    data: tuple[TrainedDataset, ...]
    quarantine: tuple[QuarantineConfig, ...]


class RunConfig(Config):
    """One training run, fully resolved: `config.json` in the run's folder. The ranks read nothing else."""

    name: str
    seed: int
    data: tuple[TrainedDataset, ...]
    quarantine: tuple[QuarantineConfig, ...] = ()
    first_step: int = 0
    """The step from which on samples are drawn from `data`."""
    past: tuple[SegmentConfig, ...] = ()
    """What they were drawn from before, in order; never edited."""
    history: int
    objective: ObjectiveConfig
    training: TrainingConfig
    tracking: TrackingConfig
    parent: str | None = None
    """SHA-256 of the weights of the operator that the initial weights were adapted from; None for fresh ones."""
    trainable: tuple[str, ...] | None = None
    """Prefixes of the parameters that are trained; None for all."""

    @property
    def segments(self) -> tuple[SegmentConfig, ...]:
        """All that samples are drawn from in turn, the segment in force last."""
        return (*self.past, SegmentConfig(first_step=self.first_step, data=self.data, quarantine=self.quarantine))
