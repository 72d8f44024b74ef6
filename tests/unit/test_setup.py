"""The set-up and the scripts around it, run for real against a fake Python that records what it is asked to do."""

import ast
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch import setup

IS_LINUX_X86 = platform.system() == "Linux" and platform.machine() == "x86_64"
PATIENCE = 60.0  # seconds; only ever spent in full by a test that fails

FAKE_PYTHON = """
import json, os, sys, time
from pathlib import Path

root = Path(__file__).parent
state = json.loads((root / "state.json").read_text())
me, *arguments = sys.argv[1:]
prefix = Path(me).parent.parent

def record(event):
    with (root / "calls").open("a") as calls:
        calls.write(event + "\\n")
    while (root / "hold").exists() and event.startswith("pip"):
        time.sleep(0.01)
    sys.exit(next((code for text, code in state["fail"].items() if text in event), 0))

if arguments[:2] == ["-I", "-c"]:
    code = arguments[2]
    if code == state["probe"]:
        print(json.dumps({"executable": me, "prefix": str(prefix), "version": state["version"],
                          "pdepot": me in state["with_pdepot"], "missing": state["missing"]}))
    elif code == state["dev_requirements"]:
        print(json.dumps(["pytest>=8.3"]))
    elif code == state["compile"]:
        op = Path(os.environ["TORCH_EXTENSIONS_DIR"], state["op"])
        op.parent.mkdir(parents=True, exist_ok=True)
        op.touch()
        record("compile " + os.environ.get("DS_ACCELERATOR", "cuda"))
    else:
        record("verify " + code)
elif arguments[:3] == ["-I", "-m", "venv"]:
    target = Path(arguments[-1])
    info = target / "lib/python3.11/site-packages/pip-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "INSTALLER").touch()
    (target / "bin").mkdir(exist_ok=True)
    (target / "bin" / "python").unlink(missing_ok=True)
    (target / "bin" / "python").write_bytes(Path(me).read_bytes())
    (target / "bin" / "python").chmod(0o755)
    record(" ".join(arguments[2:]))
elif arguments[:3] == ["-I", "-m", "pip"]:
    record(" ".join(arguments[2:]))
elif arguments[0].endswith("setup.py"):
    os.execv(sys.executable, [sys.executable, "-I", *arguments])
else:
    record(" ".join(arguments) + " in " + os.getcwd())
"""


class Machine:
    """A checkout and a PATH on which only fakes stand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repository = root / "checkout"
        self.environment = self.repository / ".venv"
        for name in ("launch/setup.py", "launch/pretrain.sh", "tests/run.sh", "pyproject.toml", "constraints.txt"):
            (self.repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(setup.REPOSITORY / name, self.repository / name)
        (root / "bin").mkdir()
        (root / "fake.py").write_text(FAKE_PYTHON)
        self.python = self.add("python3", f'exec "{sys.executable}" -I "{root}/fake.py" "$0" "$@"')
        self.add("c++")
        self.state = {
            "probe": setup.PROBE,
            "dev_requirements": setup.DEV_REQUIREMENTS,
            "compile": setup.BUILD_COMMUNICATION_OP,
            "op": str(setup.COMMUNICATION_OP),
            "version": [3, 11, 7],
            "with_pdepot": [],
            "missing": [],
            "fail": {},
        }
        self.variables = {"PDEPOT_PYTHON": self.python, "PATH": str(root / "bin")}

    def add(self, name: str, body: str = "exit 0") -> str:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        (self.root / "state.json").write_text(json.dumps(self.state))
        command = arguments or (sys.executable, "-I", str(self.repository / "launch" / "setup.py"))
        return subprocess.Popen(
            command,
            env=self.variables,
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def setup(self, *arguments: str) -> tuple[int, str, str]:
        return finish(self.start(sys.executable, "-I", str(self.repository / "launch" / "setup.py"), *arguments))

    def script(self, name: str, *arguments: str) -> tuple[int, str, str]:
        self.variables["PATH"] = f"{self.root / 'bin'}:/usr/bin:/bin"
        return finish(self.start("bash", str(self.repository / name), *arguments))

    def calls(self) -> list[str]:
        """What the fakes were asked to do since this was last asked, without pip's own options."""
        log = self.root / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        options = "--progress-bar off --disable-pip-version-check -c {}/constraints.txt "
        return [line.replace(options.format(self.repository), "") for line in lines]


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def wait_until(path: Path, text: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < deadline, f"{text!r} never appeared in {path}"
        time.sleep(0.01)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path.resolve())


