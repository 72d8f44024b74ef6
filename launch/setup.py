"""Set up this checkout: find or make a Python that can run pdepot, and print its path.

`python3 launch/setup.py [--extras dev]` writes what it does to standard error and one line, the Python to use, to
standard output. An environment that is active and has pdepot is used as it is. Otherwise `.venv` in the checkout is
made, or brought up to date: torch first, then the rest at the versions of constraints.txt, then a check that it all
imports, then DeepSpeed's communication op for CPU. A stamp in the environment says that all this was done, so a second
run only reads it. A lock makes runs at the same time wait for one another, and whatever a killed run left half-done is
completed by the next.

Only the standard library is imported, because nothing is installed yet. This file must load on Python 3.8 and
newer, if only to look for a Python that will do.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = [3, 11]
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
IMPORTS = ("torch", "deepspeed", "ray", "mlflow", "webdataset", "zarr")
DEV_MODULES = (
    "pytest", "pytest_timeout", "hypothesis", "ruff", "mypy", "neuralop", "onnx", "onnxscript", "onnxruntime",
)  # fmt: skip
STAMP = "pdepot-setup.json"
COMMUNICATION_OP = Path("deepspeed_shm_comm", "deepspeed_shm_comm.so")

PROBE = """
import importlib.metadata, importlib.util, json, sys
print(json.dumps({
    "executable": sys.executable,
    "prefix": sys.prefix,
    "version": list(sys.version_info[:3]),
    "pdepot": any(True for _ in importlib.metadata.distributions(name="pdepot")),
    "missing": [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None],
}))
"""
DEV_REQUIREMENTS = """
import json, sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(json.dumps(tomllib.load(file)["project"]["optional-dependencies"]["dev"]))
"""
BUILD_COMMUNICATION_OP = """
from deepspeed.accelerator import get_accelerator
get_accelerator().create_op_builder("ShareMemCommBuilder").load(verbose=False)
"""


class SetupError(Exception):
    """The set-up cannot go on; the text names the problem and the remedy (PdepotError may not be importable yet)."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}\n  remedy: {remedy}")


def say(text: str) -> None:
    """One plain line of progress."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say what begins, and how long it took once it is done."""
    started = time.monotonic()
    say(f"{text} ...")
    yield
    say(f"{text}: done in {time.monotonic() - started:.0f} s")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file at `path`, waiting for another holder; the kernel frees it when the holder dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    # Children inherit the lock: a pip that outlives a killed set-up still keeps the next set-up out.
    os.set_inheritable(handle, True)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting: another set-up of this checkout is running (lock file {path})")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def run(command: list[str], *, quiet: bool = False, **environment: str) -> bool:
    """Run a command with its output on standard error; quiet: only if it fails. True when it succeeds."""
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else sys.stderr,
        stderr=subprocess.STDOUT if quiet else None,
        env={**os.environ, **environment},
        close_fds=False,  # see `exclusive`
        check=False,
    )
    if quiet and result.returncode != 0:
        print(result.stdout.decode(errors="replace"), file=sys.stderr, flush=True)
    return result.returncode == 0


