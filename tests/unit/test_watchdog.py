"""The watchdog, on real processes that stop, hang and die."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.heartbeat import within
from pretrain.watchdog import Watchdog, hangs

ROOT = Path(__file__).resolve().parents[2]


def goes_on(dog: Watchdog) -> None:
    """Slow steps, together longer than the watchdog waits for one."""
    for step in range(15):
        dog.beat(step)
        time.sleep(0.2)


def stops(dog: Watchdog) -> None:
    dog.beat(12)
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


def holds_the_interpreter(dog: Watchdog) -> None:
    """By waiting in C for a lock that is taken already; no signal wakes it."""
    dog.beat(12)
    lock, library = ctypes.create_string_buffer(256), ctypes.PyDLL(None)  # of zeros: a lock that is free
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)


def waits_for_itself(dog: Watchdog) -> None:
    dog.beat(12)
    lock = threading.Lock()
    with lock:
        lock.acquire()


def hangs_on_another_thread(dog: Watchdog) -> None:
    """As with a loader's thread that is stuck."""
    dog.beat(12)
    thread = threading.Thread(target=holds_the_interpreter, args=(dog,))
    thread.start()
    thread.join()


def never_begins(dog: Watchdog) -> None:
    time.sleep(3)


def is_asked_to_stop(dog: Watchdog) -> None:
    """A request that goes to all processes of the group is for the rank to follow."""
    requests = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    for number in requests:
        signal.signal(number, lambda *_: None)
        os.killpg(0, number)
    stops(dog)


def loses_its_watchdog(dog: Watchdog) -> None:
    dog.beat(1)
    watchdog = children(os.getpid())[0]
    os.kill(watchdog, signal.SIGKILL)
    os.waitid(os.P_PID, watchdog, os.WEXITED | os.WNOWAIT)
    dog.beat(2)


def loses_its_folder(dog: Watchdog) -> None:
    shutil.rmtree(sys.argv[2])
    stops(dog)


def waits(dog: Watchdog) -> None:
    dog.beat(1)
    os.fork()  # somebody else, who keeps the rank's files open
    time.sleep(600)


def rank(kind: str, folder: str, seconds: str) -> None:
    """What a rank does, in a process of its own."""
    with Watchdog(Path(folder), 1, float(seconds)) as dog:
        globals()[kind](dog)
    print("done")


def start(kind: Callable[[Watchdog], None], folder: Path, seconds: float = 0.5) -> "subprocess.Popen[str]":
    code = "import sys; from tests.unit.test_watchdog import rank; rank(*sys.argv[1:])"
    command = [sys.executable, "-c", code, kind.__name__, str(folder), str(seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def exists(pid: int) -> bool:
    return state(pid) != "Z"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "words", "frames"),
    [
        (stops, "(stopped by a signal), in stops (test_watchdog.py:", ["in stops"]),
        (holds_the_interpreter, "step 12, in holds_the_interpreter (test_watchdog.py:", ["in holds_the_interpreter"]),
        (waits_for_itself, "step 12, in waits_for_itself (test_watchdog.py:", ["in waits_for_itself", "in rank"]),
        (hangs_on_another_thread, "(threading.py:", ["in holds_the_interpreter", "in hangs_on_another_thread"]),
        (is_asked_to_stop, "in stops (test_watchdog.py:", ["in is_asked_to_stop"]),
    ],
)
def test_a_rank_without_progress_is_ended_with_its_stacks(
    kind: Callable[[Watchdog], None], words: str, frames: list[str], tmp_path: Path
) -> None:
    process = start(kind, tmp_path)
    assert process.communicate(timeout=300)[0] == ""  # the pipe ends, so nobody holds it any more
    assert process.returncode == -signal.SIGKILL
    (message,) = hangs(tmp_path)
    stacks = tmp_path / "stacks" / "rank-00001-0.txt"
    assert message.startswith("rank 1 on ")
    assert "made no progress for 0.5 s after step 12" in message
    assert words in message
    assert message.endswith(f"stacks in {stacks}")
    assert all(frame in stacks.read_text() for frame in frames)


