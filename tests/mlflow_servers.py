"""A real MLflow server on a free port of loopback, for tests that kill it, stop it and start it again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class MlflowServer:
    """Keeps its address, its database and its artifacts, however often it is started.

    Args:
        folder: made; holds all of it.
        database: a SQLite file to begin with a copy of, since making one takes seconds.
    """

    def __init__(self, folder: Path, database: Path | None = None) -> None:
        folder.mkdir()
        if database is not None:
            shutil.copy(database, folder / "mlflow.db")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        stores = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        stores += ["--artifacts-destination", f"{self.folder}/artifacts"]
        address = ["--host", "127.0.0.1", "--port", str(self._port)]
        command = [sys.executable, "-m", "mlflow", "server", *address, *stores, "--workers", "1"]
        # Without its job runners, which are eight more processes.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                return
            time.sleep(0.2)
        pytest.fail((self.folder / "log").read_text())

    def kill(self) -> None:
        """Nobody listens on its port any more."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def stop(self) -> None:
        """It takes connections (the kernel does), and never answers."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """It answers again, also what it was asked in between."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


@contextmanager
def mlflow_server(folder: Path, database: Path | None = None) -> Iterator[MlflowServer]:
    """A server that runs, and does not outlive the block."""
    server = MlflowServer(folder, database)
    try:
        server.start()
        yield server
    finally:
        server.kill()
