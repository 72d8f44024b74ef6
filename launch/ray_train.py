"""A run's ranks as workers of Ray Train: the loop, the folder and the checkpoints are those of torchrun.

Ray places the ranks, joins them into a process group, and starts the group again when a worker or a node dies. Of
checkpoints it is told nothing: the run's folder, which every node must reach, is the truth. So a run that was begun
here may go on under torchrun, and the other way round.
"""

import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from data_pipeline.base.cpus import usable_cpus
from data_pipeline.base.errors import ConfigError, PdepotError
from data_pipeline.base.files import remove_tree
from data_pipeline.workers import ray_session
from pretrain.comparison import read_run
from pretrain.run import failed_for_good, read_status, write_status
from pretrain.tracking import without_password

_SECONDS_FOR_NODES = 600.0  # for the nodes of a cluster that is still coming up
_SECONDS_FOR_WORKERS = 600  # for a group to start: Ray's own minute is short for imports from a network disk


def run(folder: Path, ranks: int, uri: str, *, address: str | None, use_gpu: bool, max_failures: int) -> None:
    """Train the run in `folder` on Ray; how it ended stands in its `status.json`.

    SIGTERM, SIGINT and SIGUSR1 let the ranks finish the step, save and end. A second one ends this process, and with
    it the ranks, at once; so does the kernel when they take longer than `training.stop_timeout`.

    Args:
        folder: a folder laid out by `pretrain.run.prepare`, under the same path on every node.
        ranks: number of training processes.
        uri: MLflow's, without a password.
        address: HOST:PORT of a cluster, whose nodes have this environment; None for a session on this machine.
        use_gpu: a GPU for each rank; otherwise a CPU.
        max_failures: how often the group is started again after a worker or a node died.

    Raises:
        ConfigError: the tracking URI holds a password.
        PdepotError: no cluster answers, or it has too few GPUs or CPUs.
    """
    folder = folder.resolve()
    _check_uri(uri)
    write_status(folder, "running")
    with ray_session(address):
        from ray.train import TrainingFailedError

        share = _resources(ranks, use_gpu=use_gpu, wait=_SECONDS_FOR_NODES if address else 0.0)
        training = read_run(folder).training
        try:
            with _scratch(folder) as storage, _asking_to_stop(folder, training.stop_timeout):
                _fit(_trainer(folder, ranks, uri, share, storage, max_failures, training.collective_timeout))
        except TrainingFailedError as error:
            _note_failure(folder, error, max_failures)


def _note_failure(folder: Path, error: Exception, restarts: int) -> None:
    """Record what Ray knows better than the ranks: those that died said nothing, and the others saw them vanish."""
    from ray.exceptions import RayActorError

    failures = {  # that a worker does not answer wraps that it has died
        rank: getattr(why, "health_check_failure", why) for rank, why in getattr(error, "worker_failures", {}).items()
    }
    dead = [rank for rank, why in failures.items() if isinstance(why, RayActorError)]
    if dead and not failed_for_good(folder):
        who = f"rank {', '.join(map(str, sorted(dead)))} died"
        write_status(folder, "failed", f"{who}, after {restarts} restarts; most often memory ran out")
    elif read_status(folder)[0] == "running":  # no rank has come so far as to say anything
        write_status(folder, "failed", str(error))


def _check_uri(uri: str) -> None:
    if without_password(uri) != uri:
        raise ConfigError(
            "a password in the tracking URI would travel through Ray, which shows what it is given",
            key="MLFLOW_TRACKING_URI", found=without_password(uri), expected="a URI without a password",
            remedy="give the nodes MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in their own environment",
        )  # fmt: skip


def _resources(ranks: int, *, use_gpu: bool, wait: float) -> dict[str, float]:
    """What Ray shall set aside for a rank. On this machine's CPUs several ranks may share one.

    Raises:
        PdepotError: there is not enough, and there has not been for `wait` seconds.
    """
    import ray

    kind, deadline = "GPU" if use_gpu else "CPU", time.monotonic() + wait
    while (found := ray.cluster_resources().get(kind, 0.0)) < ranks and time.monotonic() < deadline:
        time.sleep(1.0)
    if found < ranks and (use_gpu or wait):
        raise PdepotError(
            f"the Ray cluster has too few {kind}s for the ranks", key="--nodes, --gpus-per-node",
            found=f"{found:g} {kind}s on {sum(node['Alive'] for node in ray.nodes())} nodes", expected=f"{ranks}",
            remedy="add nodes to the cluster (`ray status` shows them), or ask for fewer ranks",
        )  # fmt: skip
    return {kind: min(1.0, found / ranks)}


def _trainer(
    folder: Path, ranks: int, uri: str, share: dict[str, float], storage: Path, max_failures: int, timeout: float
) -> Any:
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_SECONDS_FOR_WORKERS))
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths mean the same as under torchrun
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        train_rank,
        train_loop_config={"folder": str(folder), "uri": uri, "threads": os.environ.get("OMP_NUM_THREADS")},
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu="GPU" in share, resources_per_worker=share),
        torch_config=TorchConfig(backend="nccl" if "GPU" in share else "gloo", timeout_s=math.ceil(timeout)),
        run_config=RunConfig(storage_path=str(storage), failure_config=FailureConfig(max_failures=max_failures)),
    )


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder for Ray's own notes on the run, which would go to the home folder; nothing needs them later."""
    storage = folder / ".ray"
    remove_tree(storage)
    storage.mkdir()
    try:
        yield storage
    finally:
        remove_tree(storage)


def _fit(trainer: Any) -> None:
    # Off the main thread, where Ray would take SIGINT for itself and drop the run without saving it.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(trainer.fit).result()


def _stop_file(folder: Path) -> Path:
    return folder / ".stop"


@contextmanager
def _asking_to_stop(folder: Path, seconds: float) -> Iterator[None]:
    """Pass a request to stop on to the ranks, wherever they are, as a file in the run's folder."""
    file = _stop_file(folder)

    def handle(number: int, _: FrameType | None) -> None:
        if file.exists():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        file.touch()

    file.unlink(missing_ok=True)
    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in previous.items():
            signal.signal(number, handler)
        file.unlink(missing_ok=True)


def train_rank(config: dict[str, Any]) -> None:
    """One rank, in a worker of Ray: `folder` and `uri` as for `run`; `threads` as text, None for a share of the CPUs.

    Ray starts the group again after any error. Those of pdepot's own no restart would mend: they are recorded, and the
    next group ends at once.
    """
    folder = Path(config["folder"])
    if read_status(folder)[0] in ("finished", "preempted") or failed_for_good(folder):
        return  # an earlier group has come to an end, and Ray has not seen all of its workers return
    _prepare_process(config["threads"])
    from pretrain.train import run_rank

    first = os.environ["RANK"] == "0"
    run_rank(folder, config["uri"], lambda: first and _is_there(_stop_file(folder)))


def _is_there(file: Path) -> bool:
    try:
        return file.exists()
    except OSError:  # a rank must not raise alone; what ails the folder shows when all of them save
        return False


def _prepare_process(threads: str | None) -> None:
    """What torchrun's ranks get by their environment, on whichever node this is."""
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    torch.set_num_threads(int(threads or max(1, usable_cpus() // int(os.environ["LOCAL_WORLD_SIZE"]))))
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if (Path(sys.prefix) / "torch_extensions").is_dir():
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
