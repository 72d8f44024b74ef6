"""Configuration of a fine-tuning job (`configs/finetune/*.yaml`)."""

from typing import Annotated

from pydantic import Field

from data_pipeline.base.config import Config
from pretrain.config import (
    DataConfig,
    EvaluationConfig,
    ObjectiveConfig,
    RegistryConfig,
    TrackingConfig,
    TrainingConfig,
)


class AdaptConfig(Config):
    """How pretrained weights meet new channels."""

    channels: dict[str, str] = {}
    """Which pretrained channel a new one starts from. Channels of one name always meet; the others take what is left,
    in order."""


class FinetuneConfig(Config):
    """A fine-tuning job from a registered model to its report."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    output: str
    """Folder of the job's results."""
    model: str
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder with an operator."""
    seed: int = 0
    data: DataConfig
    adapt: AdaptConfig = AdaptConfig()
    trainable: tuple[str, ...] | None = None
    """Prefixes of the network's parameters that are trained (`out_layer`, `blocks.3`); None for all."""
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig
    compare_with_scratch: bool = True
    """Train the same network from fresh weights too: same data, samples, noise and steps."""
    tracking: TrackingConfig = TrackingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    registry: RegistryConfig | None = None
