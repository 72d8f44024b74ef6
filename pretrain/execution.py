"""How the network's sums are done, applied to a plain module from outside: TF32, recomputation, compilation.

None of it changes the function or the names of its weights. Autocast, the rest of precision, is DeepSpeed's part
(`engine.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from data_pipeline.base.errors import ConfigError
from pretrain.config import TrainingConfig
from pretrain.model.dpot import Dpot


def check_execution(training: TrainingConfig, network: nn.Module, *, cuda: bool, grids: int = 1) -> None:
    """Raise ConfigError for what this network, this machine (`cuda`: it has a GPU) or so many grids cannot do."""
    for key in ("compile", "recompute"):
        if getattr(training, key) and not isinstance(network, Dpot):
            raise ConfigError(
                "a baseline is run as its library runs it", key=f"training.{key}", found=getattr(training, key),
                expected="false", remedy=f"set training.{key}=false",
            )  # fmt: skip
    if training.compile == "cuda_graphs" and not cuda:
        raise ConfigError(
            "there is no GPU to replay CUDA graphs", key="training.compile", found=training.compile,
            remedy="set training.compile=true, or false",
        )  # fmt: skip
    if training.compile == "cuda_graphs" and grids > 1:
        raise ConfigError(
            "CUDA graphs are recorded for one grid, and the datasets have several", key="training.compile",
            found=f"{training.compile}, {grids} grids", remedy="set training.compile=true, or false",
        )  # fmt: skip


def apply_execution(network: nn.Module, training: TrainingConfig, device: torch.device, grids: int = 1) -> None:
    """Make a network ready for training on `device` as configured, in place. Call it once, before the engine is made.

    `grids` is the number of grids that it will be trained on; it is compiled for each.

    Raises:
        ConfigError: see `check_execution`.
    """
    check_execution(training, network, cuda=device.type == "cuda", grids=grids)
    if device.type == "cuda":
        set_tf32(training.tf32)
    if isinstance(network, Dpot):
        network.recompute_blocks = training.recompute
    if training.compile == "cuda_graphs":
        # A replayed graph writes its gradients where they were before. What is accumulated must lie elsewhere.
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_hook(torch.clone)  # type: ignore[no-untyped-call]
    if training.compile:
        mode = "reduce-overhead" if training.compile == "cuda_graphs" else None
        # torch gives up beyond eight; each grid is met with and without gradients.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * grids)
        network.compile(fullgraph=True, dynamic=False, mode=mode)


def begin_micro_batch(training: TrainingConfig) -> None:
    """Tell CUDA graphs that nothing of the micro-batch before is needed any more."""
    if training.compile == "cuda_graphs":
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def set_tf32(allowed: bool) -> None:
    """Allow, or forbid, GPUs to round the inputs of float32 products and convolutions to TF32, in this process."""
    # torch has newer names for the same settings. With TF32 on by those, torch.compile cannot read them (torch 2.13:
    # "without a specific backend name"), so all that are read must be written in one way.
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


@contextmanager
def full_float32() -> Iterator[None]:
    """Products and convolutions in full float32, whatever was set before; set back afterwards."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_tf32(False)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