@contextmanager
def pip_on_hold(machine: Machine) -> Iterator[None]:
    """Every pip stays busy until the block ends."""
    hold = machine.root / "hold"
    hold.touch()
    try:
        yield
    finally:
        hold.unlink()


def torch_calls(machine: Machine) -> list[str]:
    cpu = IS_LINUX_X86 and not (machine.root / "bin" / "nvidia-smi").exists()
    return [f"pip install torch=={setup.pinned(setup.REPOSITORY / 'constraints.txt', 'torch')}{'+cpu' if cpu else ''}"]


@pytest.mark.parametrize(
    ("system", "architecture", "cuda", "expected"),
    [
        ("Linux", "x86_64", True, [["torch==9.9"]]),
        ("Linux", "aarch64", False, [["torch==9.9"]]),
        ("Darwin", "arm64", False, [["torch==9.9"]]),
        (
            "Linux",
            "x86_64",
            False,
            [["torch==9.9+cpu"], ["torch==9.9+cpu", "--extra-index-url", setup.CPU_INDEX], ["torch==9.9"]],
        ),
    ],
)
def test_the_build_of_torch_fits_the_machine(
    system: str, architecture: str, cuda: bool, expected: list[list[str]]
) -> None:
    assert setup.torch_attempts("9.9", system=system, machine=architecture, cuda=cuda) == expected


def test_a_fresh_machine_gets_everything_in_order_and_a_second_run_does_nothing(machine: Machine) -> None:
    code, out, err = machine.setup()
    assert (code, out) == (0, f"{machine.environment}/bin/python\n"), err
    assert machine.calls() == [
        f"venv --clear {machine.environment}",
        *torch_calls(machine),
        f"pip install -e {machine.repository}",
        f"verify import {', '.join(setup.IMPORTS)}",
        "compile cpu",
    ]
    assert machine.setup()[:2] == (code, out)
    assert machine.calls() == []


def test_extras_are_added_once_and_stay(machine: Machine) -> None:
    machine.setup()
    machine.calls()
    machine.setup("--extras", "dev")
    assert f"pip install -e {machine.repository}[dev]" in machine.calls()
    machine.setup("--extras", "dev")
    machine.setup()
    assert machine.calls() == []


@pytest.mark.parametrize("changed", ["constraints.txt", "pyproject.toml", "python", "place"])
def test_a_change_of_what_is_wanted_installs_again(machine: Machine, changed: str) -> None:
    machine.setup()
    machine.calls()
    if changed == "python":
        machine.state["version"] = [3, 11, 8]
    elif changed == "place":
        machine.repository = machine.repository.rename(machine.root / "moved")
    else:
        with (machine.repository / changed).open("a") as file:
            file.write("# changed\n")
    assert machine.setup()[0] == 0
    calls = machine.calls()
    assert f"pip install -e {machine.repository}" in calls
    assert not any(call.startswith("venv") for call in calls)


def test_an_interrupted_install_is_completed_by_the_next_run(machine: Machine) -> None:
    machine.state["fail"] = {" -e ": 1}
    code, out, err = machine.setup()
    assert (code, out) == (1, "")
    assert "remedy" in err
    packages = machine.environment / "lib/python3.11/site-packages"
    (packages / "half-1.dist-info").mkdir()
    machine.calls()
    machine.state["fail"] = {}
    assert machine.setup()[0] == 0
    assert f"pip install -e {machine.repository}" in machine.calls()
    assert not (packages / "half-1.dist-info").exists()
    assert (packages / "pip-1.dist-info").exists()


def test_a_failed_update_does_not_leave_the_old_stamp(machine: Machine) -> None:
    machine.setup()
    constraints = machine.repository / "constraints.txt"
    before = constraints.read_bytes()
    constraints.write_bytes(before + b"# changed\n")
    machine.state["fail"] = {" -e ": 1}
    machine.setup()
    constraints.write_bytes(before)
    machine.state["fail"] = {}
    machine.calls()
    machine.setup()
    assert f"pip install -e {machine.repository}" in machine.calls()


def test_an_environment_whose_python_is_gone_is_made_anew(machine: Machine) -> None:
    machine.setup()
    machine.calls()
    python = machine.environment / "bin" / "python"
    python.unlink()
    python.symlink_to("/nonexistent/python")
    assert machine.setup()[0] == 0
    assert machine.calls()[0] == f"venv --clear {machine.environment}"