def ask(python: str | Path, code: str, *arguments: str) -> Any:
    """What `code`, run by `python`, prints as JSON; None when it cannot run. Isolated, so that neither PYTHONPATH nor
    this folder (which holds pdepot's metadata after an editable install) passes for something installed.
    """
    command = [str(python), "-I", "-c", code, *arguments]
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
        )
        return json.loads(result.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def has_cuda() -> bool:
    """Whether the driver of an NVIDIA GPU answers."""
    try:
        result = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    except OSError:
        return False
    return result.returncode == 0 and b"GPU" in result.stdout


def torch_attempts(version: str, *, system: str, machine: str, cuda: bool) -> list[list[str]]:
    """pip's arguments for torch, to be tried in order.

    PyPI's wheel for Linux on x86-64 brings gigabytes of CUDA libraries, so a machine without CUDA asks for the CPU
    build first: from the indexes that pip is configured with, then from PyTorch's own.
    """
    plain = [f"torch=={version}"]
    if system == "Linux" and machine == "x86_64" and not cuda:
        cpu = f"torch=={version}+cpu"
        return [[cpu], [cpu, "--extra-index-url", CPU_INDEX], plain]
    return [plain]


def pinned(constraints: Path, name: str) -> str:
    """The version that a constraints file pins `name` to."""
    for line in constraints.read_text().splitlines():
        if line.startswith(f"{name}=="):
            return line.split("==")[1].split(";")[0].strip()
    raise SetupError(f"{constraints} does not pin {name}", f"restore the line {name}==VERSION (git checkout)")


def fingerprint(repository: Path, version: list[int]) -> str:
    """Hex SHA-256 of all that an environment depends on: what is wanted, the Python, and where the checkout is."""
    content = hashlib.sha256()
    for part in ("pyproject.toml", "constraints.txt"):
        content.update((repository / part).read_bytes() + b"\0")
    content.update(f"{version} {repository}".encode())
    return content.hexdigest()


def is_stamped(environment: Path, digest: str, extras: str, *, cuda: bool) -> bool:
    """Whether a finished set-up left its stamp: the same fingerprint, at least these extras, a torch for GPUs if these
    are wanted."""
    try:
        stamp = json.loads((environment / STAMP).read_text())
    except (OSError, ValueError):
        return False
    enough = extras in ("", stamp.get("extras")) and (stamp.get("cuda") or not cuda)
    return bool(enough and stamp.get("fingerprint") == digest)


def write_stamp(environment: Path, digest: str, extras: str, *, cuda: bool) -> None:
    """Record a finished set-up, in one step."""
    temporary = environment / f".{STAMP}.tmp"
    temporary.write_text(json.dumps({"fingerprint": digest, "extras": extras, "cuda": cuda}) + "\n")
    temporary.replace(environment / STAMP)


def active_python(environment: Path) -> str | None:
    """The Python of an active environment that has pdepot, unless it is the one that is managed here."""
    active = os.environ.get("VIRTUAL_ENV")
    for candidate in (active and f"{active}/bin/python", shutil.which("python"), shutil.which("python3")):
        found = ask(candidate, PROBE) if candidate else None
        if found and found["pdepot"] and Path(found["prefix"]).resolve() != environment:
            return str(found["executable"])
    return None


def base_python() -> str:
    """A Python that can make the virtual environment. Raises SetupError when the machine has none."""
    newest_first = [shutil.which(f"python3.{minor}") for minor in (13, 12, 11)]
    chosen = os.environ.get("PDEPOT_PYTHON")
    candidates = [shutil.which(chosen) or chosen] if chosen else [sys.executable, *newest_first]
    seen = []
    for candidate in filter(None, candidates):
        found = ask(candidate, PROBE, "venv", "ensurepip")
        if found and found["version"] >= OLDEST_PYTHON and not found["missing"]:
            return str(found["executable"])
        version = ".".join(map(str, found["version"])) if found else "does not run"
        lack = f", lacks {' and '.join(found['missing'])}" if found and found["missing"] else ""
        seen.append(f"{candidate} ({version}{lack})")
    raise SetupError(
        f"no usable Python: found {', '.join(seen)}; expected Python 3.11 or newer with venv and ensurepip",
        "install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: PDEPOT_PYTHON=/path/to/python3",
    )


def make_environment(environment: Path) -> None:
    """Make `environment` a virtual environment with a working pip, keeping what is usable of an earlier one."""
    for unfinished in environment.glob("lib/python*/site-packages/*.dist-info"):
        # pip writes INSTALLER last: without it the package is half there, yet pip would take it for installed.
        if not (unfinished / "INSTALLER").exists():
            shutil.rmtree(unfinished)
    runs = ask(environment / "bin" / "python", PROBE) is not None
    if runs and any(environment.glob("lib/python*/site-packages/pip-*.dist-info")):
        return
    python = base_python()
    with step(f"making the virtual environment {environment} with {python}"):
        if not run([python, "-I", "-m", "venv", *([] if runs else ["--clear"]), str(environment)]):
            raise SetupError("the virtual environment could not be made", f"see above; then delete {environment}")


def pip_install(python: Path, arguments: list[str]) -> bool:
    """`pip install` at the versions of constraints.txt, with progress bars on a terminal only."""
    bar = "on" if sys.stderr.isatty() else "off"
    options = ["--progress-bar", bar, "--disable-pip-version-check", "-c", str(REPOSITORY / "constraints.txt")]
    return run([str(python), "-I", "-m", "pip", "install", *options, *arguments])


def install(python: Path, extras: str, *, cuda: bool) -> None:
    """Install torch, then pdepot (editable, so that the checkout is what runs) with all it needs.

    Raises:
        SetupError: pip failed; its own message stands above.
    """
    remedy = "see pip's message above (network? disk space?), then run the same command again: it goes on from here"
    version = pinned(REPOSITORY / "constraints.txt", "torch")
    if cuda and any(python.parent.parent.glob("lib/python*/site-packages/torch-*+cpu.dist-info")):
        with step("removing the build of torch for CPUs"):  # which to pip is of the version that is wanted
            run([str(python), "-I", "-m", "pip", "uninstall", "--yes", "torch"])
    attempts = torch_attempts(version, system=platform.system(), machine=platform.machine(), cuda=cuda)
    for number, arguments in enumerate(attempts):
        if number and number == len(attempts) - 1:
            say("warning: no CPU build of torch was found; the plain one follows, with gigabytes of CUDA libraries")
        with step(f"installing {' '.join(arguments)}"):
            installed = pip_install(python, arguments)
        if installed:
            break
    else:
        raise SetupError("torch could not be installed", remedy)
    target = f"{REPOSITORY}[{extras}]" if extras else str(REPOSITORY)
    with step("installing pdepot and all it needs (a few minutes)"):
        if not pip_install(python, ["-e", target]):
            raise SetupError("pdepot could not be installed", remedy)


def verify(python: Path, environment: Path, accelerator: dict[str, str]) -> None:
    """Import the large dependencies once. Raises SetupError when one of them does not import."""
    with step(f"checking that {', '.join(IMPORTS)} import"):
        if not run([str(python), "-I", "-c", f"import {', '.join(IMPORTS)}"], quiet=True, **accelerator):
            raise SetupError("an installed package does not import", f"delete {environment} and run this again")


def remove_stale_locks(extensions: Path, *, older_than: float) -> None:
    """Remove the locks that killed builds left, on which every later build would wait for ever.

    Args:
        extensions: torch's folder of extensions; each has its own lock file.
        older_than: seconds; a younger lock may be held by a rank that is starting now.
    """
    for lock in extensions.glob("*/lock"):
        try:
            if time.time() - lock.stat().st_mtime >= older_than:
                lock.unlink()
        except FileNotFoundError:
            continue


def build_communication_op(python: Path, extensions: Path, accelerator: dict[str, str]) -> None:
    """Compile DeepSpeed's shared-memory communication op for CPU, which else every first start of an engine does.

    Without a compiler DeepSpeed cannot start on CPU at all (`init_distributed` raises), so its absence is said here;
    the rest of pdepot works without it.
    """
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        say("warning: no C++ compiler: DeepSpeed cannot start on the CPU, so neither can training")
        say("  remedy: install one (Debian: apt install g++; Fedora: dnf install gcc-c++), then run this again")
        return
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja is beside python
    with step("compiling DeepSpeed's communication op for CPU (about a minute, once)"):
        remove_stale_locks(extensions, older_than=0.0)
        settings = {"TORCH_EXTENSIONS_DIR": str(extensions), "PATH": path, **accelerator}
        built = run([str(python), "-I", "-c", BUILD_COMMUNICATION_OP], quiet=True, **settings)
    if not built:
        say("warning: the op did not compile (see above): DeepSpeed cannot start on the CPU, so neither can training")
        say("  remedy: it needs C++20, OpenMP and Python's headers (Debian: apt install g++ python3-dev)")


def prepare(environment: Path, lock: Path, extras: str, *, cuda: bool) -> Path:
    """The Python of `environment`, with everything installed; only what is missing is done.

    Args:
        environment: the virtual environment that is managed here.
        lock: held meanwhile.
        extras: of pdepot.
        cuda: want a torch for GPUs, also if this machine has none.
    """
    python = environment / "bin" / "python"
    extensions = environment / "torch_extensions"

    here = has_cuda()
    wanted = cuda or here

    def is_done() -> bool:
        found = ask(python, PROBE) if python.exists() else None
        return bool(found and is_stamped(environment, fingerprint(REPOSITORY, found["version"]), extras, cuda=wanted))

    def is_op_needed() -> bool:
        return not (extensions / COMMUNICATION_OP).exists() and not here

    if is_done() and not is_op_needed():
        remove_stale_locks(extensions, older_than=60.0)
        return python
    with exclusive(lock):
        accelerator = {} if here else {"DS_ACCELERATOR": "cpu"}
        finished = is_done()  # the run that this one waited for may have done it all
        if not finished:
            (environment / STAMP).unlink(missing_ok=True)  # going back to the old version must not find it again
            make_environment(environment)
            install(python, extras, cuda=wanted)
            verify(python, environment, accelerator)
        if not here and (not finished or is_op_needed()):
            build_communication_op(python, extensions, accelerator)
        if not finished:
            write_stamp(environment, fingerprint(REPOSITORY, ask(python, PROBE)["version"]), extras, cuda=wanted)
    return python


def complete_active(python: str, lock: Path) -> None:
    """Add the tools of the tests to an environment that lacks them; nothing else in it is touched."""
    if not ask(python, PROBE, *DEV_MODULES)["missing"]:
        return
    requirements = ask(python, DEV_REQUIREMENTS, str(REPOSITORY / "pyproject.toml"))
    with exclusive(lock), step(f"installing what the tests need: {', '.join(requirements)}"):
        if not pip_install(Path(python), requirements):
            raise SetupError("the tools of the tests could not be installed", f"install them for {python} yourself")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Set up this checkout; print the Python to use.")
    parser.add_argument("--extras", choices=["dev"], default="", help="also install what the tests need")
    parser.add_argument("--cuda", action="store_true", help="install torch for GPUs, also if this machine has none: "
                        "another one will use it")  # fmt: skip
    return parser.parse_args()


def main() -> int:
    """Set up, and print the path of the Python to use; the exit code is 1 after an error, 130 after Ctrl-C."""
    options = parse_arguments()
    extras = options.extras
    environment, lock = REPOSITORY / ".venv", REPOSITORY / ".venv.lock"
    try:
        active = active_python(environment)
        if active:
            say(f"using {active}, which has pdepot")
            if extras:
                complete_active(active, lock)
        python = active or prepare(environment, lock, extras, cuda=options.cuda)
    except (SetupError, OSError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from here")
        return 130
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
