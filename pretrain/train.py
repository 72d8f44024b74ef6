"""The training loop. Started once per rank by torchrun: `python -m pretrain.train RUN_FOLDER TRACKING_URI`.

The run's folder says everything: `config.json` what to do, `initial/` the weights to start from (fresh, or adapted
from a pretrained operator), `checkpoints/` how far it has come, `status.json` how it ended, `final/` the result.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from data_pipeline.base.config import build
from data_pipeline.base.files import exclusive, read_json
from data_pipeline.base.progress import Progress
from data_pipeline.loader import Batch, Loader, check_division
from data_pipeline.stores.protocol import TrajectoryStore
from pretrain import checkpoint
from pretrain.config import RunConfig, TrainingConfig
from pretrain.engine import learning_rate, make_engine, start_process_group
from pretrain.execution import apply_execution, begin_micro_batch
from pretrain.meter import Meter
from pretrain.model.operator import Operator, load_operator_files
from pretrain.objective import DenoisingObjective
from pretrain.run import (
    Status,
    StopRequest,
    die_with_parent,
    freeze,
    publish_final,
    read_cache,
    report_failure,
    write_status,
)
from pretrain.schedule import check_ranks_agree, open_needed, run_identity, run_mixture
from pretrain.tracking import Tracker


def train(folder: Path, tracking_uri: str, stop_requested: Callable[[], bool]) -> Status:
    """Train until the last step, from the newest checkpoint if there is one. Collective: every rank calls it.

    Args:
        folder: the run's folder.
        tracking_uri: MLflow's.
        stop_requested: asked once a step; once true on any rank, all of them finish the step, save and return.

    Returns:
        `finished` or `preempted`.
    """
    config = build(RunConfig, read_json(folder / "config.json"), file=folder / "config.json")
    training, identity = config.training, run_identity(config)
    rank, world_size, device = start_process_group()
    check_division(training.batch_size, training.micro_batch, world_size)

    operator = load_operator_files(folder / "initial").to(device)
    freeze(operator, config.trainable)
    apply_execution(operator.network, training, device, len(operator.grids))
    mixture = run_mixture(config, config.history + frames_out(config, operator))
    check_ranks_agree(identity, mixture)
    engine = make_engine(DenoisingObjective(operator, config.objective, config.seed), training, world_size)
    first_step = checkpoint.load_newest(engine, folder / "checkpoints", identity, mixture.digests_at)
    if first_step and rank == 0:
        print(f"{config.name}: going on from step {first_step}", flush=True)
    stores = open_needed(config, first_step, read_cache(folder))
    tracker = start_tracker(config, folder, tracking_uri) if rank == 0 else None
    meter = Meter([dataset.name for dataset in mixture.datasets], device)
    preempted = False

    with (
        make_loader(config, stores, operator, rank, world_size, first_step) as loader,
        Progress(config.name, training.steps, initial=first_step, unit="steps", quiet=rank > 0) as progress,
    ):
        batches = iter(loader)
        for step in range(first_step, training.steps):
            losses, stop = train_step(engine, batches, meter, training, step, stop_requested)
            progress.advance(note=f"loss {losses['loss']:.4f}")
            done = step + 1
            preempted = stop and done < training.steps
            if tracker and (done == training.steps or done % training.log_every == 0):
                tracker.metrics(done, losses | figures(engine, meter, training, step))
            if done == training.steps or preempted or done % training.checkpoint_every == 0:
                checkpoint.save(
                    engine, folder / "checkpoints", done, identity, mixture.digest(), training.keep_checkpoints
                )
                if tracker:
                    tracker.flush()
            if preempted:
                break

    if not preempted:
        publish_final(operator, folder / "final", rank)
    if tracker:
        tracker.finish("KILLED" if preempted else "FINISHED")
    return "preempted" if preempted else "finished"


def train_step(
    engine: Any, batches: Iterator[Batch], meter: Meter, training: TrainingConfig, step: int, stop: Callable[[], bool]
) -> tuple[dict[str, float], bool]:
    """One update: every micro-batch forward and backward, the ranks' agreement on the losses, the optimizer's step.

    Returns:
        The losses over all ranks, and whether any rank was asked to stop.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate(training, step)
    count = engine.gradient_accumulation_steps()
    for micro in range(count):
        batch = next(batches).to(meter.device)
        begin_micro_batch(training)
        loss, sample_losses = engine(batch)
        meter.add(batch, sample_losses)
        engine.backward(loss)
        if micro + 1 < count:
            engine.step()
    agreed = meter.agree(step, stop())  # before the update, so that a loss that is not finite does no harm
    engine.step()
    return agreed


def figures(engine: Any, meter: Meter, training: TrainingConfig, step: int) -> dict[str, float]:
    """What is logged beside the losses."""
    return {
        "learning_rate": learning_rate(training, step),
        "samples_per_second": training.batch_size * meter.steps_per_second(),
        "gradient_norm": float(engine.get_global_grad_norm() or 0.0),
    }


def make_loader(
    config: RunConfig,
    stores: Sequence[TrajectoryStore | None],
    operator: Operator,
    rank: int,
    world_size: int,
    first_step: int,
) -> Loader:
    """The stream of this rank's batches from `first_step` on."""
    frames = frames_out(config, operator)
    mixture = run_mixture(config, config.history + frames)
    # A batch's dataset number is the operator's row.
    assert [d.name for d in operator.config.datasets][: len(stores)] == [d.name for d in mixture.datasets]
    return Loader(
        stores,
        mixture,
        slots=[operator.slots(store.info.name, store.info.channels) if store else [] for store in stores],
        num_channels=len(operator.config.channels),
        parameters=operator.config.parameters,
        history=config.history,
        target=frames,
        rank=rank,
        world_size=world_size,
        first_step=first_step,
        shift=config.objective.shift,
        seed=config.seed,
        pin_memory=torch.cuda.is_available(),
    )


def frames_out(config: RunConfig, operator: Operator) -> int:
    """Frames that the loss covers."""
    return operator.config.network.out_timesteps * config.objective.rollout_steps


def start_tracker(config: RunConfig, folder: Path, uri: str) -> Tracker:
    """The MLflow run of this training run; a run that was killed goes on in the same one."""
    tracker = Tracker.start(uri, config.tracking.experiment, config.name, resume_from=folder / "tracking.json")
    tracker.params(config.model_dump(mode="json"))
    return tracker


def main(arguments: list[str]) -> int:
    """Train, and leave the outcome in `status.json`: launchers judge by it, not by exit codes."""
    folder, tracking_uri = Path(arguments[0]), arguments[1]
    die_with_parent()
    stop = StopRequest()
    # Ranks of an earlier start may still be on their way out, where the kernel does not see to that.
    alone = exclusive(folder / ".ranks.lock", wait=True, what=f"training in {folder}")
    try:
        with alone if os.environ["RANK"] == "0" else nullcontext():
            status = train(folder, tracking_uri, stop)
    except BaseException as error:
        report_failure(folder, error)
        raise
    if torch.distributed.get_rank() == 0:
        write_status(folder, status)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
