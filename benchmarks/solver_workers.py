"""Two processes of one thread each that solve alone or together, as the workers of a build do."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.solver_work import Work
from data_pipeline.config import GenerateConfig
from data_pipeline.solvers.source import SolverSource


def start_worker() -> None:
    torch.set_num_threads(1)


_WORK: dict[str, Work] = {}


def prepare(config: GenerateConfig, batch: int) -> None:
    """In a worker: start a batch."""
    with torch.inference_mode():
        _WORK[config.family] = Work(config, batch)
        _WORK[config.family].shorten()


def pieces(family: str, seconds: float) -> float:
    """In a worker: pieces of work in one second, over about that many."""
    with torch.inference_mode():
        start, count = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            _WORK[family]()
            count += 1
    return count / passed


def read(config: GenerateConfig, start: int, stop: int) -> float:
    """In a worker: the seconds that trajectories take, from their random numbers to their stored form."""
    begin = time.perf_counter()
    for _ in SolverSource(config.family, config).read("train", start, stop):
        pass
    seconds: float = time.perf_counter() - begin
    return seconds


class Workers:
    """Two processes that can work alone or together."""

    def __init__(self) -> None:
        context = get_context("spawn")
        self.pools = [ProcessPoolExecutor(1, context, start_worker) for _ in range(2)]

    def together(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """A call in each of the first processes, at the same time."""
        futures = [pool.submit(function, *given) for pool, given in zip(self.pools, arguments, strict=False)]
        return [future.result() for future in futures]

    def gain(self, config: GenerateConfig, batch: int, seconds: float) -> float:
        """Pieces a second of two processes over those of one, the median of three turns."""
        self.together(prepare, [(config, batch)] * 2)
        family = config.family
        turns: list[float] = []
        for _ in range(3):
            one = self.together(pieces, [(family, seconds)])
            two = self.together(pieces, [(family, seconds)] * 2)
            turns.append(sum(two) / sum(one))
        return statistics.median(turns)

    def close(self) -> None:
        for pool in self.pools:
            pool.shutdown()
