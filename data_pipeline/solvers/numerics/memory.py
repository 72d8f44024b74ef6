"""How the C library hands out the memory of the work arrays."""

from functools import cache

import torch

_BLOCK = 31 * 2**20
"""Just below the largest block, 32 MB, from which glibc learns (mallopt(3), M_MMAP_THRESHOLD)."""


@cache
def keep_freed_memory() -> None:
    """Let freed arrays of up to 31 MB stay with the process, once and for all.

    glibc gives blocks that are larger than any freed before back to the system, and fetching them again, page by page,
    takes as long as the arithmetic on them: after this a step of the spectral solvers (64 x 64, eight samples,
    float64) takes half the time. Other C libraries take no notice.
    """
    torch.empty(_BLOCK, dtype=torch.uint8)
