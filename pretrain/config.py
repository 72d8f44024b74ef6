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
    bundle: Count = 1
    """Frames that the network predicts at once (temporal bundling): a roll-out calls it that many times less often."""

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
    noise_unit: Literal["change", "field", "norm"] = "change"
    """`change`: the dataset's RMS change from frame to frame, so that slow fields are not drowned in noise. `field`:
    each sample's RMS about what its normalisation subtracts: nothing with `none` and `rms` (the reference's norm, over
    the square root of its points), the dataset's mean with `mean_std`, its own with `sample`. `norm`, the published
    rule: as `field`, but the sample's norm instead of its RMS, so sqrt(points x frames) times as much. The published
    5e-4 on 128 x 128 points and 10 frames is 0.2 of `field`, and another level on every other grid."""
    padding_loss: bool = False
    """Let the slots that a dataset lacks weigh in the loss, with ones as their target, as published. It is for
    anonymous slots, and needs `predict: state`."""
    shift: bool = True
    """Random shifts along periodic axes, of datasets whose equation is the same everywhere."""
    rollout_steps: Count = 1
    """Predictions in a row that the loss covers, each one fed the ones before it."""
    rollout_gradient: Literal["full", "truncated", "push_forward"] = "full"
    """How far gradients go back through a roll-out. `full`: through all predictions. `truncated`: each prediction has
    its loss, and takes the ones before it as given. `push_forward` (Brandstetter, Worrall and Welling 2022): only the
    last prediction has a loss; those before it, made without gradients and at the memory of one step, are the
    disturbed input that it learns to correct."""
    rollout_random: bool = False
    """Draw the number of predictions anew for every update, from 1 to `rollout_steps`, the same for all its samples.
    With `push_forward` this is the published loss, which counts the prediction from a true history, too."""
    max_lead: Count = 1
    """Frames from the end of the history to the one that is predicted, at most: each sample's are drawn from 1 to this
    (all-to-all training, Herde et al. 2024), and the network is told, so it needs `model.condition`."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.rollout_steps == 1 and (self.rollout_random or self.rollout_gradient != "full"):
            raise ValueError(
                f"rollout_gradient: {self.rollout_gradient} and rollout_random: {self.rollout_random} are for several "
                "predictions in a row: set rollout_steps to 2 or more, or leave them out"
            )
        if self.max_lead > 1 and self.rollout_steps > 1:
            raise ValueError(
                f"max_lead {self.max_lead} reaches a later frame in one prediction, and rollout_steps "
                f"{self.rollout_steps} in several: set one of them to 1"
            )
        if self.padding_loss and (self.predict != "state" or self.normalisation == "sample"):
            raise ValueError(
                f"padding_loss has ones for a target, which no change and no figures of a sample lead to (predict: "
                f"{self.predict}, normalisation: {self.normalisation}): set predict: state and another normalisation"
            )
        if self.noise_unit == "norm" and "noise" not in self.model_fields_set:
            raise ValueError("noise_unit: norm needs a noise of its own: the published one is 5e-4, and 0 is none")
        return self

    def frames_out(self, bundle: int) -> int:
        """Frames after the history that a window reaches, for a network that predicts `bundle` frames at once."""
        return max(self.max_lead, self.rollout_steps * bundle)

    def misfit(self, *, slots: str, condition: bool, bundle: int) -> str | None:
        """Why this cannot be learned by a network with these slots, conditions and frames at once; None where it can.

        Beside the validator, since what is fine-tuned is not known before it is opened.
        """
        if self.padding_loss and slots != "anonymous":
            return f"objective.padding_loss is for slots padded with ones, and slots are {slots}: set it to false"
        if self.max_lead > 1 and not condition:
            return (
                f"objective.max_lead {self.max_lead} needs a network that is told how far ahead to predict: set "
                "condition to true (model.condition, or adapt.condition when fine-tuning), or max_lead to 1"
            )
        if self.max_lead > 1 and bundle > 1:
            return f"objective.max_lead {self.max_lead} is for networks that predict one frame, not {bundle} at once"
        return None


OUR_DEEPSPEED = {
    "train_batch_size": "training.batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.batch_size and micro_batch",
    "gradient_clipping": "training.clip",
    "optimizer": "training.optimizer",
    "scheduler": "training.schedule",
    "stage": "training.zero_stage",
    **dict.fromkeys(("fp16", "bf16", "amp", "torch_autocast"), "training.precision"),
}
"""DeepSpeed's settings that this project's own ones make."""

EXECUTION = (
    "ranks", "zero_stage", "compile", "recompute", "max_loss_ratio", "patience", "max_rollbacks", "checkpoint_every",
    "keep_checkpoints", "keep_every", "validation_trajectories", "log_every", "restarts", "hang_timeout",
    "collective_timeout", "stop_timeout", "deepspeed",
)  # fmt: skip
"""Settings of training that say how it is run, not what is learned: they may change between two starts of a run."""


class TrainingConfig(Config):
    """How it is learned."""

    steps: Count
    batch_size: Count = 16
    """Samples in one step, over all ranks."""
    micro_batch: Count = 8
    """Samples that go through the network at once. batch_size / micro_batch must be a multiple of the ranks."""
    ranks: Count | Literal["auto"] = "auto"
    """Training processes: `auto` is one for each GPU, or two on CPU, as far as the batch divides among them."""
    restarts: Annotated[int, Field(ge=0)] = 3
    """How often the ranks are started again, from the newest checkpoint, after one of them died."""
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
    optimizer: Literal["adamw", "adam", "muon"] = "adamw"
    """`adam`: weight decay is a part of the gradient, as published. `muon`: the blocks' matrices move along their
    orthogonalised momentum, in steps of the size of AdamW's; all else by AdamW (`pretrain.muon`)."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Its peak."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Adam's: what its denominator, the root of the mean squared gradient, is kept away from zero by."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-6
    schedule: Literal["cosine", "onecycle", "wsd", "constant"] = "cosine"
    """After the warm-up the learning rate falls along a cosine, to 1e-3 of its peak (`cosine`) or as published
    (`onecycle`); stays, and falls in the last `decay` of the steps (`wsd`); or stays (`constant`)."""
    warmup: Fraction = 0.1
    """Share of the steps in which the learning rate rises."""
    decay: Fraction = 0.2
    """`wsd`: share of the steps in which it falls."""
    decay_shape: Literal["linear", "one_minus_sqrt"] = "one_minus_sqrt"
    """`wsd`: how it falls."""
    div_factor: Annotated[float, Field(ge=1)] = 1e4
    """`onecycle`: the peak over the first learning rate."""
    final_div_factor: Annotated[float, Field(ge=1)] = 1e4
    """`onecycle`: the first learning rate over the last."""
    cycle_beta1: Fraction | None = None
    """`onecycle`: what the first of `betas` falls to while the learning rate rises, to rise again while that falls."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Upper bound of the gradient's norm; 0 for none."""
    clip_quantile: Annotated[float, Field(gt=0, le=1)] | None = None
    """Bound the gradient's norm by this quantile of the norms of the last `clip_window` steps, too."""
    clip_window: Count = 200
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Publish an exponential moving average of the weights, which keeps this share of itself at each step."""
    max_loss_ratio: Annotated[float, Field(ge=0)] = 50.0
    """Steps whose loss is more than so many times the median of the last 100 are not taken; 0 to take all that are
    finite."""
    patience: Count = 3
    """After so many steps in a row that were not taken, the run goes back to its last checkpoint, and on with other
    samples in place of those that these steps objected to."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """How often it may; then it fails."""
    checkpoint_every: Count = 200
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    keep_every: Annotated[int, Field(ge=0)] = 0
    """Checkpoints of steps that this divides are never deleted; 0 for none."""
    validation_trajectories: Annotated[int, Field(ge=0)] = 0
    """Every checkpoint is rolled out on so many trajectories of each dataset's split `valid`; 0 for none."""
    log_every: Count = 10
    hang_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds without progress after which a rank is taken for hung: its stacks are written down, and it is ended.
    More than any step takes, or validation, or writing of a checkpoint."""
    collective_timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds that a rank waits for the others, also at the start."""
    stop_timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds for the last step and its checkpoint after a request to stop. A request that comes while the run
    validates waits for the end of that, so it should be more than a validation takes."""
    deepspeed: dict[str, Any] = {}
    """Further settings of DeepSpeed, as its documentation has them:
    `{zero_optimization: {offload_optimizer: {device: cpu}}}`."""

    @field_validator("deepspeed")
    @classmethod
    def _ours_is_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        zero = value.get("zero_optimization", {})
        taken = [f"zero_optimization.{k}" for k in zero if k == "stage"] + [k for k in value if k in OUR_DEEPSPEED]
        if taken:
            keys = ", ".join(f"{key} by {OUR_DEEPSPEED[key.removeprefix('zero_optimization.')]}" for key in taken)
            raise ValueError(f"set {keys}")
        devices = {key: (zero.get(key) or {}).get("device") for key in ("offload_optimizer", "offload_param")}
        if "nvme" in devices.values():
            raise ValueError(
                f"offloading to nvme is not supported, since checkpoints read the state in memory: {devices}"
            )
        return value

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
    def _schedule_is_whole(self) -> Self:
        if self.cycle_beta1 is not None and self.schedule != "onecycle":
            raise ValueError(f"cycle_beta1 goes with schedule: onecycle, not {self.schedule}: leave one of them out")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(
                f"warmup {self.warmup} and decay {self.decay} are shares of the same steps: together at most 1"
            )
        return self

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

    @model_validator(mode="after")
    def _model_can_learn_it(self) -> Self:
        model = self.model
        if why := self.objective.misfit(slots=model.slots, condition=model.condition, bundle=model.bundle):
            raise ValueError(why)
        return self

    @model_validator(mode="after")
    def _muon_has_matrices(self) -> Self:
        if self.training.optimizer == "muon" and isinstance(self.model, BaselineModelConfig):
            raise ValueError("training.optimizer: muon is for this project's network; use adamw with a baseline")
        return self


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
    replaced: tuple[int, ...] = ()
    """Numbers of the micro-batches that others stand in for, since steps with them could not be taken."""
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