def test_of_two_runs_at_once_one_works_and_the_other_says_that_it_waits(machine: Machine) -> None:
    with pip_on_hold(machine):
        first = machine.start()
        wait_until(machine.root / "calls", "pip install")
        second = machine.start()
        assert second.stderr is not None
        assert "waiting: another set-up" in second.stderr.readline()
        assert second.poll() is None
    assert finish(first)[:2] == finish(second)[:2] == (0, f"{machine.environment}/bin/python\n")
    assert machine.calls().count(f"pip install -e {machine.repository}") == 1


def test_a_killed_run_keeps_others_out_only_as_long_as_its_pip_lives(machine: Machine) -> None:
    with pip_on_hold(machine):
        first = machine.start()
        wait_until(machine.root / "calls", "pip install")
        first.send_signal(signal.SIGKILL)
        first.wait(PATIENCE)
        second = machine.start()
        assert second.stderr is not None
        assert "waiting: another set-up" in second.stderr.readline()
    assert finish(second)[0] == 0
    first.communicate()


@pytest.mark.skipif(not IS_LINUX_X86, reason="only Linux on x86-64 has a choice of builds")
def test_the_cpu_build_is_looked_for_before_the_plain_one_is_taken(machine: Machine) -> None:
    machine.state["fail"] = {"+cpu": 1}
    code, _, err = machine.setup()
    torch = [call for call in machine.calls() if "torch==" in call and "pip" in call]
    assert code == 0
    assert [call.split("==")[1].partition("+cpu")[2] for call in torch] == [
        "",
        f" --extra-index-url {setup.CPU_INDEX}",
        "",
    ]
    assert "+cpu" not in torch[2]
    assert "warning: no CPU build" in err


def test_a_cuda_machine_gets_the_plain_build_and_compiles_nothing(machine: Machine) -> None:
    machine.add("nvidia-smi", 'echo "GPU 0: NVIDIA H100"')
    assert machine.setup()[0] == 0
    calls = machine.calls()
    assert torch_calls(machine)[0] in calls
    assert not any("+cpu" in call or call.startswith("compile") for call in calls)


def test_a_login_node_installs_torch_for_the_gpus_of_others(machine: Machine) -> None:
    assert machine.setup()[0] == 0
    old = machine.environment / "lib/python3.11/site-packages/torch-9.9+cpu.dist-info"
    old.mkdir()
    (old / "INSTALLER").touch()
    machine.calls()
    assert machine.setup("--cuda")[0] == 0
    version = setup.pinned(setup.REPOSITORY / "constraints.txt", "torch")
    assert machine.calls()[:2] == ["pip uninstall --yes torch", f"pip install torch=={version}"]
    assert machine.setup()[0] == 0  # that build does for CPUs, too
    assert machine.calls() == []
    machine.add("nvidia-smi", 'echo "GPU 0: NVIDIA H100"')
    assert machine.setup()[0] == 0
    assert machine.calls() == []


def test_an_environment_made_without_gpus_is_not_taken_for_one_with(machine: Machine) -> None:
    assert machine.setup()[0] == 0
    machine.calls()
    machine.add("nvidia-smi", 'echo "GPU 0: NVIDIA H100"')
    assert machine.setup()[0] == 0
    assert torch_calls(machine)[0] in machine.calls()


def test_a_slurm_job_with_gpus_is_set_up_for_them_and_told_nothing_of_the_login_node(machine: Machine) -> None:
    config = machine.repository / "my.yaml"
    config.touch()
    slurm = ["my.yaml", "--launcher", "slurm"]
    for words, build in (["--gpus-per-node", "8"], ""), ([], "+cpu" if IS_LINUX_X86 else ""):
        shutil.rmtree(machine.environment, ignore_errors=True)
        assert machine.script("launch/pretrain.sh", *slurm, *words)[0] == 0
        assert f"torch=={setup.pinned(setup.REPOSITORY / 'constraints.txt', 'torch')}{build}" in machine.calls()[1]


def test_without_a_compiler_the_remedy_is_told_and_the_op_follows_once_there_is_one(machine: Machine) -> None:
    (machine.root / "bin" / "c++").unlink()
    code, out, err = machine.setup()
    assert (code, out) == (0, f"{machine.environment}/bin/python\n")
    assert "apt install g++" in err
    machine.calls()
    machine.add("c++")
    machine.setup()
    assert machine.calls() == ["compile cpu"]


def test_a_lock_of_a_killed_build_is_removed_but_not_that_of_a_build_under_way(machine: Machine) -> None:
    machine.setup()
    stale = machine.environment / "torch_extensions" / "deepspeed_shm_comm" / "lock"
    fresh = machine.environment / "torch_extensions" / "another" / "lock"
    fresh.parent.mkdir()
    stale.touch()
    os.utime(stale, (0, 0))
    fresh.touch()
    machine.setup()
    assert (stale.exists(), fresh.exists()) == (False, True)


