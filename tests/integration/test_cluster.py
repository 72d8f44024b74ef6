"""Builds on a Ray cluster that is there already, started as its users start one; and without one that answers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from data_pipeline import jobs
from data_pipeline.base.errors import PdepotError
from data_pipeline.base.remote import RemoteFolder
from data_pipeline.workers import ray_session
from tests.s3 import s3_server
from tests.small_jobs import remote_tree, small_job, tasks_in_this_process, tree
from tests.training import ROOT

URL = "s3://bucket/data/small"
ENVIRONMENT = {"RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "PYTHONPATH": str(ROOT)}
PATIENCE = 300.0

DRIVER = """
import sys
from functools import partial
from pathlib import Path
from data_pipeline import jobs
from tests.integration.test_cluster import wait_for
from tests.small_jobs import small_job
final, address, gate = sys.argv[1:]
jobs.run(small_job(final, partial(wait_for, Path(gate))), ray_address=address, max_in_flight=2)
"""


def wait_for(gate: Path, _: Path, task: object) -> None:
    """In a worker: from the third shard on, nothing goes on before the gate is open."""
    import ray  # not above: what is set by `ray_session` counts only before the first import

    with (gate.parent / "log").open("a") as log:
        log.write(f"{ray.get_runtime_context().get_node_id()} {task.name}\n")
    while task.shard >= 2 and not gate.exists():
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def node(*options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`ray start`, in a process that takes its node with it when it ends."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", "--num-cpus=1"),
        *("--node-ip-address=127.0.0.1", f"--object-store-memory={100 * 2**20}", *options),
    ]
    environment = {**os.environ, **ENVIRONMENT, "RAY_AUTH_MODE": "token"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def cluster() -> Iterator[str]:
    """The address of a cluster of one node."""
    port = free_port()
    with node(
        "--head", f"--port={port}", f"--ray-client-server-port={free_port()}", "--include-dashboard=false"
    ) as head:
        wait(lambda: answers(port), head)
        yield f"127.0.0.1:{port}"


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for the condition while `process` lives."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def driver(final: Path | str, address: str, gate: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", DRIVER, str(final), address, str(gate)]
    process = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, cwd=gate.parent)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with tasks_in_this_process():
        return tree(jobs.run(small_job(tmp_path_factory.mktemp("clean") / "small")))


@pytest.mark.slow
def test_a_driver_killed_on_a_cluster_by_address_is_continued_by_the_next(
    clean: dict[str, str], tmp_path: Path
) -> None:
    gate, receipts = tmp_path / "gate", RemoteFolder(f"{URL}/.partial/receipts")
    with s3_server(), cluster() as address:
        with driver(URL, address, gate) as first:
            wait(lambda: len(receipts.sizes()) == 2, first)
            first.send_signal(signal.SIGKILL)
        assert RemoteFolder(URL).size("manifest.json") is None
        gate.touch()
        (tmp_path / "log").unlink()
        with driver(URL, address, gate) as second:
            assert second.wait(PATIENCE) == 0
        assert len((tmp_path / "log").read_text().splitlines()) == 4
        assert remote_tree(URL) == clean


@pytest.mark.slow
def test_a_node_that_dies_in_mid_task_changes_nothing(clean: dict[str, str], tmp_path: Path) -> None:
    gate, log = tmp_path / "gate", tmp_path / "log"
    with ExitStack() as stack:
        address = stack.enter_context(cluster())
        other = stack.enter_context(node(f"--address={address}"))
        build = stack.enter_context(driver(tmp_path / "small", address, gate))
        wait(lambda: log.exists() and len({line.split()[0] for line in log.read_text().splitlines()[2:]}) == 2, build)
        for process in psutil.Process(other.pid).children(recursive=True):
            if process.name() == "raylet":
                process.kill()
        gate.touch()
        assert build.wait(PATIENCE) == 0
    assert tree(tmp_path / "small") == clean


def test_an_address_that_nobody_answers_is_refused_at_once(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(PdepotError, match=rf"(?s)no Ray cluster answers.*--ray-address.*{address}.*ray status"):
        jobs.run(small_job(tmp_path / "small"), ray_address=address)


def test_a_local_session_that_does_not_come_up_is_tried_twice_then_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def times_out(**_: object) -> None:
        tries.append(1)
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr("ray.init", times_out)
    message = r"(?s)could not be started.*timed out during startup\.\n.*too busy"
    with pytest.raises(PdepotError, match=message), ray_session():
        pass
    assert len(tries) == 2
