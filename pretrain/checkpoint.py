"""The checkpoint protocol: a checkpoint is whole and verified, or it does not exist.

    step-00000123/
      manifest.json             sizes and digests of all files, the step, what run and samples it belongs to
      model.safetensors, .json  the weights as an operator, which every command takes
      rank-00000.safetensors    what rank 0 holds of the optimizer's state (and of the average), in flat pieces
      ...

Saving: in the loop each rank copies its state into memory of its own, which is all that the loop waits for; a thread
writes and syncs the copy under a temporary name. When the threads of all ranks have finished, which the ranks tell
each other with the losses of a step, rank 0 writes the manifest and renames the folder. Loading: rank 0 proposes the
newest checkpoint whose manifest and sizes hold, the ranks verify the digests, each of some files, and if any rank
objects all of them go one checkpoint back together. Pieces are named by parameter and element (`pretrain.fragments`),
so any number of ranks and any ZeRO stage can go on from them. DeepSpeed's own checkpoints promise none of this, and
are pickles.
"""

import json
import os
import re
import shutil
import threading
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from data_pipeline.base.errors import CheckpointError, PdepotError
from data_pipeline.base.files import (
    digest,
    disk_errors,
    publish_directory,
    remove_tree,
    replace_file,
    sha256_file,
    write_json,
)
from pretrain import checkpoint_v2
from pretrain.ema import KEY as AVERAGE
from pretrain.ema import WeightAverage
from pretrain.fragments import fragments, full_weights, inner_optimizer, state_keys
from pretrain.model.operator import CONFIG_FILE, WEIGHTS_FILE, Operator
from pretrain.state_files import Stretches, write_tensors
from pretrain.together import agreed, together

_VERSION = 3
_MANIFEST = "manifest.json"
_READABLE = (checkpoint_v2.VERSION, _VERSION)
_PREFIX = "operator."  # of the operator's weights in what is trained, `pretrain.objective`
_NAME = re.compile(r"step-(\d{8,})")
_ABSENT = (FileNotFoundError, NotADirectoryError)  # the only errors of a disk that say something about its content
State = Literal["idle", "writing", "written", "failed"]


@dataclass(frozen=True)
class Found:
    """A checkpoint that is whole."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Number of steps done."""
        return int(self.manifest["step"])

    @property
    def loop(self) -> dict[str, Any]:
        """What the training loop has kept in it."""
        return dict(self.manifest.get("loop", {}))

    @property
    def own_format(self) -> bool:
        """False for one of an earlier version, which DeepSpeed has written."""
        return bool(self.manifest["version"] == _VERSION)


