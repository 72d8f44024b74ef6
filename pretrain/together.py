"""No rank raises alone: work that may fail on one rank, and is then an error on all of them."""

from collections.abc import Callable, Iterable
from itertools import count, groupby
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from data_pipeline.base.errors import CheckpointError, PdepotError

T = TypeVar("T")

_REMEDY = "see to the disk or the folder and start the same command again; older checkpoints are untouched"


def together(
    work: Callable[[], T],
    what: str,
    path: Path,
    *,
    only_first: bool = False,
    error: type[PdepotError] = CheckpointError,
    remedy: str = _REMEDY,
    group: Any = None,
) -> list[T]:
    """Do `work` on all ranks, or on rank 0 alone; every rank gets every rank's result, or the same error. Collective.

    Args:
        work: what it returns is sent to all ranks: little, and plain.
        what: the work, for the message: "could not ...".
        path: the file or folder that it is about.
        only_first: rank 0 alone does the work; the others' result is None.
        error: its kind.
        remedy: what to do.
        group: ranks that talk to one another; by default all.

    Raises:
        PdepotError: of the kind `error`, on all ranks, when any of them failed; names the ranks.
    """
    result: T | None = None
    failure = ""
    if not only_first or dist.get_rank(group) == 0:
        try:
            result = work()
        except PdepotError as raised:
            failure = str(raised)
        except Exception as raised:
            failure = f"{type(raised).__name__}: {raised}"
    outcomes = gathered((result, failure), group)
    failures = {rank: failure for rank, (_, failure) in enumerate(outcomes) if failure}
    if failures:
        raise error(f"could not {what}", file=path, found=by_ranks(failures), remedy=remedy)
    return [result for result, _ in outcomes]  # type: ignore[misc]  # None from those that had nothing to do


def agreed(work: Callable[[], T], what: str, path: Path, **more: Any) -> T:
    """Do `work` on all ranks, and keep its result to oneself; arguments and errors as of `together`. Collective."""
    results: list[T] = []
    together(lambda: results.append(work()), what, path, **more)
    return results[0]


def gathered(value: T, group: Any = None) -> list[T]:
    """What each rank gave, in order of ranks. Collective."""
    values: list[T | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values  # type: ignore[return-value]


def by_ranks(facts: dict[int, str]) -> str:
    """Facts about ranks, equal ones told once: `ranks 0-2, 5: no space left; rank 4: not found`."""
    told: dict[str, list[int]] = {}
    for rank, fact in sorted(facts.items()):
        told.setdefault(fact, []).append(rank)
    return "; ".join(f"rank{'s' * (len(ranks) > 1)} {spans(ranks)}: {fact}" for fact, ranks in told.items())


def spans(ranks: Iterable[int]) -> str:
    """Ranks in few words: `0-2, 5`."""
    numbers = count()
    runs = [list(run) for _, run in groupby(sorted(ranks), key=lambda rank: rank - next(numbers))]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
