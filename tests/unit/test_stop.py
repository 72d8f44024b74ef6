"""Requests to stop, on real processes and with real signals."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pretrain.stop import StopRequest

ROOT = Path(__file__).resolve().parents[2]
REQUESTS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def trains(stop: StopRequest) -> None:
    while not stop():
        time.sleep(0.01)
    print("saved", flush=True)


def takes_long_to_save(stop: StopRequest) -> None:
    trains(stop)
    time.sleep(600)


def holds_the_interpreter(stop: StopRequest) -> None:
    """After the request: nothing of Python's runs any more."""
    trains(stop)
    lock, library = ctypes.create_string_buffer(256), ctypes.PyDLL(None)
    library.pthread_mutex_lock(lock)
    library.pthread_mutex_lock(lock)


def is_asked_twice_before_it_looks(stop: StopRequest) -> None:
    """As by a launcher and a scheduler at the same moment."""
    signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    for number in REQUESTS:
        os.kill(os.getpid(), number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
    trains(stop)


def process(kind: str, seconds: str) -> None:
    """What a rank does, in a process of its own."""
    stop = StopRequest(float(seconds), one_request=3.0)
    assert not stop()
    print("ready", flush=True)
    globals()[kind](stop)


def start(kind: str, seconds: float) -> "subprocess.Popen[str]":
    code = "import sys; from tests.unit.test_stop import process; process(*sys.argv[1:])"
    command = [sys.executable, "-c", code, kind, str(seconds)]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert started.stdout
    assert started.stdout.readline() == "ready\n"
    return started


@pytest.mark.parametrize("number", REQUESTS)
def test_a_request_lets_the_process_finish(number: signal.Signals) -> None:
    started = start("trains", 600)
    started.send_signal(number)
    assert started.communicate(timeout=300)[0] == "saved\n"
    assert started.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_later_request_ends_it_at_once(number: signal.Signals) -> None:
    started = start("takes_long_to_save", 600)
    started.send_signal(signal.SIGUSR1)
    assert started.stdout
    assert started.stdout.readline() == "saved\n"
    started.send_signal(number)  # by Slurm and by torchrun: still the first one
    time.sleep(4)
    assert started.poll() is None
    started.send_signal(number)
    assert started.wait(timeout=300) == -number


@pytest.mark.parametrize("kind", ["takes_long_to_save", "holds_the_interpreter"])
def test_so_does_the_deadline(kind: str) -> None:
    started = start(kind, 0.5)
    started.terminate()
    assert started.communicate(timeout=300)[0] == "saved\n"
    assert started.returncode == -signal.SIGALRM


def test_requests_at_the_same_moment_are_one() -> None:
    started = start("is_asked_twice_before_it_looks", 600)
    assert started.stdout
    assert started.stdout.read() == "saved\n"  # which may have come with "ready"
    assert started.wait() == 0


def test_off_the_main_thread_it_leaves_signals_alone() -> None:
    before = [signal.getsignal(number) for number in REQUESTS]
    made: list[StopRequest] = []
    thread = threading.Thread(target=lambda: made.append(StopRequest(600)))
    thread.start()
    thread.join()
    assert not made[0]()
    assert [signal.getsignal(number) for number in REQUESTS] == before
