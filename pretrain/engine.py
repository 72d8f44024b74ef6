"""DeepSpeed made ready, and its update: process group, optimizer, ZeRO stage and precision, applied to a plain module
from outside."""

import logging
import math
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout, _world

from pretrain.config import TrainingConfig
from pretrain.optimizers import connect, make_optimizer

_BUCKET = 500_000_000
"""Gradients that DeepSpeed reduces together: its own default."""


def device_type() -> str:
    """`cuda` where there is a GPU, else `cpu`; `cpu` where DS_ACCELERATOR asks for it, which DeepSpeed heeds, too."""
    return "cuda" if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu" else "cpu"


def device_name() -> str:
    """What computes: a GPU's name, or `cpu`. Random numbers that are drawn there depend on it."""
    return torch.cuda.get_device_name() if device_type() == "cuda" else "cpu"


def start_process_group(seconds: float = 600.0) -> tuple[int, int, torch.device]:
    """Join the group that torchrun's environment describes, unless this process is in one.

    Args:
        seconds: how long any rank waits for another, here and in every collective.

    Returns:
        Rank, world size and this rank's device. The backend is nccl on GPUs and gloo on CPUs.
    """
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    local = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local) if device_type() == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    with redirect_stdout(sys.stderr):  # it announces the op that it loads
        deepspeed.init_distributed(dist_backend=backend, timeout=timedelta(seconds=seconds), verbose=False)
    return dist.get_rank(), dist.get_world_size(), device


def deepspeed_config(training: TrainingConfig, world_size: int, weights: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a run that trains so many weights."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.batch_size // (training.micro_batch * world_size),
        "gradient_clipping": 0.0,  # `update` sets the bound of each step
        # The bucket is allocated whole, on the GPU: DeepSpeed's own size is 2 GB, whatever the network's.
        "zero_optimization": {"stage": training.zero_stage, "reduce_bucket_size": max(1, min(weights, _BUCKET))},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's own optimizers also where their state is offloaded
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if training.precision == "bfloat16":
        # Autocast keeps float32 parameters and the spectral layers' float32 islands; "bf16" would cast the weights.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return _merged(config, training.deepspeed)


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in more.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def make_engine(module: nn.Module, training: TrainingConfig, world_size: int) -> Any:
    """A DeepSpeed engine around `module`; only parameters with `requires_grad` are optimised."""
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        optimizer=make_optimizer(training, module.named_parameters()),
        config=deepspeed_config(training, world_size, sum(p.numel() for p in module.parameters() if p.requires_grad)),
        dist_init_required=False,
    )
    connect(engine)
    for group in list(_world.pg_map):  # DeepSpeed makes its own, which would wait for gloo's 30 minutes
        _set_pg_timeout(timedelta(seconds=training.collective_timeout), group)
    return engine


def update(engine: Any, bound: float) -> tuple[bool, float]:
    """Take the step that the gradients have been accumulated for, if all of them are finite. Collective.

    ZeRO refuses gradients that are not finite by itself; without ZeRO (stage 0) DeepSpeed would take them. The scaling
    is ZeRO's in both cases.

    Args:
        engine: the DeepSpeed engine, at a boundary of its gradient accumulation.
        bound: the gradient's norm is scaled down to it; 0 for no bound.

    Returns:
        Whether the step was taken, and the norm of the gradient before the scaling, not finite if it was not.
    """
    if engine.zero_optimization_stage():
        engine.optimizer.clip_grad = bound
        engine.step()
        return bool(engine.was_step_applied()), float(engine.get_global_grad_norm())
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients))
    taken = math.isfinite(norm)
    if not taken:
        engine.zero_grad()  # the optimizer then finds nothing to do
    elif bound and (norm + 1e-6) / bound > 1:
        torch._foreach_mul_(gradients, bound / (norm + 1e-6))
    engine.step()
    return taken, norm
