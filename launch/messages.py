"""How a command ends: a user's error is one clear message, never a traceback."""

import sys
from collections.abc import Callable

from data_pipeline.base.errors import PdepotError


def exit_code(work: Callable[[], int]) -> int:
    """Do `work` and return its exit code; 1 after a user's error, 130 after Ctrl-C."""
    try:
        return work()
    except PdepotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
