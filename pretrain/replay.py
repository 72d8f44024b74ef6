"""Compute a step that was not taken again: the same weights, samples and noise, on one process (`pdepot replay`)."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.base.errors import DataError
from data_pipeline.base.files import read_json
from data_pipeline.mixture import Mixture
from pretrain.comparison import read_run
from pretrain.config import RunConfig
from pretrain.engine import device_name, device_type
from pretrain.execution import set_tf32
from pretrain.model.operator import WEIGHTS_FILE, Operator, load_operator_files
from pretrain.objective import DenoisingObjective
from pretrain.run import read_cache
from pretrain.schedule import open_needed, run_mixture
from pretrain.setup import frames_out, make_loader


@dataclass(frozen=True)
class Replayed:
    """What an incident's samples give now.

    Attributes:
        rows: for each sample, what the incident says of it, and `again`, its loss now.
        broken: parameters whose gradient is not finite, in the order of the network.
        devices: what the incident was computed on, and what this is: noise is drawn there.
    """

    rows: list[dict[str, Any]]
    broken: list[str]
    devices: tuple[str, str]

    @property
    def text(self) -> str:
        """The verdict in a sentence."""
        agreeing = sum(same(float(row["loss"]), row["again"]) for row in self.rows)
        gradient = f"the gradient is not finite in {', '.join(self.broken[:3])}" if self.broken else ""
        more = f" and {len(self.broken) - 3} more" if len(self.broken) > 3 else ""
        verdict = (
            f"{agreeing} of {len(self.rows)} losses are as they were; {gradient or 'the gradient is finite'}{more}"
        )
        then, now = self.devices
        return verdict + (f"\ncomputed on {then}, where noise is other than on {now}" if then != now else "")


def same(one: float, other: float) -> bool:
    """Whether two losses agree as far as other hardware lets them: to 1e-3, or neither is finite."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.isfinite(one) == math.isfinite(other)
    return math.isclose(one, other, rel_tol=1e-3)


def replay(incident: Path) -> Replayed:
    """Compute the losses of an incident's samples and their gradient again, in the micro-batches that they stood in.

    Args:
        incident: a folder below `incidents` of a run.

    Raises:
        DataError: the incident has no weights, or the run draws other samples there by now.
    """
    record, folder = read_json(incident / "incident.json"), incident.resolve().parents[1]
    if not (incident / WEIGHTS_FILE).exists():
        raise DataError(
            "this incident was recorded without its weights", file=incident,
            remedy="replay the first one of the same row: the weights have not changed between them",
        )  # fmt: skip
    config = read_run(folder).model_copy(update={"replaced": tuple(record["replaced"])})
    operator = load_operator_files(incident).to(device_type())
    mixture = run_mixture(config, config.history + frames_out(config, operator))
    _check_same_samples(incident, record, mixture)
    set_tf32(config.training.tf32)
    objective = DenoisingObjective(operator, config.objective, config.seed, config.training.batch_size)
    losses: dict[int, float] = {}
    for number in sorted({position // config.training.micro_batch for position in record["positions"]}):
        losses |= _losses(objective, config, mixture, operator, folder, number)
    broken = [
        name.removeprefix("network.")
        for name, parameter in operator.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    rows = [row | {"again": losses[row["position"]]} for row in record["samples"]]
    return Replayed(rows, broken, (record.get("device", device_name()), device_name()))


def _losses(
    objective: DenoisingObjective, config: RunConfig, mixture: Mixture, operator: Operator, folder: Path, number: int
) -> dict[int, float]:
    """Loss of every sample in a micro-batch by its position; its gradient is added to the operator's."""
    training = config.training
    step, place = divmod(number, training.batch_size // training.micro_batch)
    stores = open_needed(config, step, read_cache(folder))
    whole = training.batch_size // training.micro_batch
    autocast = training.precision == "bfloat16"
    with make_loader(config, mixture, stores, operator, step, rank=place, world_size=whole) as loader:
        batch = next(loader).to(device_type())
    with torch.autocast(device_type(), torch.bfloat16) if autocast else nullcontext():
        loss, samples = objective(batch)
    loss.backward()
    for store in stores:
        if store is not None:
            store.close()
    return dict(zip(batch.position.tolist(), samples.tolist(), strict=True))


def _check_same_samples(incident: Path, record: dict[str, Any], mixture: Mixture) -> None:
    for row in record["samples"]:
        draw = mixture.draw(row["position"])
        now = (mixture.datasets[draw.dataset].name, draw.trajectory, draw.start)
        if now != (row["dataset"], row["trajectory"], row["first_frame"]):
            raise DataError(
                "the run draws other samples there by now", file=incident, key=f"position {row['position']}",
                found=now, expected=(row["dataset"], row["trajectory"], row["first_frame"]),
                remedy="replay it in a copy of the run's folder with the segments of that time",
            )  # fmt: skip