def test_every_hang_has_its_own_record(tmp_path: Path) -> None:
    for _ in range(2):
        start(stops, tmp_path).communicate(timeout=300)
    assert [message.rpartition("/")[2] for message in hangs(tmp_path)] == ["rank-00001-0.txt", "rank-00001-1.txt"]
    with (tmp_path / "hangs.jsonl").open("a") as file:
        file.write('{"message": "cut sh')
    assert len(hangs(tmp_path)) == 2
    assert json.loads((tmp_path / "hangs.jsonl").read_text().splitlines()[0])["step"] == 12
    assert hangs(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("kind", [goes_on, never_begins, loses_its_watchdog])
def test_a_rank_that_gets_on_is_left_alone(kind: Callable[[Watchdog], None], tmp_path: Path) -> None:
    process = start(kind, tmp_path, seconds=2)
    assert process.communicate(timeout=300)[0] == "done\n"
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_rank_is_ended_though_its_folder_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    process = start(loses_its_folder, folder)
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert not folder.exists()


def test_a_file_server_that_does_not_answer_saves_no_rank(tmp_path: Path) -> None:
    pid = tmp_path / "pid"

    def write() -> None:
        pid.write_text(str(os.getpid()))
        time.sleep(600)

    within(1, write)
    wait_for(lambda: not exists(int(pid.read_text())))


def test_a_watchdog_is_small_and_does_not_outlive_its_rank(tmp_path: Path) -> None:
    process = start(waits, tmp_path, seconds=600)
    wait_for(lambda: len(children(process.pid)) == 2)
    watchdog, other = children(process.pid)
    wait_for(lambda: "heartbeat" in Path(f"/proc/{watchdog}/cmdline").read_text())
    time.sleep(0.5)
    status = Path(f"/proc/{watchdog}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < 20_000  # kB
    process.kill()
    process.wait()
    wait_for(lambda: not exists(watchdog))
    assert exists(other)
    os.kill(other, signal.SIGKILL)


@pytest.mark.slow
def test_time_in_which_the_watchdog_was_suspended_too_does_not_count(tmp_path: Path) -> None:
    process = start(waits, tmp_path, seconds=2)
    wait_for(lambda: len(children(process.pid)) == 2)
    watchdog = children(process.pid)[0]
    wait_for(lambda: "heartbeat" in Path(f"/proc/{watchdog}/cmdline").read_text())
    time.sleep(0.7)  # until it has seen the beat
    os.killpg(process.pid, signal.SIGSTOP)  # as a suspended machine or job
    time.sleep(2.5)
    os.kill(watchdog, signal.SIGCONT)
    time.sleep(1)
    assert state(process.pid) == "T"  # its watchdog has not let it go on, as it would to see its stacks
    wait_for(lambda: process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    assert len(hangs(tmp_path)) == 1


def test_a_beat_costs_next_to_nothing(tmp_path: Path) -> None:
    with Watchdog(tmp_path, 0, 600) as dog:
        before = time.thread_time()
        for step in range(10_000):
            dog.beat(step)
        assert time.thread_time() - before < 0.5  # 50 us each; measured: below 1


GROUP = """
import os, signal, sys, time
from pathlib import Path
import torch.distributed as dist
from pretrain.watchdog import Watchdog

dist.init_process_group("gloo")
rank, folder = dist.get_rank(), Path(sys.argv[1])
with Watchdog(folder, rank, 10) as dog:
    for step in range(6):
        dist.barrier()
        dog.beat(step)
        if step == 3 and rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)  # one of its other threads may take the signal, a moment later
dist.barrier()
(folder / f"done-{rank}").touch()
"""


@pytest.mark.slow
def test_a_group_with_a_stopped_rank_starts_again(tmp_path: Path) -> None:
    """The collective itself would wait for half an hour."""
    (tmp_path / "group.py").write_text(GROUP)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", str(tmp_path / "group.py"), str(tmp_path)]
    # Or the ranks of the second start may find addresses of the first.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, timeout=900, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert all((tmp_path / f"done-{rank}").exists() for rank in (0, 1))
    told = [message for message in hangs(tmp_path) if message.startswith("rank 1 ")]
    assert len(told) == 1
    assert "10 s after step 3 (stopped by a signal)" in told[0]
