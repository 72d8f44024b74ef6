"""Who trains where: flags, the place of a machine among others, and what torchrun is told."""

import argparse
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import ConfigError
from launch import node, ranks
from launch.agent import GROUP_LOST, RANKS_FAILED
from launch.launcher import LOCAL, Launcher, add_launcher_flags, launcher_of
from launch.pipeline import main as pipeline
from launch.place import Place, find_place, interface_of, own_address, split_address
from launch.ranks import check_launch, with_ranks
from pretrain.config import TrainingConfig
from pretrain.job import number_of_ranks
from tests.fake_slurm import fake_slurm

ROOT = Path(__file__).resolve().parents[2]
SLURM = {"SLURM_JOB_ID": "123456", "SLURM_NNODES": "4", "SLURM_NODEID": "2", "SLURM_JOB_NODELIST": "fake[1-4]"}


def parse(*words: str, environment: dict[str, str] | None = None) -> Launcher:
    parser = argparse.ArgumentParser()
    add_launcher_flags(parser)
    return launcher_of(parser.parse_args(words), environment or {})


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**({"steps": 1, "batch_size": 64, "micro_batch": 8} | settings))


def test_flags_say_what_starts_the_ranks() -> None:
    assert parse() == LOCAL
    assert parse("--launcher", "slurm", "--nodes", "2", "--gpus-per-node", "8") == Launcher("slurm", 2, 8)
    assert parse("--launcher", "slurm", environment=SLURM) == Launcher("slurm", 4)
    assert parse(environment=SLURM) == LOCAL  # a shell on a node of an allocation


@pytest.mark.parametrize("launcher", [LOCAL, Launcher("slurm", 2, 8), Launcher("ray", 3, address="head:6379")])
def test_a_launchers_words_ask_for_it_again(launcher: Launcher) -> None:
    assert parse(*launcher.words()) == launcher


def test_other_nodes_than_slurm_has_given_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)--nodes.*found: 2.*expected: 4"):
        parse("--launcher", "slurm", "--nodes", "2", environment=SLURM)
    with pytest.raises(ConfigError, match=r"(?s)--gpus-per-node.*found: 0"):
        parse("--gpus-per-node", "0")


@pytest.mark.parametrize(
    ("settings", "nodes", "per_node", "ranks"),
    [
        ({}, 1, None, 2),
        ({}, 2, None, 4),
        ({"batch_size": 16}, 2, None, 2),  # four would not divide it
        ({}, 2, 4, 8),
        ({"ranks": 4}, 2, None, 4),
        ({"ranks": 4}, 2, 2, 4),
    ],
)
def test_ranks_are_counted_over_all_nodes(
    settings: dict[str, Any], nodes: int, per_node: int | None, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert number_of_ranks(training(**settings), nodes, per_node) == ranks


@pytest.mark.parametrize(
    ("settings", "launcher", "message"),
    [
        ({"ranks": 3}, Launcher("local", 2), r"(?s)training\.ranks.*found: 3.*a multiple of 2"),
        ({"ranks": 4}, Launcher("slurm", 2, 4), r"(?s)training\.ranks.*found: 4.*8, 4 on each"),
        ({}, Launcher("slurm", 2), r"--gpus-per-node"),
        ({}, Launcher("slurm", 2, 3), r"batch_size 64"),
    ],
)
def test_ranks_that_do_not_fit_are_refused_before_any_work(
    settings: dict[str, Any], launcher: Launcher, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match=message):
        check_launch(training(**settings), launcher)


def test_an_allocation_seen_from_a_login_node_says_nothing_of_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # `salloc`, whose shell may stay where it was typed
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="--gpus-per-node"):
        check_launch(training(), Launcher("slurm"))
    check_launch(training(), Launcher("slurm", 1, 8))
    check_launch(training(ranks=2), Launcher("slurm"))


