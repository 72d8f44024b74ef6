"""Configuration of a fine-tuning job (`configs/finetune/*.yaml`)."""

from data_pipeline.base.config import Config
from pretrain.config import JobConfig


class AdaptConfig(Config):
    """How pretrained weights meet new channels."""

    channels: dict[str, str] = {}
    """Which pretrained channel a new one starts from. Channels of one name always meet; the others take what is left,
    in order."""
    condition: bool = False
    """Tell a network that was pretrained without conditions the time step, boundaries and PDE parameters
    (`pretrain.model.conditions`). The new weights start at zero effect. One pretrained with conditions keeps them."""


class FinetuneConfig(JobConfig):
    """A fine-tuning job from a registered model to its report."""

    model: str
    """`models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a folder with an operator."""
    adapt: AdaptConfig = AdaptConfig()
    trainable: tuple[str, ...] | None = None
    """Prefixes of the network's parameters that are trained (`out_layer`, `blocks.3`); None for all."""
    compare_with_scratch: bool = True
    """Train the same network from fresh weights too: same data, samples, noise and steps."""
