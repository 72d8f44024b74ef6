"""Planning the samples of a rank: `python -m benchmarks.mixture`. No data are read.

A job of 100,000 ranks on 30 datasets with a million trajectories: what it costs one rank to find out which windows it
reads in a step, early and late in the stream, just after a start and in passing, and how much memory that takes. Then
a whole step is drawn, and its windows are counted.
"""

import statistics
import time
import tracemalloc
from collections.abc import Callable
from itertools import count

import numpy as np

from benchmarks.timing import interleaved, machine, ratio, report
from data_pipeline import turns
from data_pipeline.mixture import Mixture
from data_pipeline.permutation import Int64Array
from data_pipeline.segments import MixtureDataset, Segment

RANKS, MICRO_BATCH, DATASETS, TRAJECTORIES = 100_000, 8, 30, 1_000_000
GRIDS = [(1024,), (64, 64), (128, 128), (64, 64, 64)]
POSITIONS = [0, 10**12]  # micro-batches
ROUNDS = 50


def mixture(segments: int = 1) -> Mixture:
    """Datasets of unlike sizes and weights on four grids; one micro-batch a rank in every step."""
    sizes = np.arange(1, DATASETS + 1) ** 2
    sizes = np.maximum(1, sizes * TRAJECTORIES // sizes.sum())
    sizes[-1] += TRAJECTORIES - sizes.sum()
    datasets = [MixtureDataset(f"dataset_{i}", int(n), 10 + i, GRIDS[i % 4]) for i, n in enumerate(sizes)]
    drawn = [
        Segment(1000 * s, {d.name: 1 + (7 * i + s) % 20 for i, d in enumerate(datasets)}) for s in range(segments)
    ]
    return Mixture(tuple(datasets), tuple(drawn), 0, RANKS * MICRO_BATCH, MICRO_BATCH)


def samples(step: int, rank: int) -> Int64Array:
    """Numbers of the samples that a rank reads in a step."""
    return (step * RANKS + rank) * MICRO_BATCH + np.arange(MICRO_BATCH)


def after_a_start(make: Callable[[], Mixture], step: int) -> Callable[[], object]:
    """A rank's first step after its start."""
    ranks = count(0, 997)

    def run() -> None:
        turns._shuffled.cache_clear()
        make().draw_many(samples(step, next(ranks) % RANKS))

    return run


def in_passing(drawn: Mixture, step: int) -> Callable[[], object]:
    """A rank's next step; each lies in another block of turns."""
    steps = count(step)
    return lambda: drawn.draw_many(samples(next(steps), 4711))


def memory(drawn: Mixture, step: int) -> int:
    """Bytes that a rank holds after a step's planning, beyond the description of the datasets."""
    turns._shuffled.cache_clear()
    tracemalloc.start()
    drawn.draw_many(samples(step, 0))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held


def whole_step(drawn: Mixture, step: int) -> dict[str, float]:
    """All ranks' samples of a step at once, and how many windows are named twice: none, within an epoch."""
    ks = step * drawn.batch_size + np.arange(drawn.batch_size)
    start = time.perf_counter()
    rows = drawn.draw_many(ks)
    seconds = time.perf_counter() - start
    before, after, repeated = drawn.draws_before(step), drawn.draws_before(step + 1), 0
    for number, dataset in enumerate(drawn.datasets):
        mine = rows[rows["dataset"] == number]
        distinct = len(np.unique(mine["trajectory"] * dataset.windows_per_trajectory + mine["start"]))
        if before[dataset.name] // dataset.windows == (after[dataset.name] - 1) // dataset.windows:
            repeated += len(mine) - distinct
    return {"microseconds_a_sample": 1e6 * seconds / len(ks), "repeated_in_an_epoch": repeated}


def main() -> None:
    drawn, runs = mixture(), {}
    for position in POSITIONS:
        runs[f"{position} first"] = after_a_start(mixture, position // RANKS)
        runs[f"{position} further"] = in_passing(drawn, position // RANKS)
    seconds = interleaved(runs, ROUNDS)
    milliseconds = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    figures = {}
    for position in POSITIONS:
        entry = {
            "first_step_ms": milliseconds[f"{position} first"],
            "further_step_ms": milliseconds[f"{position} further"],
            "kib_held": memory(drawn, position // RANKS) / 1024,
            **whole_step(drawn, position // RANKS),
        }
        print(f"micro-batch {position:>13}   " + "   ".join(f"{k} {v:.3g}" for k, v in entry.items()), flush=True)
        figures[str(position)] = entry
    many = interleaved({"first": after_a_start(lambda: mixture(segments=20), 10**7)}, rounds=5, warm_up=1)["first"]
    print(f"first step of a run with 20 segments: {1e3 * statistics.median(many):.3g} ms")
    report({
        "benchmark": "mixture", "machine": machine("cpu"), "ranks": RANKS, "trajectories": TRAJECTORIES,
        "datasets": DATASETS, "micro_batch": MICRO_BATCH, "positions": figures,
        "late_over_early": ratio(seconds[f"{POSITIONS[-1]} further"], seconds["0 further"]),
        "first_step_with_20_segments_ms": 1e3 * statistics.median(many),
    })  # fmt: skip


if __name__ == "__main__":
    main()
