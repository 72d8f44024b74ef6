"""The optimizer of a run: torch's Adam or AdamW, or Muon, built on plain parameters before DeepSpeed partitions them.

Their state is, for every parameter, tensors of its own shape and at most a counter of steps, so whatever ZeRO cuts a
parameter into, the state is cut alike. Nothing is compiled.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pretrain.config import TrainingConfig
from pretrain.fragments import fragments, inner_optimizer
from pretrain.muon import Muon


def make_optimizer(
    training: TrainingConfig, named_parameters: Iterable[tuple[str, nn.Parameter]]
) -> torch.optim.Optimizer:
    """The optimizer for those parameters that require gradients, in the order given.

    Args:
        training: of which `optimizer`, `learning_rate`, `betas`, `epsilon` and `weight_decay` count.
        named_parameters: as `module.named_parameters()` gives them, whole.

    Returns:
        An optimizer with one group of parameters; Muon with two, matrices first. Hand it to `deepspeed.initialize`
        (with `zero_allow_untested_optimizer`), then call `connect`.

    Raises:
        ConfigError: Muon without a matrix to train.
    """
    trained = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    settings: dict[str, Any] = {
        "lr": training.learning_rate,
        "betas": training.betas,
        "eps": training.epsilon,
        "weight_decay": training.weight_decay,
    }
    if training.optimizer == "muon":
        return Muon(trained, **settings)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind([parameter for _, parameter in trained], **settings)


def connect(engine: Any) -> None:
    """Tell the optimizer what of its parameters this rank has, once the engine has partitioned them.

    Only Muon needs it: a step takes whole matrices.
    """
    optimizer = inner_optimizer(engine)
    if isinstance(optimizer, Muon):
        optimizer.connect(fragments(engine), engine.zero_optimization_stage() > 0, engine.device)
