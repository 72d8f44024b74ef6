"""What a training run draws its samples from, and how that changes within a run: by a new segment at its end."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.base.files import digest, exclusive, read_json, write_json
from data_pipeline.mixture import Mixture
from data_pipeline.segments import MixtureDataset, Segment
from data_pipeline.stores import open_store
from data_pipeline.stores.cache import CacheConfig
from data_pipeline.stores.protocol import TrajectoryStore
from pretrain import checkpoint
from pretrain.comparison import check_same_but_for_data, fitted, read_operator_config, read_run
from pretrain.config import EXECUTION, QuarantineConfig, RunConfig, TrainedDataset
from pretrain.model.grids import lifted_grid
from pretrain.model.operator import CONFIG_FILE, Operator, OperatorConfig
from pretrain.run import read_status

_SAMPLES = ("data", "quarantine", "first_step", "past")  # what a new segment may change


def run_identity(content: Mapping[str, Any]) -> str:
    """Digest of all that cannot change within a run: neither what it draws its samples from, which is in the digest of
    its mixture, nor how it is run.

    Args:
        content: of the run's `config.json`, as it stands in the file: what later versions bring is not in it.
    """
    fixed = {key: value for key, value in content.items() if key not in (*_SAMPLES, "replaced")}
    training = {key: value for key, value in content["training"].items() if key not in EXECUTION}
    return digest(fixed | {"training": training})


def run_identity_v2(content: Mapping[str, Any]) -> str:
    """The same as checkpoints of version 2 have it, which go on only in the way that they began."""
    return digest({key: value for key, value in content.items() if key not in (*_SAMPLES, "replaced")})


def run_mixture(config: RunConfig, frames: int) -> Mixture:
    """The schedule of a run, for windows of so many frames; its datasets in the order in which they joined."""
    segments = config.segments
    datasets = {
        d.name: MixtureDataset(d.name, d.trajectories, d.frames - frames + 1, d.space)
        for segment in segments
        for d in segment.data
    }
    drawn = tuple(
        Segment(s.first_step, {d.name: d.weight for d in s.data}, quarantine_of(s.quarantine)) for s in segments
    )
    training = config.training
    return Mixture(
        tuple(datasets.values()), drawn, config.seed, training.batch_size, training.micro_batch, config.replaced
    )


def quarantine_of(entries: Iterable[QuarantineConfig]) -> dict[str, tuple[int, ...]]:
    """All trajectories in quarantine, by the names of their datasets."""
    barred: dict[str, tuple[int, ...]] = {}
    for entry in entries:
        barred[entry.dataset] = (*barred.get(entry.dataset, ()), *entry.trajectories)
    return barred


def open_needed(config: RunConfig, first_step: int, cache: CacheConfig) -> list[TrajectoryStore | None]:
    """The training splits of the mixture's datasets, in its order; None for those that are not drawn any more.

    Raises:
        DataError: one is missing or damaged, or is not the one that the run began with.
    """
    segments = config.segments
    # In force at `first_step` or later: those that no other one follows by then.
    needed = [s for s, after in pairwise(segments) if after.first_step > first_step]
    wanted = {d.name: d for s in [*needed, segments[-1]] for d in s.data}
    names = dict.fromkeys(d.name for s in segments for d in s.data)
    return [_open(wanted[name], cache) if name in wanted else None for name in names]


def _open(dataset: TrainedDataset, cache: CacheConfig) -> TrajectoryStore:
    store = open_store(dataset.path, "train", cache=cache)
    if store.digest != dataset.digest:
        raise DataError(
            f"dataset {dataset.name!r} holds other data than the run began with", file=dataset.path, key="digest",
            found=store.digest, expected=dataset.digest,
            remedy="put the old data back, or give the new ones a name of their own and add them as a new segment",
        )  # fmt: skip
    return store


def append_segment(folder: Path, asked: RunConfig, operator: Operator) -> None:
    """Let the run in `folder` draw from other data from its newest checkpoint on; the same data: nothing changes.

    Args:
        folder: the run's.
        asked: the run as it is asked for now.
        operator: a fresh one for the datasets that are asked for.

    Raises:
        ConfigError: there is no checkpoint to go on from, the run has finished, a dataset holds other data than
            before, or one that joins has fields or a grid that the operator does not know.
        PdepotError: the run is being trained.
    """
    file = folder / "config.json"
    if not file.exists():
        raise ConfigError("there is no run to go on with", file=folder, remedy="start it without --new-segment")
    with exclusive(folder / ".lock", wait=False, what=f"the training run in {folder}"):
        there = read_run(folder)
        if (there.data, there.quarantine) == (asked.data, asked.quarantine):
            return
        step = checkpoint.newest_step(folder / "checkpoints")
        if step is None or read_status(folder)[0] == "finished":
            raise ConfigError(
                "the run cannot go on with other data", file=folder,
                found="a finished run" if step else "no checkpoint, from which a new segment would begin",
                remedy="fine-tune its operator" if step else "delete the folder to start over",
            )  # fmt: skip
        check_same_but_for_data(folder, there, asked, operator)
        known = {d.name: d for segment in there.segments for d in segment.data}
        _check_same_data(known, asked.data)
        model = read_operator_config(folder, known)
        _check_operator_knows(model, operator, set(known))
        # Rows are added before the segment that needs them; weights do not depend on them.
        write_json(folder / "initial" / CONFIG_FILE, fitted(model, operator.config).model_dump(mode="json"))
        changes = {"first_step": step, "past": there.segments}
        kept = there.model_copy(update={"data": asked.data, "quarantine": asked.quarantine, **changes})
        # Only these: the rest of the file stays as it is, and with it the run's identity.
        write_json(file, read_json(file) | kept.model_dump(mode="json", include=set(_SAMPLES)))
    print(f"{asked.name}: from step {step} on, another mixture ({len(kept.past) + 1} segments)", flush=True)


def _check_same_data(known: dict[str, TrainedDataset], asked: Sequence[TrainedDataset]) -> None:
    for dataset in asked:
        if dataset.name in known and dataset.digest != known[dataset.name].digest:
            raise ConfigError(
                f"dataset {dataset.name!r} holds other data than before", file=dataset.path, key="digest",
                found=dataset.digest, expected=known[dataset.name].digest,
                remedy="give the new data a name of their own: a dataset keeps its windows through all segments",
            )  # fmt: skip


def _check_operator_knows(model: OperatorConfig, asked: Operator, known: set[str]) -> None:
    for dataset in asked.config.datasets:
        if dataset.name in known:
            continue
        unknown = [field for field in dataset.channels if field not in model.channels]
        if model.slots == "anonymous":
            unknown = list(dataset.channels[len(model.channels) :])
        space = asked.grid(dataset.name)
        if unknown:
            raise ConfigError(
                f"dataset {dataset.name!r} has fields that the operator does not know", key=", ".join(unknown),
                expected=", ".join(model.channels), remedy="pretrain without it, and fine-tune the operator on it",
            )  # fmt: skip
        if len(space) > len(model.network.space):
            raise ConfigError(
                f"dataset {dataset.name!r} has more spatial axes than the operator", key="space", found=space,
                expected=f"at most {len(model.network.space)} axes", remedy="leave it out",
            )  # fmt: skip
        seen = lifted_grid(space, len(model.network.space), model.network.patch_size)
        if seen != model.network.space and not model.network.resize_position:
            raise ConfigError(
                f"dataset {dataset.name!r} has another grid than the operator", key="space", found=space,
                expected=model.network.space, remedy="export it at that resolution, or fine-tune the operator on it",
            )  # fmt: skip