def test_gpus_that_torch_cannot_use_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(node, "has_cuda", lambda: False)
    node.check_gpus()
    monkeypatch.setattr(node, "has_cuda", lambda: True)
    with pytest.raises(ConfigError, match=r"(?s)cannot use this machine's GPUs.*DS_ACCELERATOR=cpu"):
        node.check_gpus()
    for name, value in (("DS_ACCELERATOR", "cpu"), ("CUDA_VISIBLE_DEVICES", "")):
        with monkeypatch.context() as asked:
            asked.setenv(name, value)
            node.check_gpus()


def test_a_launcher_settles_the_ranks_of_a_job() -> None:
    from data_pipeline.base.config import load
    from pretrain.config import PretrainConfig

    job = load(PretrainConfig, ROOT / "configs" / "pretrain" / "demo.yaml")
    assert with_ranks(job, LOCAL) is job
    assert with_ranks(job, Launcher("slurm", 2, 1)).training.ranks == 2


def test_a_place_is_found_by_arguments_then_by_our_variables_then_by_slurms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {"PDEPOT_NODES": "2", "PDEPOT_NODE_RANK": "1", "PDEPOT_HEAD": "node0:1234"}
    assert find_place(3, 2, "other", {}) == Place(3, 2, "other", 29400)
    assert find_place(environment=ours) == Place(2, 1, "node0", 1234)
    assert find_place(node_rank=0, environment=ours).node_rank == 0
    with fake_slurm(tmp_path, monkeypatch):
        assert find_place(environment=SLURM) == Place(4, 2, "localhost", 23456, "123456")
        assert find_place(environment=SLURM | ours) == Place(2, 1, "node0", 1234, "123456")


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "--nodes.*PDEPOT_NODES.*SLURM_NNODES"),
        ({"PDEPOT_NODES": "two"}, "PDEPOT_NODES.*found: two"),
        ({"PDEPOT_NODES": "2"}, "--node-rank.*PDEPOT_NODE_RANK"),
        ({"PDEPOT_NODES": "2", "PDEPOT_NODE_RANK": "2"}, "--node-rank.*found: 2 of 2"),
        ({"PDEPOT_NODES": "2", "PDEPOT_NODE_RANK": "1"}, "--head.*PDEPOT_HEAD"),
        ({"PDEPOT_NODES": "2", "PDEPOT_NODE_RANK": "1", "PDEPOT_HEAD": "a:b"}, "--head.*found: a:b"),
    ],
)
def test_a_place_that_is_not_known_names_flag_and_variable(variables: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        find_place(environment=variables)


@pytest.mark.parametrize(
    ("address", "expected"),
    [("a", ("a", 7)), ("a:1", ("a", 1)), ("[::1]:2", ("::1", 2)), ("fe80::1", ("fe80::1", 7)), ("[::1]", ("::1", 7))],
)
def test_addresses_may_have_a_port(address: str, expected: tuple[str, int]) -> None:
    assert split_address(address, 7) == expected


def test_the_interface_that_leads_to_the_head_is_found() -> None:
    place = Place(2, 1, "127.0.0.1")
    assert own_address(place) == "127.0.0.1"
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None
    with pytest.raises(ConfigError, match=r"(?s)cannot be reached.*--head.*no-such-host\.invalid"):
        own_address(Place(2, 1, "no-such-host.invalid"))


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "mine0")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    environment = node._environment(2, Place(2, 1, "127.0.0.1"))
    assert (environment["GLOO_SOCKET_IFNAME"], environment["NCCL_SOCKET_IFNAME"]) == ("mine0", "lo")
    assert environment["OMP_NUM_THREADS"] == "7"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(node, "usable_cpus", lambda: 9)
    assert node._environment(2, None)["OMP_NUM_THREADS"] == "4"