class Checkpoints:
    """The checkpoints that a run writes. Every rank has one, and all call its collective methods alike.

    Args:
        folder: holds the run's checkpoints; made when it is missing.
        identity: digest of the run's configuration; a checkpoint is only ever loaded by the same run.
        keep: number of checkpoints that stay, the newest ones.
        keep_every: checkpoints of steps that this divides stay for good; 0 for none.
    """

    def __init__(self, folder: Path, identity: str, *, keep: int, keep_every: int = 0) -> None:
        self.folder, self.identity, self._keep, self._keep_every = folder, identity, keep, keep_every
        self._attempt = together(lambda: uuid.uuid4().hex[:8], "name an attempt", folder, only_first=True)[0]
        together(self._clear, "use the folder of checkpoints", folder, only_first=True)
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._pending: _Pending | None = None

    def _clear(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)

    @property
    def state(self) -> State:
        """How far this rank's part of the checkpoint that was begun last is."""
        if self._pending is None:
            return "idle"
        if self._thread is not None and self._thread.is_alive():
            return "writing"
        return "failed" if self._pending.problem else "written"

    def begin(
        self,
        engine: Any,
        operator: Operator,
        step: int,
        schedule: str,
        loop: Mapping[str, Any],
        average: WeightAverage | None = None,
    ) -> None:
        """Copy the state after `step` finished steps, and write it in the background. Collective.

        A checkpoint that is still being written is finished first.

        Args:
            engine: the DeepSpeed engine.
            operator: what it trains; with the weights it makes the checkpoint an operator.
            step: number of steps done.
            schedule: digest of what the run draws its samples from; with the step, all there is to the data's state.
            loop: what the training loop wants back, JSON-able and the same on all ranks.
            average: of the weights, if there is one.

        Raises:
            CheckpointError: on all ranks, when the checkpoint before could not be written.
        """
        self.finish()
        parts = self._copy(engine, operator, average)
        manifest = {
            "version": _VERSION,
            "step": step,
            "identity": self.identity,
            "schedule": schedule,
            "world_size": dist.get_world_size(),
            "zero_stage": engine.zero_optimization_stage(),
            "state": _state_kinds(engine),
            "average": average is not None,
            "loop": dict(loop),
        }
        # The folder of checkpoints must be there: one that has vanished is not silently made again.
        temporary = self.folder / f".step-{step:08d}.{self._attempt}.partial"
        config = operator.config.model_dump_json(indent=1).encode()
        self._pending = _Pending(temporary, self.folder / f"step-{step:08d}", manifest, parts, config)
        self._thread = threading.Thread(target=self._pending.write, name="pdepot-checkpoint", daemon=True)
        self._thread.start()

    def _copy(self, engine: Any, operator: Operator, average: WeightAverage | None) -> dict[str, dict[str, Tensor]]:
        """File name -> tensors, copied into memory that is used again for the next checkpoint."""
        rank, world_size = dist.get_rank(), dist.get_world_size()
        pieces: dict[str, Tensor] = {}
        inner, own = inner_optimizer(engine), fragments(engine)
        averages = [value for _, value in average.pieces()] if average else []
        for number, fragment in enumerate(own):
            if engine.zero_optimization_stage() == 0 and number % world_size != rank:
                continue  # every rank holds all: each writes its share
            state = inner.state.get(fragment.owner, {})
            values = {key: fragment.cut(state[key]) for key in state_keys(fragment.owner, state)}
            if averages:
                values[AVERAGE] = averages[number]
            for key, value in values.items():
                pieces[Stretches.name(key, fragment.name, fragment.start)] = value
        parts = {f"rank-{rank:05d}.safetensors": self._kept(pieces)}
        weights = operator_weights(engine)
        if rank == 0:
            parts[WEIGHTS_FILE] = self._kept(weights)
        return parts

    def _kept(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            buffer = self._buffers.get(name)
            if buffer is None or buffer.shape != tensor.shape:
                buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=torch.cuda.is_available())
                self._buffers[name] = buffer
            copies[name] = buffer.copy_(tensor, non_blocking=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copies

    def finish(self) -> Path | None:
        """Wait for what is being written, and publish it. Collective. Nothing is being written: nothing happens.

        Returns:
            The new checkpoint's folder, if there is one.

        Raises:
            CheckpointError: on all ranks, when any of them could not write (disk full, read-only). Nothing is visible.
        """
        if self._pending is None or self._thread is None:
            return None
        pending, self._pending = self._pending, None
        self._thread.join()
        try:
            written = together(pending.outcome, "write a checkpoint", pending.final)
            files = {name: entry for part in written for name, entry in part.items()}
            together(lambda: self._publish(pending, files), "publish a checkpoint", pending.final, only_first=True)
        except CheckpointError:
            shutil.rmtree(pending.temporary, ignore_errors=True)  # gives a full disk its room back
            raise
        return pending.final

    def _publish(self, pending: "_Pending", files: dict[str, list[Any]]) -> None:
        for name, (size, _) in files.items():
            if (pending.temporary / name).stat().st_size != size:  # the folder has vanished, or is not the ranks' own
                raise CheckpointError("a file is not as a rank has written it", file=pending.temporary / name)
        content = pending.manifest | {"files": files}
        write_json(pending.temporary / _MANIFEST, content | {"checksum": digest(content)})
        # What stands here or at a later step was found to be damaged, or the run would have gone on from it.
        for path in _list(self.folder):
            if step_of(path) >= step_of(pending.final):
                remove_tree(path)
        publish_directory(pending.temporary, pending.final)
        for old in _list(self.folder)[self._keep :]:
            if not (self._keep_every and step_of(old) % self._keep_every == 0):
                remove_tree(old)


def operator_weights(engine: Any) -> dict[str, Tensor]:
    """The operator's weights by their names in it, on rank 0; nothing on the others. Collective under ZeRO-3."""
    weights = full_weights(engine, wanted=dist.get_rank() == 0)
    return {name.removeprefix(_PREFIX): value for name, value in weights.items()}


@dataclass
class _Pending:
    """This rank's part of a checkpoint on its way to the disk."""

    temporary: Path
    final: Path
    manifest: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]
    config: bytes
    problem: Exception | None = None
    receipts: dict[str, list[Any]] | None = None

    def write(self) -> None:
        try:
            self.temporary.mkdir(exist_ok=True)
            receipts = {
                name: list(write_tensors(self.temporary / name, tensors)) for name, tensors in self.parts.items()
            }
            if WEIGHTS_FILE in self.parts:
                with replace_file(self.temporary / CONFIG_FILE, unseen=True) as file:
                    file.write(self.config)
                receipts[CONFIG_FILE] = [len(self.config), sha256_file(self.temporary / CONFIG_FILE)]
            self.receipts = receipts
        except Exception as error:  # the loop hears of it, with the other ranks
            self.problem = error

    def outcome(self) -> dict[str, list[Any]]:
        if self.problem is not None:
            raise self.problem
        assert self.receipts is not None
        return self.receipts


