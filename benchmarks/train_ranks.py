"""What a rank of `benchmarks.train` does: `python -m benchmarks.train_ranks PART OUTPUT ...`, started by torchrun."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pretrain import train as loop
from pretrain.config import TrainingConfig
from pretrain.engine import make_engine, start_process_group, update
from pretrain.model.config import NetworkConfig
from pretrain.model.dpot import Dpot
from pretrain.model.sizes import SIZES

MICRO = 4


class Stopwatch:
    """Seconds that calls of some functions take, by step."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def measure_loop(run: str) -> dict[str, Any]:
    """A whole run: for each step its time, the model's part of it, and whether a checkpoint was under way."""
    compute, saving, steps = Stopwatch(), Stopwatch(), []
    true_step, true_setup = loop.train_step, loop.set_up

    def set_up(*arguments: Any) -> Any:
        parts = true_setup(*arguments)
        for name in ("forward", "backward"):
            setattr(parts.engine, name, compute.around(getattr(parts.engine, name)))
        return parts

    def train_step(parts: Any, *arguments: Any) -> Any:
        writing = parts.checkpoints.state != "idle"
        steps.append(
            {"at": time.perf_counter(), "compute": compute.seconds, "saving": saving.seconds, "busy": writing}
        )
        return true_step(parts, *arguments)

    loop.set_up, loop.train_step, loop.update = set_up, train_step, compute.around(loop.update)
    loop.save, loop.publish = saving.around(loop.save), saving.around(loop.publish)
    loop.train(Path(run), f"sqlite:///{Path(run) / 'mlflow.db'}", lambda: False)
    pairs = list(pairwise(steps[2:]))  # the first two warm caches and buffers up
    quiet = [
        (b["at"] - a["at"], b["compute"] - a["compute"])
        for a, b in pairs
        if not a["busy"] and a["saving"] == b["saving"]
    ]
    others = [
        (b["at"] - a["at"], b["saving"] - a["saving"]) for a, b in pairs if a["busy"] or a["saving"] != b["saving"]
    ]
    step = statistics.median(whole for whole, _ in quiet)
    count = sum(1 for a, b in pairs if b["busy"] and not a["busy"])
    return {
        "seconds_per_step": step,
        "outside_the_model": 1 - sum(part for _, part in quiet) / sum(whole for whole, _ in quiet),
        "checkpoints": count,
        # All that the steps near a checkpoint took longer than others, in steps; and what of it the loop stood still.
        "checkpoint_cost_in_steps": sum(whole - step for whole, _ in others) / count / step,
        "checkpoint_stall_in_steps": sum(stood for _, stood in others) / count / step,
    }


def measure_restart(run: str) -> dict[str, Any]:
    """From `train` to the first step of a run that goes on; called for the first time, it makes the checkpoint."""
    times: list[float] = []
    true_step = loop.train_step

    def train_step(*arguments: Any) -> Any:
        times.append(time.perf_counter())
        return true_step(*arguments)

    loop.train_step = train_step
    begun = (Path(run) / "checkpoints").exists()
    began = time.perf_counter()
    loop.train(Path(run), f"sqlite:///{Path(run) / 'mlflow.db'}", lambda: not begun and len(times) >= 1)
    return {"seconds_to_first_step": times[0] - began}


def network(model: str, size: int) -> Dpot:
    """A network for histories of 10 frames of 4 channels."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "in_timesteps": 10, "patch_size": 8}
    built = Dpot(NetworkConfig(space=(size, size), **shape, **SIZES[model]))
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(not name.startswith("cls_head."))
    return built


class Loss(torch.nn.Module):
    """A network with the loss behind it, as an engine takes it."""

    def __init__(self, model: str, size: int) -> None:
        super().__init__()
        self.network = network(model, size)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """The mean square of the prediction."""
        return self.network(history).square().mean()


def bare_step(module: Loss, optimizer: torch.optim.Optimizer, history: torch.Tensor, *, talk: bool) -> None:
    """What any loop must do: forward, backward, one all-reduce of all gradients, the optimizer's step."""
    module(history).backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if talk:
        flat = torch._utils._flatten_dense_tensors(gradients)
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        torch._foreach_copy_(gradients, list(torch._utils._unflatten_dense_tensors(flat, gradients)))
    norm = torch.nn.utils.get_total_norm(gradients)
    torch.nn.utils.clip_grads_with_norm_([p for p in module.parameters() if p.grad is not None], 1.0, norm)
    optimizer.step()
    optimizer.zero_grad()