def test_a_stop_request_reaches_srun_as_the_signal_that_it_passes_on() -> None:
    before = signal.getsignal(signal.SIGTERM)
    child = (
        "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: exit(7)); print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        with node.forwarding(process, signal.SIGUSR1) as stopped:
            assert not stopped()
            signal.raise_signal(signal.SIGTERM)
            assert (process.wait(), stopped()) == (7, True)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_the_agent_tells_failed_ranks_from_a_lost_group(tmp_path: Path) -> None:
    def agent(*words: str) -> int:
        return subprocess.run([sys.executable, "-m", "launch.agent", *words], cwd=ROOT, check=False).returncode

    script = tmp_path / "rank.py"
    script.write_text("import sys; sys.exit(int(sys.argv[1]))")
    meeting = ["--rdzv-backend", "c10d", "--rdzv-conf", "is_host=0,read_timeout=1", "--rdzv-endpoint", "127.0.0.1:9"]
    assert agent("--standalone", "--nproc-per-node", "1", str(script), "0") == 0
    assert agent("--standalone", "--nproc-per-node", "1", str(script), "3") == RANKS_FAILED
    assert agent("--nnodes", "2", "--nproc-per-node", "1", *meeting, str(script), "0") == GROUP_LOST


def test_launcher_slurm_submits_the_same_command_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all words of the user as they are; nothing is made or trained here."""
    sent: list[Any] = []
    monkeypatch.setattr("launch.pipeline.submit", lambda *what: sent.append(what))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    config, output = ROOT / "configs" / "pretrain" / "demo.yaml", tmp_path / "out"
    words = [str(config), f"output={output}", "training.steps=7"]
    assert pipeline([*words, "--launcher", "slurm", "--nodes", "2", "--gpus-per-node", "1"]) == 0
    flags = ["--launcher", "slurm", "--nodes", "2", "--gpus-per-node", "1"]
    command, to, name, launcher = sent[0]
    assert command == ["bash", str(ROOT / "launch" / "pretrain.sh"), *flags, *words]
    assert (to, name, launcher) == (output, "demo", Launcher("slurm", 2, 1))
    assert not output.exists()
    assert pipeline([*words, "--launcher", "slurm", "--nodes", "2"]) == 1
    assert "--gpus-per-node" in capsys.readouterr().err


def test_a_ray_cluster_makes_the_data_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    config = ROOT / "configs" / "pretrain" / "demo.yaml"
    words = [str(config), f"output={tmp_path / 'out'}", f"data.root={tmp_path / 'data'}", "--launcher", "ray"]
    for ours, rays in (["--address", "127.0.0.1:9"], None), ([], "127.0.0.1:9"):
        monkeypatch.setenv("RAY_ADDRESS", rays or "127.0.0.1:7")
        assert pipeline([*words, *ours]) == 1
        assert "127.0.0.1:9" in capsys.readouterr().err  # where nobody is
    assert Launcher("slurm").cluster({"RAY_ADDRESS": "elsewhere:6379"}) is None


def test_within_an_allocation_srun_starts_one_process_on_each_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$0.words"\n')
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    signals: list[signal.Signals] = []
    true_forwarding = ranks.forwarding
    monkeypatch.setattr(
        ranks, "forwarding", lambda process, number: signals.append(number) or true_forwarding(process, number)
    )
    ranks._start(tmp_path, 8, "sqlite:///a b.db", Launcher("slurm", 2))
    words = (tmp_path / "srun.words").read_text().splitlines()
    assert {"--nodes", "2", "--ntasks", "--kill-on-bad-exit=1", "--cpus-per-task=16"} <= set(words)
    start = words.index(sys.executable)
    assert words[start + 1 :] == ["-m", "launch.node", str(tmp_path), "sqlite:///a b.db", "--ranks-per-node", "4"]
    assert signals == [signal.SIGUSR1]  # at SIGTERM, the real srun kills its tasks


def test_the_head_says_what_to_type_on_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(ranks, "run_node", lambda *what: started.append(what))
    monkeypatch.setenv("PDEPOT_HEAD", "node0:1234")
    ranks._start(tmp_path, 8, "http://me:secret@server", Launcher("local", 2))
    assert started == [(tmp_path, 4, "http://me:secret@server", Place(2, 0, "node0", 1234))]
    line = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert line[:5] == ["python", "-m", "launch.node", str(tmp_path), "http://me:***@server"]
    assert line[5:] == ["--ranks-per-node", "4", "--nodes", "2", "--head", "node0:1234", "--node-rank", "I"]
