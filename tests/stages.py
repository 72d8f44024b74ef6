"""A small network under a DeepSpeed engine of any ZeRO stage, with the same gradients on every rank."""

from typing import Any

import torch

from data_pipeline.base.config import build
from pretrain.config import TrainingConfig
from pretrain.engine import make_engine
from tests.operators import make_operator


def engine_of(stage: int, optimizer: str = "adamw", seed: int = 0) -> Any:
    """An engine around a network, one of whose parameters is frozen. Collective."""
    network = make_operator(network={"depth": 2, "mlp_ratio": 1.5}, seed=seed).network
    network.pos_embed.requires_grad_(False)
    network.cls_head.requires_grad_(False)
    ranks = torch.distributed.get_world_size()
    fixed = {"steps": 9, "batch_size": ranks, "micro_batch": 1, "learning_rate": 1e-2, "weight_decay": 0.1}
    training = build(TrainingConfig, fixed | {"zero_stage": stage, "optimizer": optimizer, "epsilon": 1e-4})
    return make_engine(network, training, ranks)


def one_step(engine: Any, step: int) -> None:
    """An update whose gradient depends on the weights and the step's number. Collective."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(2, 1, 16, 16, 3, 2, generator=generator)
    engine.backward((engine(x) - y[..., :1, :]).square().mean())
    engine.step()
