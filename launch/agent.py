"""torchrun, with an exit code that says who failed: the ranks (1), or the group's meeting place (75).

`python -m launch.agent TORCHRUN_ARGUMENTS`. torchrun itself returns 1 for both, but they want different answers: ranks
that failed as often as `training.restarts` allows are given up, while a group that was torn apart meets again.
"""

import sys
import traceback

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

RANKS_FAILED = 1
GROUP_LOST = 75


def main(arguments: list[str]) -> int:
    """Run torchrun in this process; 0 when all ranks of this node have ended well."""
    try:
        run.main(arguments)
    except (ChildFailedError, SignalException):
        traceback.print_exc()
        return RANKS_FAILED
    except Exception:  # of the rendezvous or its store, which have no class in common
        traceback.print_exc()
        return GROUP_LOST
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
