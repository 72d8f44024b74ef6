"""From a run's folder to all that the training loop needs: what is trained, its data, and where it goes on from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from data_pipeline.base.files import read_json
from data_pipeline.loader import Loader, check_division
from data_pipeline.mixture import Mixture
from data_pipeline.stores.protocol import TrajectoryStore
from pretrain.checkpoint import Checkpoints, Found, find_newest, restore
from pretrain.clipping import QuantileClip
from pretrain.comparison import read_run
from pretrain.config import RunConfig, TrainingConfig
from pretrain.ema import WeightAverage
from pretrain.engine import make_engine
from pretrain.execution import apply_execution
from pretrain.guard import LossGuard
from pretrain.meter import Meter
from pretrain.model.operator import WEIGHTS_FILE, Operator, load_operator_files
from pretrain.objective import DenoisingObjective
from pretrain.preflight import checkpoint_size, manifest_digests, preflight
from pretrain.run import freeze, read_cache
from pretrain.schedule import open_needed, run_identity, run_identity_v2, run_mixture
from pretrain.together import agreed


class LoopState:
    """What the loop remembers from step to step beside weights and optimizer; the same on all ranks.

    Args:
        engine: the DeepSpeed engine, with the weights to start from.
        training: the run's settings.
    """

    def __init__(self, engine: Any, training: TrainingConfig) -> None:
        self.guard = LossGuard(training)
        self.average = WeightAverage(engine, training.ema) if training.ema else None
        self._quantile = QuantileClip(training.clip_quantile, training.clip_window) if training.clip_quantile else None
        self._clip = training.clip

    @property
    def bound(self) -> float:
        """The bound of the next gradient's norm; 0 for none."""
        bounds = [bound for bound in (self._clip, self._quantile.bound() if self._quantile else 0) if bound]
        bound = min(bounds, default=0.0)
        return bound if bound < float("inf") else 0.0

    def note_taken(self, step: int, loss: float, norm: float) -> None:
        """Take note of a step that was taken."""
        self.guard.note_taken(loss)
        if self._quantile:
            self._quantile.add(norm)
        if self.average:
            self.average.update(step)

    def state(self) -> dict[str, Any]:
        """For a checkpoint; the average is not in it, since each rank has a part of it."""
        return {"guard": self.guard.state(), "norms": self._quantile.state() if self._quantile else []}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's; nothing in it (version 2): start afresh."""
        if state:
            self.guard.load(state["guard"])
        if state and self._quantile:
            self._quantile.load(state["norms"])


@dataclass(frozen=True)
class Parts:
    """A training run, ready to go on.

    Attributes:
        first_step: number of steps done.
    """

    folder: Path
    config: RunConfig
    device: torch.device
    mixture: Mixture
    operator: Operator
    engine: Any
    loader: Loader
    checkpoints: Checkpoints
    state: LoopState
    meter: Meter
    first_step: int


def set_up(folder: Path, device: torch.device) -> Parts:
    """Make a run ready from its folder and its newest checkpoint. Collective.

    Raises:
        PdepotError: what stands in the way, on all ranks.
    """
    config, identity = read_run(folder), run_identity(read_json(folder / "config.json"))
    training = config.training
    check_division(training.batch_size, training.micro_batch, dist.get_world_size())
    operator = load_operator_files(folder / "initial").to(device)
    mixture = run_mixture(config, config.history + frames_out(config, operator))
    check(folder, config, operator, mixture, identity, device)
    checkpoints = Checkpoints(
        folder / "checkpoints", identity, keep=training.keep_checkpoints, keep_every=training.keep_every
    )
    found = find_newest(
        folder / "checkpoints", identity, mixture.digests_at, run_identity_v2(read_json(folder / "config.json"))
    )
    if found and found.own_format:
        weights = found.path / WEIGHTS_FILE
        agreed(lambda: operator.load_state_dict(load_file(weights, device=str(device))), "load a checkpoint", weights)
    engine = _engine(config, operator, device)
    state = LoopState(engine, training)
    if found:
        _go_on(found, engine, state)
    first_step = found.step if found else 0
    stores = open_needed(config, first_step, read_cache(folder))
    return Parts(
        folder=folder,
        config=config,
        device=device,
        mixture=mixture,
        operator=operator,
        engine=engine,
        loader=make_loader(
            config, mixture, stores, operator, first_step, rank=dist.get_rank(), world_size=dist.get_world_size()
        ),
        checkpoints=checkpoints,
        state=state,
        meter=Meter([dataset.name for dataset in mixture.datasets], device),
        first_step=first_step,
    )


def check(
    folder: Path, config: RunConfig, operator: Operator, mixture: Mixture, identity: str, device: torch.device
) -> None:
    """Find out now what would go wrong later, or on one rank alone, and say what there is. Collective."""
    found = preflight(
        folder,
        same={"configuration": identity, "mixture": mixture.digest()},
        data=lambda: manifest_digests(config.data),
        checkpoint_bytes=checkpoint_size(operator, averaged=config.training.ema is not None),
        keep=config.training.keep_checkpoints,
        device=device,
        seconds=min(120.0, config.training.collective_timeout),
    )
    if dist.get_rank() == 0:
        print(f"{config.name}: {found}", flush=True)


def _engine(config: RunConfig, operator: Operator, device: torch.device) -> Any:
    freeze(operator, config.trainable)
    apply_execution(operator.network, config.training, device, len(operator.grids))
    objective = DenoisingObjective(operator, config.objective, config.seed, config.training.batch_size)
    return make_engine(objective, config.training, dist.get_world_size())


def _go_on(found: Found, engine: Any, state: LoopState) -> None:
    restore(found, engine, state.average)
    state.load(found.loop)


def make_loader(
    config: RunConfig,
    mixture: Mixture,
    stores: Sequence[TrajectoryStore | None],
    operator: Operator,
    first_step: int,
    *,
    rank: int,
    world_size: int,
) -> Loader:
    """The stream of a rank's batches from `first_step` on."""
    # A batch's dataset number is the operator's row.
    assert [d.name for d in operator.config.datasets][: len(stores)] == [d.name for d in mixture.datasets]
    return Loader(
        stores,
        mixture,
        slots=[operator.slots(store.info.name, store.info.channels) if store else [] for store in stores],
        num_channels=len(operator.config.channels),
        parameters=operator.config.parameters,
        history=config.history,
        target=frames_out(config, operator),
        lead_times=config.objective.max_lead > 1,
        rank=rank,
        world_size=world_size,
        first_step=first_step,
        shift=config.objective.shift,
        seed=config.seed,
        pin_memory=torch.cuda.is_available(),
    )


def frames_out(config: RunConfig, operator: Operator) -> int:
    """Frames after the history that a window reaches."""
    return config.objective.frames_out(operator.config.network.out_timesteps)
