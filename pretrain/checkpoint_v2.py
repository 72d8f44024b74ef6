"""Checkpoints of version 2, which DeepSpeed wrote (pdepot 0.1): a run that was begun then goes on from its own.

They are pickles. They are loaded only after every file's digest was found to be that of the manifest of this very run,
and only by as many ranks and at the same ZeRO stage as before. The next checkpoint is of the current format.
"""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_pipeline.base.errors import CheckpointError

VERSION = 2
_STATE = "state"  # DeepSpeed's tag inside the folder


def load(engine: Any, path: Path, manifest: dict[str, Any]) -> None:
    """Load weights and optimizer into the engine.

    Raises:
        CheckpointError: another number of ranks, or another ZeRO stage.
    """
    here = {"world_size": dist.get_world_size(), "zero_stage": engine.zero_optimization_stage()}
    for key, value in here.items():
        if manifest[key] != value:
            raise CheckpointError(
                "a checkpoint of version 2 goes on as it began", file=path, key=key, found=manifest[key],
                expected=value, remedy="go on with the old ranks and stage until the next checkpoint, then change",
            )  # fmt: skip
    engine.load_checkpoint(str(path), tag=_STATE)
