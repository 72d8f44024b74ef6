"""A machine's place among those that train one run: how many there are, which it is, and where they meet."""

import fcntl
import os
import socket
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from data_pipeline.base.errors import ConfigError

PORT = 29400
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


@dataclass(frozen=True)
class Place:
    """One node of a group. The head is node 0; its agent holds the store through which all agents meet."""

    nodes: int
    node_rank: int
    head: str
    """The head's name or address, as the other nodes reach it."""
    port: int = PORT
    job: str = "pdepot"
    """What tells this group's meeting from another's."""


def find_place(
    nodes: int | None = None,
    node_rank: int | None = None,
    head: str | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Place:
    """This machine's place: as given, else by PDEPOT_NODES, PDEPOT_NODE_RANK, PDEPOT_HEAD, else by Slurm's variables.

    Args:
        nodes: number of machines.
        node_rank: this one's number, from 0.
        head: HOST or HOST:PORT of number 0.
        environment: where to look for what is not given.

    Raises:
        ConfigError: something is said nowhere, is no number, or does not fit the rest; names the flag and variable.
    """
    slurm = "SLURM_JOB_ID" in environment
    found_nodes = _number("nodes", "PDEPOT_NODES", "SLURM_NNODES", nodes, environment)
    rank = _number("node-rank", "PDEPOT_NODE_RANK", "SLURM_NODEID", node_rank, environment)
    if found_nodes < 1 or not 0 <= rank < found_nodes:
        raise ConfigError(
            "no such node", key="--node-rank", found=f"{rank} of {found_nodes}", expected="0 to one below --nodes"
        )
    head = head or environment.get("PDEPOT_HEAD") or (_slurm_head(environment) if slurm else None)
    if not head:
        raise ConfigError(
            "where do the nodes meet?", key="--head", expected="HOST or HOST:PORT of node 0, here or in PDEPOT_HEAD"
        )
    job = environment.get("SLURM_JOB_ID", "pdepot")
    # Below the ports that the kernel hands out; jobs that share a node must not meet each other.
    default = 20000 + int(job) % 10000 if slurm else PORT
    host, port = split_address(head, default)
    return Place(found_nodes, rank, host, port, job)


def split_address(address: str, port: int = PORT) -> tuple[str, int]:
    """HOST, HOST:PORT or [IPv6]:PORT as host and port.

    Raises:
        ConfigError: the port is no number from 1 to 65535.
    """
    ipv6 = address.count(":") > 1
    if ":" not in address or (ipv6 and not address.startswith("[")) or address.endswith("]"):
        return address.strip("[]"), port
    host, _, number = address.rpartition(":")
    if not number.isdecimal() or not 0 < int(number) < 65536:
        raise ConfigError("no such port", key="--head", found=address, expected="HOST:PORT, for example node0:29400")
    return host.strip("[]"), int(number)


def own_address(place: Place) -> str:
    """The address of this machine from which packets to the head set out.

    Raises:
        ConfigError: the head's name is not known here, or there is no way to it.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(place.head, place.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # of a datagram socket: chooses the way and sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"the head cannot be reached from {socket.gethostname()}: {error}", key="--head", found=place.head,
            expected="a name or address of node 0 that every node knows",
        ) from error  # fmt: skip


def interface_of(address: str) -> str | None:
    """The network interface with an IPv4 address; None where there is none, or the system does not say."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                entry = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address
                continue
            if socket.inet_ntoa(entry[20:24]) == address:
                return name
    return None


def _number(flag: str, variable: str, of_slurm: str, given: int | None, environment: Mapping[str, str]) -> int:
    if given is not None:
        return given
    name = variable if variable in environment else of_slurm
    text = environment.get(name)
    if text is None:
        raise ConfigError("this machine's place in the group is not known", key=f"--{flag}",
                          expected=f"a number, here or in {variable}; Slurm sets {of_slurm}")  # fmt: skip
    if not text.isdecimal():
        raise ConfigError("not a number", key=name, found=text, expected="a number")
    return int(text)


def _slurm_head(environment: Mapping[str, str]) -> str:
    """The first host of the allocation; Slurm writes node[1-4,7], and `scontrol` knows how to read it."""
    hosts = environment.get("SLURM_JOB_NODELIST", "")
    found = subprocess.run(["scontrol", "show", "hostnames", hosts], capture_output=True, text=True, check=False)
    if found.returncode or not found.stdout.split():
        raise ConfigError("Slurm does not say which nodes a job has", key="SLURM_JOB_NODELIST", found=hosts,
                          expected=f"names that `scontrol show hostnames` reads: {found.stderr.strip()}")  # fmt: skip
    return found.stdout.split()[0]
