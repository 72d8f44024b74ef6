"""The training loop. Started once per rank by torchrun: `python -m pretrain.train RUN_FOLDER TRACKING_URI`.

The run's folder says everything: `config.json` what to do, `initial/` the weights to start from (fresh, or adapted
from a pretrained operator), `checkpoints/` how far it has come, `status.json` how it ended, `final/` the result.
"""

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import torch.distributed as dist

from data_pipeline.base.files import exclusive
from data_pipeline.base.progress import Progress
from data_pipeline.batch import Batch
from pretrain.checkpoint import newest_step, operator_weights
from pretrain.comparison import read_run
from pretrain.engine import start_process_group, update
from pretrain.execution import begin_micro_batch
from pretrain.fragments import release
from pretrain.incidents import check_may_go_back, go_back, record_incident, rollbacks
from pretrain.model.operator import WEIGHTS_FILE
from pretrain.run import (
    Status,
    die_with_parent,
    failed_for_good,
    publish_final,
    read_status,
    report_failure,
    write_status,
)
from pretrain.schedules import learning_rate, set_rates
from pretrain.setup import Parts, set_up
from pretrain.stop import StopRequest
from pretrain.throughput import Throughput
from pretrain.together import together
from pretrain.tracking import Tracker, start_tracker
from pretrain.validate import validate
from pretrain.watchdog import Watchdog


def train(folder: Path, tracking_uri: str, stop_requested: Callable[[], bool]) -> Status:
    """Train until the last step, from the newest checkpoint if there is one. Collective: every rank calls it.

    Args:
        folder: the run's folder.
        tracking_uri: MLflow's.
        stop_requested: asked once a step; once true on any rank, all of them finish the step, save and return.

    Returns:
        `finished` or `preempted`.
    """
    config = read_run(folder)
    rank, _, device = start_process_group(config.training.collective_timeout)
    with ExitStack() as stack:
        tracker = stack.enter_context(start_tracker(config, folder, tracking_uri)) if rank == 0 else None
        watchdog = stack.enter_context(Watchdog(folder, rank, config.training.hang_timeout))
        while (outcome := train_on(set_up(folder, device), tracker, watchdog, stop_requested)) == "gone back":
            pass
        if tracker:
            tracker.finish("KILLED" if outcome == "preempted" else "FINISHED")
    return outcome


def train_on(
    run: Parts, tracker: Tracker | None, watchdog: Watchdog, stop_requested: Callable[[], bool]
) -> Literal["finished", "preempted", "gone back"]:
    """Train to the end, to a request to stop, or until steps cannot be taken any more. Collective."""
    training, done = run.config.training, run.first_step
    if tracker:
        tracker.begin(done)
    bar = Progress(run.config.name, training.steps, initial=done, unit="steps", quiet=dist.get_rank() > 0)
    with run.loader as loader, bar as progress:
        throughput, batches, preempted = throughput_of(run, tracker) if tracker else None, iter(loader), False
        while done < training.steps and not preempted:
            step = train_step(run, batches, done, stop_requested())
            done += 1
            watchdog.beat(done)
            preempted = step.stop and done < training.steps
            if not step.taken:
                note_skipped(run, step, done)
                if run.state.guard.exhausted:
                    return back(run, done)
            progress.advance(note=f"loss {step.losses['loss']:.4f}")
            if tracker and throughput:
                throughput.add(step.waited)
                if done == training.steps or done % training.log_every == 0:
                    tracker.metrics(done, step.losses | figures(run, step, done) | throughput.figures())
            if step.written:
                publish(run, tracker, hurried=step.stop)
            regular = done % training.checkpoint_every == 0 and not run.state.guard.in_a_row
            if regular or preempted or done == training.steps:
                publish(run, tracker, hurried=step.stop)
                save(run, done)
    publish(run, tracker, hurried=preempted)
    if not preempted:
        finish(run, tracker, done)
    run.engine.destroy()
    return "preempted" if preempted else "finished"


class Step(NamedTuple):
    """What has come of a step, the same on all ranks but for `waited`."""

    losses: dict[str, float]
    """Mean losses over all ranks: `loss`, and `loss/<dataset>`."""
    gradient_norm: float
    """Before clipping; not finite where the step was not taken."""
    taken: bool
    objection: str
    """Why it was not."""
    stop: bool
    """Whether any rank was asked to stop."""
    written: bool
    """Whether the checkpoint that was begun can be published."""
    waited: float
    """Seconds that this rank waited for data."""


def train_step(run: Parts, batches: Iterator[Batch], step: int, stop: bool) -> Step:
    """One update: every micro-batch forward and backward, the ranks' agreement on the losses, the optimizer's step."""
    engine, training, guard = run.engine, run.config.training, run.state.guard
    set_rates(engine.optimizer.param_groups, training, step)
    count, waited = engine.gradient_accumulation_steps(), 0.0
    for micro in range(1, count + 1):
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        batch = batch.to(run.device, non_blocking=True)
        begin_micro_batch(training)
        loss, sample_losses = engine(batch)
        run.meter.add(batch, sample_losses)
        if micro == count:
            # Before the last backward pass, so that a step that is not to be taken can still be spoilt: no ZeRO stage
            # applies a gradient that is not finite.
            agreed = run.meter.agree(stop=stop, writing=run.checkpoints.state)
            objection = guard.objection(agreed.losses["loss"])
            loss = loss * math.nan if objection else loss
        engine.backward(loss)
        if micro < count:
            engine.step()
    taken, norm = update(engine, run.state.bound)
    if taken:
        run.state.note_taken(step, agreed.losses["loss"], norm)
    return Step(
        agreed.losses, norm, taken, objection or "the gradient is not finite", agreed.stop, agreed.written, waited
    )


def note_skipped(run: Parts, step: Step, done: int) -> None:
    """Record a step that was not taken. Collective."""
    guard = run.state.guard
    everyone = math.isfinite(step.losses["loss"]) and step.losses["loss"] <= guard.bound  # it was the gradient
    samples = run.meter.samples(lambda loss: everyone or not loss <= guard.bound or not math.isfinite(loss))
    first = guard.in_a_row == 0  # the weights have not changed since
    guard.note_skipped(position for position, _ in samples)
    weights = operator_weights(run.engine) if first else {}
    if dist.get_rank() == 0:
        record_incident(run.folder, done - 1, step.objection, samples, run.mixture, run.operator.config, weights)


def back(run: Parts, done: int) -> Literal["gone back"]:
    """Go back to the last checkpoint, from where other samples stand in for those objected to. Collective."""
    run.checkpoints.finish()
    folder, offenders = run.folder, run.state.guard.offenders
    to_step, times = together(
        lambda: (newest_step(run.checkpoints.folder) or 0, len(rollbacks(folder))),
        "look for the way back", folder, only_first=True,
    )[0]  # fmt: skip
    check_may_go_back(folder, run.config.training, done, times, offenders)
    together(lambda: go_back(folder, run.config, done, to_step, offenders), "go back", folder, only_first=True)
    release(run.engine)
    return "gone back"


def save(run: Parts, done: int) -> None:
    """Begin a checkpoint. Collective."""
    state = run.state
    run.checkpoints.begin(run.engine, run.operator, done, run.mixture.digest(done), state.state(), state.average)


def publish(run: Parts, tracker: Tracker | None, *, hurried: bool = False) -> None:
    """Publish the checkpoint that was begun last, and validate its operator unless a deadline runs. Collective."""
    checkpoint = run.checkpoints.finish()
    if checkpoint and not hurried and run.config.training.validation_trajectories:
        validate(run.folder, run.config, checkpoint, run.device, tracker)


def finish(run: Parts, tracker: Tracker | None, done: int) -> None:
    """Publish what the last checkpoint holds as the run's operator. Collective."""
    last = run.checkpoints.folder / f"step-{done:08d}"
    if not (last / WEIGHTS_FILE).exists():  # of version 2, which had all but finished
        save(run, done)
        publish(run, tracker)
    publish_final(last, run.folder / "final")


def throughput_of(run: Parts, tracker: Tracker) -> Throughput:
    """How fast the run is, from now on."""
    throughput = Throughput(run.config, run.operator.config, run.device, dist.get_world_size())
    tracker.tags({"throughput": throughput.note})
    print(f"{run.config.name}: {throughput.note}", flush=True)
    return throughput


def figures(run: Parts, step: Step, done: int) -> dict[str, float]:
    """What is logged beside the losses; what is not finite is left out."""
    found = {
        "learning_rate": learning_rate(run.config.training, done - 1),
        "gradient_norm": step.gradient_norm,
        "skipped_steps": float(run.state.guard.skipped),
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def run_rank(folder: Path, tracking_uri: str, stop_requested: Callable[[], bool]) -> None:
    """All that a rank does, whatever has started it: train, and leave the outcome in `status.json`, by which launchers
    judge. The arguments are those of `train`."""
    first = os.environ["RANK"] == "0"
    # Ranks of an earlier start may still be on their way out, where the kernel does not see to that.
    alone = exclusive(folder / ".ranks.lock", wait=True, what=f"training in {folder}")
    try:
        with alone if first else nullcontext():
            if first:
                write_status(folder, "running")
            status = train(folder, tracking_uri, stop_requested)
            if first:
                write_status(folder, status)
    except BaseException as error:
        report_failure(folder, error)
        raise


def main(arguments: list[str]) -> int:
    """A rank that torchrun has started. Its exit code says little: ranks may crash on their way out."""
    folder = Path(arguments[0])
    die_with_parent()
    # torchrun restarts whatever has ended badly, also on its way out, or for a reason that a restart does not mend.
    # Whoever means to start a run anew says `running` first (`launch.ranks`).
    if read_status(folder)[0] in ("finished", "preempted") or failed_for_good(folder):
        print(f"{folder}: has come to its end, see status.json", flush=True)
        return 0
    run_rank(folder, arguments[1], StopRequest(read_run(folder).training.stop_timeout))
    dist.barrier()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
