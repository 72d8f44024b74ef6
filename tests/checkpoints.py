"""Checkpoints on their own: a small network, its optimizer and what writes them, without data and without a run."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from pretrain.checkpoint import Checkpoints, Found, find_newest, restore
from pretrain.ema import WeightAverage
from tests.operators import make_operator

IDENTITY, SCHEDULE = "this run", "these samples"
CONFIG = make_operator().config


class Trained:
    """What is trained, after some steps whose gradients depend on nothing but their number.

    The engine is what a checkpoint sees of DeepSpeed's at stage 0, where the optimizer is torch's own: a process has
    it at once, so that many can be killed.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(5, 3)
        module = nn.ModuleDict({"operator": self.network})
        self.engine = SimpleNamespace(
            module=module, optimizer=torch.optim.AdamW(module.parameters()), zero_optimization_stage=lambda: 0
        )
        self.average = WeightAverage(self.engine, 0.5)
        self.done = 0

    def steps_to(self, step: int) -> None:
        """Train until `step` steps are done."""
        for number in range(self.done, step):
            generator = torch.Generator().manual_seed(number)
            for parameter in self.network.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            self.engine.optimizer.step()
            self.average.update(number)
        self.done = step

    def begin(self, checkpoints: Checkpoints) -> None:
        """Begin to save what has been trained. Collective."""
        operator: Any = SimpleNamespace(config=CONFIG)
        checkpoints.begin(self.engine, operator, self.done, SCHEDULE, {"number": self.done}, self.average)

    def save(self, checkpoints: Checkpoints) -> None:
        """Save what has been trained. Collective."""
        self.begin(checkpoints)
        checkpoints.finish()

    def go_on(self, found: Found) -> None:
        """Go on from a checkpoint. Collective."""
        self.network.load_state_dict(load_file(found.path / "model.safetensors"))
        restore(found, self.engine, self.average)
        self.done = found.step


def find(folder: Path) -> Found | None:
    """The checkpoint to go on from. Collective."""
    return find_newest(folder, IDENTITY, lambda _: [SCHEDULE])


def write_checkpoints(folder: Path, steps: Sequence[int], keep: int = 9) -> None:
    """Save checkpoints of these steps. Collective."""
    trained, checkpoints = Trained(), Checkpoints(folder, IDENTITY, keep=keep)
    for step in steps:
        trained.steps_to(step)
        trained.save(checkpoints)


OPERATIONS = ("open", "write", "fsync", "rename", "replace", "mkdir", "unlink", "rmdir", "scandir")
"""What a save does to files, by the names in `os`. `Path.open` is not among them: it is followed by one that is."""


@contextmanager
def before_operations(call: Callable[[str], None]) -> Iterator[None]:
    """Within the block, `call(name)` comes ahead of every file operation of this process, in all its threads."""
    true = {name: getattr(os, name) for name in OPERATIONS}

    def watched(name: str) -> Callable[..., Any]:
        def operation(*arguments: Any, **options: Any) -> Any:
            call(name)
            return true[name](*arguments, **options)

        return operation

    for name in OPERATIONS:
        setattr(os, name, watched(name))
    try:
        yield
    finally:
        for name, function in true.items():
            setattr(os, name, function)
