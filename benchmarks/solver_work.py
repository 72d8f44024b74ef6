"""A piece of a solver's work, and the least that it could cost."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from benchmarks.timing import interleaved
from data_pipeline.config import GenerateConfig
from data_pipeline.solvers.numerics.memory import keep_freed_memory
from data_pipeline.solvers.registry import FAMILIES
from data_pipeline.solvers.semilinear import SemilinearSolver
from data_pipeline.solvers.source import SolverSource

TRANSFORMS = {"_fft_r2c", "_fft_c2r", "_fft_c2c", "mm", "bmm", "addmm", "baddbmm"}
SECONDS = 0.3
"""Longest piece of work; a frame that takes longer is cut short."""


@dataclass(frozen=True)
class Stage:
    """What is called once a stage: `module:function` below data_pipeline.solvers.

    Attributes:
        path: the function.
        per_step: its calls in an internal step.
        copies: how often a call has to read and write the state at least.
    """

    path: str
    per_step: int
    copies: int = 1


SPECTRAL = Stage("numerics.etd:ETDRK4.step", 1)
WALLS = Stage("numerics.staggered:StaggeredFlow.rate", 3)
GAS = Stage("families.compressible:_Evolution._stage", 2)
STAGES = {
    "burgers_shocks_1d": Stage("families.burgers_shocks_1d:_rate", 2),
    "cavity_2d": WALLS,
    "compressible_1d": GAS,
    "compressible_2d": GAS,
    "compressible_3d": GAS,
    "cylinder_2d": WALLS,
    "darcy_2d": Stage("numerics.elliptic:Multigrid.__call__", 1, copies=5),
    "diffusion_sorption_1d": Stage("families.diffusion_sorption_1d:_SorptionEvolution._solve", 2),
    "shallow_water_2d": Stage("families.shallow_water_2d:_ShallowWaterEvolution._rate", 2),
    "smoke_2d": Stage("numerics.smoke_steps:SmokeSteps.second_order", 1),
    "tube_2d": WALLS,
    "wave_2d": Stage("families.wave_2d:add_rates", 4),
}
"""Of the families that are no `SemilinearSolver`; one that is missing here is timed by the frame. A step of Darcy's
solver is an iteration: one application of the operator for the gradients, four on the finest grid of the cycle."""


class Work:
    """A batch of one family, and the piece of its evolution that is timed."""

    def __init__(self, config: GenerateConfig, batch: int) -> None:
        self.source = SolverSource(config.family, config.model_copy(update={"splits": {"train": 2 * batch}}))
        self.solver, self.batch = self.source.solver, batch
        self.solver.compile = config.compile
        keep_freed_memory()  # as a source does
        states, drawn = zip(*(self.source.draw("train", number) for number in range(batch)), strict=True)
        self.initial = torch.stack(states).to(config.device, getattr(torch, config.precision))
        self.columns = {
            key: torch.tensor([one[key] for one in drawn], dtype=torch.float64, device=config.device)
            for key in self.solver.parameter_names
        }
        self.duration = config.dt
        self.restart()

    def restart(self) -> None:
        """Back to the initial states; the first piece also pays for what is computed once."""
        self.evolution = self.solver.begin(self.initial, self.columns)

    def __call__(self) -> None:
        """One piece: forward in time, and the stored fields; all of a steady problem."""
        if self.solver.steady:
            self.restart()
        else:
            self.evolution.advance(self.duration)
        self.evolution.fields()

    def shorten(self) -> None:
        """Make a piece last about `SECONDS` at most, starting from a small part of a frame."""
        if self.solver.steady:
            return
        whole, self.duration = self.duration, self.duration / 64
        while self.duration < whole:
            self()  # pays for what is computed once
            seconds = interleaved({"piece": self}, rounds=1, warm_up=0)["piece"][0]
            if 2 * seconds > SECONDS:
                break
            self.duration *= 2


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the transforms that run inside it, with a buffer for each kind of argument."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any]] = []
        self._buffers: dict[Any, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in TRANSFORMS:
            self.calls.append((func, tree_map(self._buffer, args), tree_map(self._buffer, kwargs)))
        return func(*args, **kwargs)

    def _buffer(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return self._buffers.setdefault((value.shape, value.stride(), value.dtype), value.clone())

    def replay(self) -> None:
        """The same transforms, and nothing else."""
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def find(stage: Stage) -> tuple[Any, str]:
    """The module or class that holds a stage's function, and its name there."""
    module, _, name = stage.path.partition(":")
    owner: Any = import_module(f"data_pipeline.solvers.{module}")
    *outer, last = name.split(".")
    for part in outer:
        owner = getattr(owner, part)
    return owner, last


@contextmanager
def counted(stage: Stage) -> Iterator[list[int]]:
    """Count the calls of a stage's function in a one-element list."""
    owner, name = find(stage)
    function, calls = getattr(owner, name), [0]

    def count(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        return function(*args, **kwargs)

    with mock.patch.object(owner, name, count):
        yield calls


def census(config: GenerateConfig, batch: int, duration: float) -> tuple[int | None, int, Recorder]:
    """Steps of one piece, None where nothing says what a stage is; copies of the state in its floor; transforms."""
    spectral = issubclass(FAMILIES[config.family], SemilinearSolver)
    stage = SPECTRAL if spectral else STAGES.get(config.family)
    recorder = Recorder()
    # Composite operations would reach the recorder whole in inference mode.
    with torch.inference_mode(False), torch.no_grad(), counted(stage or SPECTRAL) as calls:
        work = Work(config, batch)
        work.duration = duration
        work()
        calls[0] = 0
        with recorder:
            work()
    if stage is None:
        return None, 0, recorder
    return calls[0] // stage.per_step, 0 if spectral else calls[0] * stage.copies, recorder
