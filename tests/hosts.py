"""Two hosts on one machine: network namespaces with addresses of their own, joined by a cable that can be pulled."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Host:
    """A network namespace; it shares the disk, and nothing of the network, with the others."""

    name: str
    address: str

    def start(self, words: Sequence[str]) -> "subprocess.Popen[bytes]":
        """Python on this host, in a session of its own."""
        command = ["ip", "netns", "exec", self.name, sys.executable, *words]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    def plug(self, *, in_: bool) -> None:
        """Put the cable in, or pull it."""
        _ip("-n", self.name, "link", "set", "cable", "up" if in_ else "down")

    def processes(self) -> list[int]:
        """Everything that runs on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, each with a second network that leads nowhere. Whatever runs on them at the end is killed.

    The test is skipped where this user may not make them.
    """
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and `ip`")
    hosts = [Host(f"pdepot{os.getpid()}-{i}", f"198.51.100.{i + 1}") for i in range(2)]
    try:
        try:
            for host in hosts:
                _ip("netns", "add", host.name)
            _ip("link", "add", "cable", "netns", hosts[0].name, "type", "veth", "peer", "name", "cable", "netns",
                hosts[1].name)  # fmt: skip
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        for host in hosts:
            # Named to come first in any list, with the same address on both: whoever takes it finds nobody.
            _ip("-n", host.name, "link", "add", "a-decoy", "type", "bridge")
            _ip("-n", host.name, "address", "add", "203.0.113.1/24", "dev", "a-decoy")
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "cable")
            for link in ("lo", "a-decoy", "cable"):
                _ip("-n", host.name, "link", "set", link, "up")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            if Path("/run/netns", host.name).exists():
                for pid in host.processes():
                    try:
                        os.kill(pid, 9)
                    except ProcessLookupError:
                        continue
                _ip("netns", "delete", host.name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout
