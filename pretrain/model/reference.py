"""Published weights in: the reference's constructor arguments and state dict to a network of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError, nearest
from pretrain.model.config import NetworkConfig
from pretrain.model.dpot import Dpot

NAMES = {
    "patch_size": "patch_size",
    "in_channels": "in_channels",
    "out_channels": "out_channels",
    "in_timesteps": "in_timesteps",
    "out_timesteps": "out_timesteps",
    "n_blocks": "heads",
    "embed_dim": "width",
    "out_layer_dim": "head_width",
    "depth": "depth",
    "modes": "modes",
    "mlp_ratio": "mlp_ratio",
    "n_cls": "classes",
    "normalize": "normalize",
    "act": "activation",
    "time_agg": "time_aggregation",
}
"""The name of each of the reference's constructor arguments for our setting."""
# What the reference's constructors assume for an argument that is not given.
_DEFAULTS = {
    "img_size": 224,
    "patch_size": 16,
    "in_channels": 1,
    "in_timesteps": 1,
    "out_timesteps": 1,
    "n_blocks": 4,
    "embed_dim": 768,
    "out_layer_dim": 32,
    "depth": 12,
    "modes": 32,
    "mlp_ratio": 1.0,
    "normalize": False,
    "act": "gelu",
    "time_agg": "exp_mlp",
}
_DEFAULTS_BY_RANK = {2: {"out_channels": 4, "n_cls": 12}, 3: {"out_channels": 3, "n_cls": 1}}


def reference_config(arguments: Mapping[str, Any], rank: int) -> NetworkConfig:
    """Our configuration of the network that the reference builds from these constructor arguments.

    Args:
        arguments: the reference's names (`img_size`, `embed_dim`, `n_blocks`, ...); `img_size` may have one number
            for each axis.
        rank: number of spatial axes, 2 or 3.

    Raises:
        ConfigError: an argument is unknown, or the reference could not build such a network either.
    """
    for key in arguments:
        if key not in NAMES and key not in ("img_size", "mixing_type"):
            known = [*NAMES, "img_size", "mixing_type"]
            raise ConfigError("unknown argument of the reference network", key=key, remedy=nearest(key, known))
    if arguments.get("mixing_type", "afno") != "afno":
        raise ConfigError(
            "unknown mixer", key="mixing_type", found=arguments["mixing_type"], expected="afno, the only one published"
        )
    given = {**_DEFAULTS, **_DEFAULTS_BY_RANK[rank], **arguments}
    size = given["img_size"]
    space = tuple(size) if isinstance(size, list | tuple) else (size,) * rank
    return build(NetworkConfig, {"space": space, **{ours: given[theirs] for theirs, ours in NAMES.items()}})


def load_reference(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> nn.Module:
    """The network that the reference builds from `config`, with its weights.

    Args:
        config: constructor arguments by the reference's names.
        state_dict: weights by the reference's names, with or without the `module.` that its data-parallel wrapper
            puts before them. The rank of `pos_embed` tells 2D from 3D.

    Returns:
        A module that maps a history (B, *space, T_in, C) to the prediction (B, *space, T_out, C).

    Raises:
        ConfigError: weights and configuration do not belong together; names every key that differs.
    """
    weights = {name.removeprefix("module."): value for name, value in state_dict.items()}
    if "pos_embed" not in weights:
        raise ConfigError("not weights of the reference network", key="pos_embed", found="no such key")
    network = Dpot(reference_config(config, weights["pos_embed"].ndim - 2))
    load_weights(network, weights)
    return network


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights, all of them and nothing else.

    Raises:
        ConfigError: names the keys that are missing, left over or of another shape.
    """
    check_weights(module, weights)
    module.to(next(iter(weights.values())).dtype)
    module.load_state_dict(weights)


def check_weights(module: nn.Module, weights: Mapping[str, Tensor], file: Path | None = None) -> None:
    """Check that the weights are those of the module, all of them and nothing else; meta tensors will do.

    Raises:
        ConfigError: names the keys that are missing, left over or of another shape, and the file they come from.
    """
    own = module.state_dict()
    differences = [f"{k}: missing" for k in own.keys() - weights.keys()]
    differences += [f"{k}: not in the network" for k in weights.keys() - own.keys()]
    differences += [
        f"{k}: found {tuple(weights[k].shape)}, expected {tuple(own[k].shape)}"
        for k in own.keys() & weights.keys()
        if weights[k].shape != own[k].shape
    ]
    if differences:
        raise ConfigError("the weights do not fit the network", file=file, key="\n       ".join(sorted(differences)))