def _state_kinds(engine: Any) -> list[dict[str, Any]]:
    """What the optimizer keeps of its parameters: names of tensors, and the counters that go with them. Muon keeps
    other things of matrices than of the rest. Nothing before the first update."""
    kinds: dict[tuple[str, ...], dict[str, float]] = {}
    for owner, state in inner_optimizer(engine).state.items():
        keys = tuple(state_keys(owner, state))
        counters = {
            key: float(value)
            for key, value in state.items()
            if isinstance(value, int | float) or (isinstance(value, Tensor) and value.dim() == 0)
        }
        if keys:
            known = kinds.setdefault(keys, counters)
            assert known == counters, f"parameters of different ages: {known}, {counters}"
    return [{"keys": list(keys), "counters": counters} for keys, counters in sorted(kinds.items())]


def find_newest(
    folder: Path, identity: str, schedules: Callable[[int], Collection[str]], identity_v2: str = ""
) -> Found | None:
    """The newest checkpoint that is whole, verified by all ranks together; None if there is none. Collective.

    Args:
        folder: holds the run's checkpoints.
        identity: as it was saved.
        schedules: the digests that the schedule can have had after so many steps.
        identity_v2: the identity as version 2 had it, of a run that such a version began.

    Raises:
        CheckpointError: a checkpoint belongs to another configuration or schedule, or there are some and all of them
            are damaged; on all ranks.
    """
    rejected: dict[str, str] = {}
    while True:
        name, rejected = together(
            partial(_propose, folder, rejected), "look for a checkpoint", folder, only_first=True
        )[0]
        if name is None:
            _refuse_to_start_over(folder, rejected)
            return None
        path = folder / name
        damage = [found for found in together(partial(_damaged, path), "verify a checkpoint", path) if found]
        if not damage:
            break
        rejected[name] = f"{', '.join(damage)}: another digest than in the manifest"
        if dist.get_rank() == 0:
            print(f"checkpoint {path} is damaged ({rejected[name]}); going back to the one before it", flush=True)
    found = Found(path, agreed(partial(_read_manifest, path), "read a checkpoint", path))
    _check_same_run(found, identity if found.own_format else identity_v2, schedules(found.step))
    return found


def _refuse_to_start_over(folder: Path, rejected: Mapping[str, str]) -> None:
    if rejected:
        raise CheckpointError(
            "every checkpoint of the run is damaged", file=folder,
            found="; ".join(f"{name}: {problem}" for name, problem in rejected.items()),
            remedy="put back what is missing, or delete the damaged ones to start over from step 0",
        )  # fmt: skip


def _check_same_run(found: Found, identity: str, schedules: Collection[str]) -> None:
    checks = {
        "version": (found.manifest["version"], _READABLE, "use the version of pdepot that wrote it"),
        "identity": (found.manifest["identity"], (identity,), "the configuration has changed: choose another output "
                     "folder; or, if the checkpoint is of version 2, go on as it began for one more checkpoint"),
        "schedule": (found.manifest["schedule"], schedules, "undo what was changed by hand in config.json; "
                     "--new-segment changes data from a checkpoint on"),
    }  # fmt: skip
    for key, (value, expected, remedy) in checks.items():
        if value not in expected:
            raise CheckpointError(
                "the checkpoint cannot be continued by this run", file=found.path, key=key, found=value,
                expected=" or ".join(map(str, expected)), remedy=remedy,
            )  # fmt: skip


def restore(found: Found, engine: Any, average: WeightAverage | None = None) -> None:
    """Give a fresh engine the optimizer's state, and the average its values. Collective.

    The weights are loaded into the module before the engine is made (`Found.path` is an operator's folder).

    Raises:
        CheckpointError: on all ranks, when a file cannot be read or lacks a part.
    """
    if not found.own_format:
        together(lambda: checkpoint_v2.load(engine, found.path, found.manifest), "load a checkpoint", found.path)
        return
    together(lambda: _restore(found, engine, average), "load a checkpoint", found.path)


