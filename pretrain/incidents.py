"""Steps that were not taken: what is kept of them, and the way back to the last checkpoint when they do not end.

incidents/step-00000037/
  incident.json             why, which samples with which losses, and the command that computes them again
  model.safetensors, .json  the weights that gave these losses
rollbacks.json              from which step to which checkpoint the run went back, and what is replaced since
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from data_pipeline.base.errors import DataError
from data_pipeline.base.files import publish_directory, read_json, remove_tree, write_json
from data_pipeline.mixture import Mixture
from pretrain.config import RunConfig, TrainingConfig
from pretrain.engine import device_name
from pretrain.model.operator import CONFIG_FILE, WEIGHTS_FILE, OperatorConfig

_MOST_WITH_WEIGHTS = 5
_ROLLBACKS = "rollbacks.json"


def record_incident(
    folder: Path,
    step: int,
    reason: str,
    samples: Sequence[tuple[int, float]],
    mixture: Mixture,
    model: OperatorConfig,
    weights: dict[str, Tensor],
) -> None:
    """Leave a record of a step that was not taken. Rank 0 calls it; a disk that fails costs the record, not the run.

    Args:
        folder: the run's.
        step: the step's number, from 0.
        reason: why it was not taken.
        samples: positions and losses of the samples that were objected to.
        mixture: says which windows they are.
        model: of the operator.
        weights: the operator's, as they were; empty to leave them out.
    """
    final = folder / "incidents" / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}.partial")
    others = len(list(final.parent.glob("step-*/model.safetensors")))
    kept = bool(weights) and others < _MOST_WITH_WEIGHTS
    windows = [(position, loss, mixture.draw(position)) for position, loss in samples]
    content = {
        "step": step,
        "device": device_name(),
        "reason": reason,
        "positions": [position for position, _ in samples],
        "samples": [
            {
                "position": position,
                "loss": str(loss),  # JSON has no word for what is not finite
                "dataset": mixture.datasets[draw.dataset].name,
                "trajectory": draw.trajectory,
                "first_frame": draw.start,
            }
            for position, loss, draw in windows
        ],
        "replaced": list(mixture.replaced),
        "command": f"pdepot replay {final}" if kept else None,
    }
    try:
        for leftover in (temporary, final):
            remove_tree(leftover)
        temporary.mkdir(parents=True)
        write_json(temporary / "incident.json", content)
        if kept:
            save_file({name: value.cpu().contiguous() for name, value in weights.items()}, temporary / WEIGHTS_FILE)
            write_json(temporary / CONFIG_FILE, model.model_dump(mode="json"))
        publish_directory(temporary, final)
    except (OSError, SafetensorError) as error:  # safetensors has a word of its own for a disk that fails
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk gets its room back
        print(f"step {step} is not taken: {reason}; {len(samples)} samples, which could not be recorded: {error}")
    else:
        print(f"step {step} is not taken: {reason}; {len(samples)} samples, in {final / 'incident.json'}", flush=True)


def rollbacks(folder: Path) -> list[dict[str, Any]]:
    """The roll-backs of a run so far."""
    file = folder / _ROLLBACKS
    return list(read_json(file)) if file.exists() else []


def check_may_go_back(folder: Path, training: TrainingConfig, step: int, times: int, positions: Sequence[int]) -> None:
    """Raise DataError when a run that could not take its last steps has gone back as often as it may.

    Args:
        folder: the run's.
        training: its settings.
        step: steps done, the last ones not taken.
        times: how often it has gone back.
        positions: the samples that these steps objected to.
    """
    if times >= training.max_rollbacks:
        raise DataError(
            f"{training.patience} steps in a row could not be taken, the last one number {step - 1}",
            file=folder / "incidents",
            found=f"sample positions {sorted(positions)[:20]}, after {times} roll-backs",
            expected="finite losses, not far above those before",
            remedy="replay the incident with the command in its incident.json; then check the data with 'pdepot data "
            "validate', or start a new run with a lower training.learning_rate",
        )


def go_back(folder: Path, config: RunConfig, step: int, to_step: int, positions: Sequence[int]) -> None:
    """Note that the run goes back, and replace the micro-batches that hold these samples. Rank 0 calls it.

    Args:
        folder: the run's.
        config: the run.
        step: steps done, the last ones not taken.
        to_step: of the checkpoint that it goes back to; 0 for the start.
        positions: the samples that these steps objected to.
    """
    file = folder / "config.json"
    # Those before the checkpoint are not drawn again, and its digest says what was drawn until then.
    first = to_step * config.training.batch_size // config.training.micro_batch
    again = {position // config.training.micro_batch for position in positions}
    replaced = sorted({*config.replaced, *(number for number in again if number >= first)})
    record = {"from_step": step, "to_step": to_step, "micro_batches": replaced, "positions": sorted(positions)}
    write_json(folder / _ROLLBACKS, [*rollbacks(folder), record])
    write_json(file, read_json(file) | {"replaced": replaced})
    print(f"{config.name}: back from step {step} to {to_step}, {len(replaced)} micro-batches replaced", flush=True)