def test_an_active_environment_with_pdepot_is_used_as_it_is(machine: Machine) -> None:
    machine.state["with_pdepot"] = [machine.python]
    assert machine.setup()[:2] == (0, f"{machine.python}\n")
    assert machine.setup("--extras", "dev")[:2] == (0, f"{machine.python}\n")
    assert machine.calls() == []
    machine.state["missing"] = ["pytest"]
    assert machine.setup("--extras", "dev")[0] == 0
    assert machine.calls() == ["pip install pytest>=8.3"]
    assert not machine.environment.exists()


def test_the_metadata_in_the_checkout_does_not_pass_for_an_installed_pdepot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    (tmp_path / "pdepot.egg-info").mkdir()
    (tmp_path / "pdepot.egg-info" / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: pdepot\nVersion: 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    visible = subprocess.check_output([str(bare / "bin" / "python"), "-c", setup.PROBE])
    assert json.loads(visible)["pdepot"] is True
    assert setup.ask(bare / "bin" / "python", setup.PROBE)["pdepot"] is False


def test_no_usable_python_is_an_error_that_names_what_was_found(machine: Machine) -> None:
    machine.state["version"] = [3, 9, 18]
    code, out, err = machine.setup()
    assert (code, out) == (1, "")
    assert f"{machine.python} (3.9.18)" in err
    assert "PDEPOT_PYTHON=" in err
    assert machine.calls() == []


def test_the_set_up_loads_on_an_old_python_and_imports_only_the_standard_library() -> None:
    tree = ast.parse((setup.REPOSITORY / "launch" / "setup.py").read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--node", "2"], "unknown option --node"),
        (["--launcher", "slum"], "unknown launcher slum (expected local, slurm, ray or kubernetes)"),
        (["--nodes"], "--nodes needs a value"),
        (["missing.yaml"], "no such configuration file: missing.yaml"),
        (["demo.yaml", "training.steps"], "not an override: training.steps"),
    ],
)
def test_pretrain_refuses_a_bad_command_before_any_set_up(
    machine: Machine, arguments: list[str], message: str
) -> None:
    (machine.root / "demo.yaml").touch()
    code, out, err = machine.script("launch/pretrain.sh", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert not machine.environment.exists()


def test_pretrain_explains_itself(machine: Machine) -> None:
    code, out, _ = machine.script("launch/pretrain.sh", "--help")
    assert code == 0
    assert "usage: bash launch/pretrain.sh [CONFIG] [key=value ...]" in out


def test_pretrain_sets_up_and_runs_the_pipeline_from_the_checkout(machine: Machine) -> None:
    demo = machine.repository / "configs" / "pretrain" / "demo.yaml"
    demo.parent.mkdir(parents=True)
    demo.touch()
    (machine.root / "mine.yaml").touch()
    machine.state["fail"] = {"training.steps=7": 7}
    command = f"-m launch.pipeline {{}} in {machine.repository}"
    for arguments, expected, code in [
        ([], "configs/pretrain/demo.yaml", 0),
        (["training.steps=7"], "configs/pretrain/demo.yaml training.steps=7", 7),
        (["mine.yaml", "seed=1"], f"{machine.root}/mine.yaml seed=1", 0),
        (["--nodes", "2", "mine.yaml", "--launcher", "ray"], f"{machine.root}/mine.yaml --nodes 2 --launcher ray", 0),
    ]:
        result = machine.script("launch/pretrain.sh", *arguments)
        assert (result[0], machine.calls()[-1]) == (code, command.format(expected)), result


def test_run_checks_everything_and_keeps_the_first_failure(machine: Machine) -> None:
    machine.state["fail"] = {"ruff format": 3, "mypy": 4}
    code, _, _ = machine.script("tests/run.sh")
    place = f"in {machine.repository}"
    assert code == 3
    assert machine.calls()[-4:] == [
        f"-m ruff check . {place}",
        f"-m ruff format --check . {place}",
        f"-m mypy {place}",
        f"-m pytest {place}",
    ]


def test_run_with_arguments_only_runs_pytest(machine: Machine) -> None:
    machine.state["with_pdepot"] = [machine.python]
    machine.state["fail"] = {"pytest": 5}
    code, _, _ = machine.script("tests/run.sh", "tests/unit", "-k", "two words")
    assert code == 5
    assert machine.calls() == [f"-m pytest tests/unit -k two words in {machine.repository}"]