def _restore(found: Found, engine: Any, average: WeightAverage | None) -> None:
    pieces = Stretches(rank_files(found.path, first=dist.get_rank()))
    inner = inner_optimizer(engine)
    for fragment in fragments(engine):
        kept = pieces.keys(fragment.name)
        for kind in found.manifest["state"]:
            if not kept.issuperset(kind["keys"]):
                continue
            state = inner.state[fragment.owner]
            for key in kind["keys"]:
                if key not in state:
                    state[key] = torch.zeros_like(fragment.owner.data)
                fragment.cut(state[key]).copy_(pieces.read(key, fragment.name, fragment.start, fragment.size))
            for key, value in kind["counters"].items():
                state[key] = torch.tensor(value)
    if average is not None:
        for fragment, values in average.pieces():
            values.copy_(pieces.read(AVERAGE, fragment.name, fragment.start, fragment.size))


def load_average(path: Path, operator: Operator) -> None:
    """Give an operator the average of a checkpoint, if it has one, in place of the weights that were trained."""
    pieces = Stretches(rank_files(path))
    with torch.no_grad():
        for name, parameter in operator.named_parameters():
            stored = f"{_PREFIX}{name}"
            if AVERAGE in pieces.keys(stored):
                parameter.copy_(pieces.read(AVERAGE, stored, 0, parameter.numel()).view_as(parameter))


def rank_files(path: Path, first: int = 0) -> list[Path]:
    """The ranks' files of a checkpoint, that of rank `first` before the others: it is the likeliest to be needed."""
    own = path / f"rank-{first:05d}.safetensors"
    return sorted(path.glob("rank-*.safetensors"), key=lambda file: (file != own, file.name))


def newest_step(folder: Path) -> int | None:
    """Steps done in the newest checkpoint whose files are there; None without any.

    Raises:
        DataError: the disk does not say.
    """
    with disk_errors():
        newest, _ = _propose(folder, {})
    return step_of(folder / newest) if newest else None


def step_of(path: Path) -> int:
    """Steps done in a checkpoint, by its folder's name."""
    return int(path.name.removeprefix("step-"))


def _propose(folder: Path, rejected: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """The newest checkpoint whose manifest and sizes hold, but for those rejected; and those, with the reasons."""
    rejected = dict(rejected)
    for path in _list(folder):
        if path.name in rejected:
            continue
        problem = _misfit(path)
        if not problem:
            return path.name, rejected
        rejected[path.name] = problem
        print(f"checkpoint {path} is not usable: {problem}", flush=True)
    return None, rejected


def _list(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    try:
        with os.scandir(folder) as entries:  # `Path.glob` takes a folder that cannot be read for an empty one
            found = [folder / entry.name for entry in entries if _NAME.fullmatch(entry.name)]
    except _ABSENT:
        return []
    return sorted(found, key=step_of, reverse=True)


def _misfit(path: Path) -> str:
    """What is wrong with a checkpoint's manifest or its files' sizes; empty when nothing is. Raises OSError when the
    disk does not say: that is no damage, for which a run goes back and the next save deletes what stands here."""
    try:
        for name, (size, _) in _read_manifest(path)["files"].items():
            found = (path / name).stat().st_size
            if found != size:
                raise CheckpointError("a file has another size", file=path / name, found=found, expected=size)
    except (PdepotError, *_ABSENT) as error:
        return str(error)
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # of version 2, which has no checksum
        return f"the manifest is damaged: {type(error).__name__}: {error}"
    return ""


def _read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest. Raises CheckpointError unless it is as it was written, OSError if it cannot be read."""
    file = path / _MANIFEST
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise CheckpointError("the manifest of a checkpoint is damaged", file=file, found=error) from None
    if not isinstance(content, dict):
        raise CheckpointError("the manifest of a checkpoint is damaged", file=file, found=type(content).__name__)
    if content.get("version") == checkpoint_v2.VERSION and "checksum" not in content:
        return content  # they had none
    if content.pop("checksum", None) != digest(content):
        raise CheckpointError("the manifest of a checkpoint is damaged", file=file, key="checksum")
    return content


def _damaged(path: Path) -> str:
    """The first of this rank's share of the files whose digest is not that of the manifest; empty if there is none."""
    files = sorted(_read_manifest(path)["files"].items())
    for name, (_, sha256) in files[dist.get_rank() :: dist.get_world_size()]:
        if sha256_file(path / name) != sha256:
            return str(name)
    return ""
