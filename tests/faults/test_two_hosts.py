"""Training across two hosts with networks of their own, and what may happen to one of them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.ranks import run_ranks
from pretrain.run import read_status, write_status
from tests.hosts import Host, two_hosts
from tests.training import prepare

FINAL = "final/model.safetensors"
LONG: dict[str, Any] = {"ranks": 2, "steps": 60}  # enough that the fault comes before the end

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A host of one rank would use more threads than two ranks of one host do, and sum in another order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, Any], uri: str, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights that two ranks on one host come to."""
    folder = prepare(data, tmp_path_factory.mktemp("undisturbed"), **LONG)
    run_ranks(folder, 2, uri)
    return (folder / FINAL).read_bytes()


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    with two_hosts() as pair:
        yield pair


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def processes(host: Host, module: str) -> list[int]:
    """What runs a module on a host."""
    found = []
    for pid in host.processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if "-m" in words and words[words.index("-m") + 1] == module:
            found.append(pid)
    return found


def train_across(
    hosts: tuple[Host, Host], folder: Path, uri: str, fault: Callable[[tuple[Host, Host], Path], None]
) -> tuple[list[int], bool]:
    """Start a rank on each host, and do harm after the first checkpoint.

    Returns:
        How the two hosts' processes ended, and whether all ranks were started again.
    """
    write_status(folder, "running")
    words = ["-m", "launch.node", str(folder), uri, "--ranks-per-node", "1"]
    words += ["--nodes", "2", "--head", hosts[0].address]
    nodes = [host.start([*words, "--node-rank", str(i)]) for i, host in enumerate(hosts)]
    wait_until(lambda: any((folder / "checkpoints").glob("step-*")), "no checkpoint")
    before = [processes(host, "pretrain.train") for host in hosts]
    fault(hosts, folder)
    again: set[int] = set()

    def over() -> bool:
        again.update(i for i in range(2) if set(processes(hosts[i], "pretrain.train")) - set(before[i]))
        return all(node.poll() is not None for node in nodes)

    wait_until(over, "the run does not end")
    return [node.returncode for node in nodes], again == {0, 1}


def cut_off(hosts: tuple[Host, Host], folder: Path) -> None:
    """Pull the second host's cable until the ranks have given each other up."""
    hosts[1].plug(in_=False)
    wait_until(lambda: read_status(folder)[0] == "failed", "a rank waits for ever")
    assert "imed out" in read_status(folder)[1]
    hosts[1].plug(in_=True)


def kill(module: str, host: int) -> Callable[[tuple[Host, Host], Path], None]:
    """Kill -9 what runs `module` on a host."""

    def fault(hosts: tuple[Host, Host], _: Path) -> None:
        for pid in processes(hosts[host], module):
            os.kill(pid, signal.SIGKILL)

    return fault


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(cut_off, id="cable pulled"),
        pytest.param(kill("pretrain.train", 1), id="rank killed"),
        pytest.param(kill("launch.agent", 1), id="torchrun killed"),
        pytest.param(kill("launch.agent", 0), id="torchrun of the head killed"),
    ],
)
def test_a_fault_on_one_of_two_hosts_does_not_change_the_weights(
    hosts: tuple[Host, Host],
    data: dict[str, Any],
    uri: str,
    undisturbed: bytes,
    tmp_path: Path,
    fault: Callable[[tuple[Host, Host], Path], None],
) -> None:
    folder = prepare(data, tmp_path, **LONG, collective_timeout=15)
    ended, restarted = train_across(hosts, folder, uri, fault)
    logs = "\n".join(log.read_text(errors="replace")[-3000:] for log in folder.glob("torchrun*.log"))
    assert (ended, read_status(folder)[0]) == ([0, 0], "finished"), logs
    assert restarted  # or the fault did no harm
    assert (folder / FINAL).read_bytes() == undisturbed
