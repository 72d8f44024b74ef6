"""DeepSpeed made ready: process group, optimizer, ZeRO stage and precision, applied to a plain module from outside."""

import logging
import math
import os
import sys
from contextlib import redirect_stdout
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from pretrain.config import TrainingConfig


def device_type() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def start_process_group(timeout: timedelta = timedelta(minutes=10)) -> tuple[int, int, torch.device]:
    """Join the group that torchrun's environment describes.

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
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, verbose=False)
    return torch.distributed.get_rank(), torch.distributed.get_world_size(), device


def deepspeed_config(training: TrainingConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed configuration of a run."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch,
        "gradient_accumulation_steps": training.batch_size // (training.micro_batch * world_size),
        "gradient_clipping": training.clip,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": training.learning_rate,
                "betas": list(training.betas),
                "weight_decay": training.weight_decay,
                "torch_adam": True,  # torch's own: nothing to compile, and the same on every device
            },
        },
        "zero_optimization": {"stage": training.zero_stage},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if training.precision == "bfloat16":
        # Autocast keeps float32 parameters and the spectral layers' float32 islands; "bf16" would cast the weights.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config


def make_engine(module: nn.Module, training: TrainingConfig, world_size: int) -> Any:
    """A DeepSpeed engine around `module`; only parameters with `requires_grad` are optimised."""
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=module,
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        config=deepspeed_config(training, world_size),
        dist_init_required=False,
    )
    return engine


def learning_rate(training: TrainingConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up, then a cosine to 1e-3 of the peak. A pure function of the step."""
    warm = max(1, round(training.warmup * training.steps))
    if step < warm:
        return training.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, training.steps - warm)
    return training.learning_rate * (1e-3 + (1 - 1e-3) * 0.5 * (1 + math.cos(math.pi * done)))