def make_bare(model: str, size: int, history: torch.Tensor, *, talk: bool) -> Callable[[], None]:
    """A bare loop's step."""
    module = Loss(model, size)
    optimizer = torch.optim.AdamW(p for p in module.parameters() if p.requires_grad)
    return lambda: bare_step(module, optimizer, history, talk=talk)


def interleaved(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run on this rank, in turn, all ranks beginning together."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for count in range(2 + rounds):
        for name, run in runs.items():
            dist.barrier()
            began = time.perf_counter()
            run()
            if count >= 2:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure_deepspeed(model: str, size: str, rounds: str) -> dict[str, Any]:
    """A step at each ZeRO stage beside a bare one, the same network and samples, on all ranks."""
    _, world_size, _ = start_process_group()
    history = torch.randn(MICRO, int(size), int(size), 10, 4)
    runs = {"bare": make_bare(model, int(size), history, talk=True)}
    for stage in range(4):
        training = TrainingConfig(steps=1, batch_size=MICRO * world_size, micro_batch=MICRO, zero_stage=stage)  # type: ignore[arg-type]
        engine = make_engine(Loss(model, int(size)), training, world_size)

        def step(engine: Any = engine) -> None:
            engine.backward(engine(history))
            update(engine, 1.0)

        runs[f"stage {stage}"] = step
    seconds = interleaved(runs, int(rounds))
    bare = seconds["bare"]
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, bare, strict=True))
        for name, times in seconds.items() if name != "bare"
    }  # fmt: skip
    return {"bare_seconds": statistics.median(bare), "ranks": world_size, "times_as_long": ratios}


def measure_scaling(model: str, size: str, rounds: str) -> dict[str, Any]:
    """Weak scaling from one rank to two: what sharing the machine costs, and what talking does."""
    rank, world_size, _ = start_process_group()
    history = torch.randn(MICRO, int(size), int(size), 10, 4)
    silent, talking = (make_bare(model, int(size), history, talk=talk) for talk in (False, True))
    buffer = torch.zeros(sum(p.numel() for p in network(model, int(size)).parameters() if p.requires_grad))
    seconds = interleaved(
        {
            "alone": lambda: silent() if rank == 0 else None,
            "at once": silent,
            "together": talking,
            "all-reduce": lambda: dist.all_reduce(buffer),
        },
        int(rounds),
    )
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = {
        name: statistics.median(a / b for a, b in zip(seconds["alone"], seconds[name], strict=True))
        for name in ("at once", "together")
    }
    return {
        "seconds": middle, "gradient_bytes": buffer.nbytes, "threads": torch.get_num_threads(), "ranks": world_size,
        "efficiency": ratio["together"], "efficiency_without_talking": ratio["at once"],
        "all_reduce_bus_bytes_per_second": 2 * (world_size - 1) / world_size * buffer.nbytes / middle["all-reduce"],
    }  # fmt: skip


def main(arguments: list[str]) -> None:
    """Measure a part; rank 0 writes the figures."""
    part, output, *rest = arguments
    measure = {
        "loop": measure_loop, "restart": measure_restart, "deepspeed": measure_deepspeed, "scaling": measure_scaling,
    }[part]  # fmt: skip
    figures = measure(*rest)
    if os.environ["RANK"] == "0":
        Path(output).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
