"""Tasks on Ray: a bounded number in flight, transient errors retried, a permanent one surfaced once."""

import logging
import os
import secrets
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.base.cpus import usable_cpus
from data_pipeline.base.errors import PdepotError
from data_pipeline.base.files import disk_error

_RETRIES = 3
_CONNECT_SECONDS = 10.0
_CANCEL_SECONDS = 10.0
_OBJECT_STORE_BYTES = 100 * 2**20  # paths go in and receipts come out, so the smallest store is ample

_KEPT: ContextVar[bool] = ContextVar("kept", default=False)

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@contextmanager
def ray_session(address: str | None = None) -> Iterator[None]:
    """Ray for the time of the block: the session that is there already, the cluster at `address`, or a local one.

    Only a session that was started here is shut down. A local one listens on the loopback device alone.

    Raises:
        PdepotError: nothing answers at `address`; a local session does not come up.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is not None and _has_token():
        # `ray start` asks for the token where there is one; a driver presents it only if told to, before the import.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    if ray.is_initialized():
        yield
        return
    _start(address)
    try:
        yield
    finally:
        if not _KEPT.get():
            ray.shutdown()


@contextmanager
def keep_ray() -> Iterator[None]:
    """Let the first session that is started in the block serve all others in it; nothing starts if none is needed."""
    token = _KEPT.set(True)
    try:
        yield
    finally:
        _KEPT.reset(token)
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()


def _start(address: str | None) -> None:
    import ray

    # A worker must import this very package, also from a source checkout and whatever the current folder is.
    checkout = str(Path(__file__).resolve().parents[1])
    search = os.pathsep.join(part for part in (checkout, os.environ.get("PYTHONPATH")) if part)
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": {"PYTHONPATH": search}},
    }
    if address is not None:
        _check_answers(address)
        try:
            ray.init(address=address, **common)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise _no_cluster(address, error) from error
        return
    # Ray guards a local session with a token, and writes one to the home folder when it is given none.
    # A token of our own keeps other users of the machine out and the home folder as it was.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    for last in (False, True):
        try:
            ray.init(
                address="local",
                num_cpus=usable_cpus(),
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                _node_ip_address="127.0.0.1",
                **common,
            )
        except Exception as error:  # a node that does not come up in time raises no class of its own
            ray.shutdown()
            if last:
                raise PdepotError(
                    "Ray could not be started on this machine, and again at a second try",
                    found=str(error).strip().partition("\n")[0],
                    remedy="most often the machine is too busy or out of memory: run the same command again later",
                ) from error
        else:
            return


def _has_token() -> bool:
    named = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return named or (Path.home() / ".ray/auth_token").exists()


def _check_answers(address: str) -> None:
    """Raise PdepotError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():  # "auto", say
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> PdepotError:
    return PdepotError(
        "no Ray cluster answers at this address",
        key="--ray-address",
        found=f"{address}: {str(error).strip().partition(chr(10))[0]}",
        expected="HOST:PORT of a running `ray start --head --port=PORT`, of the same Ray version",
        remedy="check it with `ray status --address HOST:PORT`, and RAY_AUTH_TOKEN if it has a token; or leave it out "
        "to use this machine alone",
    )


@dataclass(frozen=True)
class Needs:
    """What a task takes of the node it runs on, beside one CPU; limits how many run at once there.

    Attributes:
        memory: bytes that it holds at its peak.
        gpus: GPUs that it has to itself.
    """

    memory: int
    gpus: int = 0


def run_tasks(
    function: Callable[[Argument], Result],
    arguments: Sequence[Argument],
    needs: Needs,
    *,
    max_in_flight: int | None = None,
) -> Generator[Result, None, None]:
    """Results of `function` for every argument, as they come; closing the generator cancels what is left.

    Needs a Ray session.

    Args:
        function: idempotent; importable by the workers.
        arguments: one a task; small, as they travel.
        needs: what one task takes.
        max_in_flight: tasks submitted and not finished; by default two for each CPU.

    Raises:
        PdepotError: that of a task, as the task raised it; a worker that died again and again; no GPU where tasks
            need one.
    """
    import ray

    if needs.gpus and ray.cluster_resources().get("GPU", 0) < needs.gpus:
        raise PdepotError(
            "no GPU for tasks that need one",
            key="generate.device",
            found=f"{ray.cluster_resources().get('GPU', 0):g} GPUs in the Ray session",
            expected=f"at least {needs.gpus} on a node",
            remedy="generate.device=cpu, or a cluster with GPUs (--ray-address)",
        )
    limit = max_in_flight or 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    fitting = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("GPU", 0) >= needs.gpus]
    largest_node = max((int(node.get("memory", needs.memory)) for node in fitting), default=needs.memory)
    remote = ray.remote(
        num_cpus=1,
        num_gpus=needs.gpus,
        memory=min(needs.memory, largest_node),  # a task that asks for more than any such node has would wait for ever
        max_retries=_RETRIES,
        retry_exceptions=[OSError],
    )(_call)
    waiting = iter(arguments)
    running: list[Any] = []
    try:
        while True:
            while len(running) < limit and (argument := next(waiting, None)) is not None:
                running.append(remote.remote(function, argument))
            if not running:
                return
            done, running = ray.wait(running, num_returns=1)
            yield _result(done[0])
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if running:  # a task that still writes would get into the way of the next build
            ray.wait(running, num_returns=len(running), timeout=_CANCEL_SECONDS)


def _call(function: Callable[[Argument], Result], argument: Argument) -> Result:
    return function(argument)  # Ray takes plain functions only; this lets any callable travel


def _result(reference: Any) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, PdepotError):
            raise error.cause from None
        if isinstance(error.cause, OSError):
            raise disk_error(error.cause) from error
        raise
    except RayError as error:
        raise PdepotError(
            f"a worker process died, and again in each of {_RETRIES} retries",
            found=str(error).strip().partition("\n")[0],
            remedy="most often memory ran out: lower trajectories_per_shard and run again",
        ) from error
