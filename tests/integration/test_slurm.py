"""Jobs for Slurm, on a stand-in for it: what is submitted, what the batch script does, and a run that is preempted."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.base.errors import ConfigError, PdepotError
from launch.launcher import Launcher
from launch.ranks import run_ranks
from launch.slurm import submit
from pretrain.run import read_status
from tests.fake_slurm import Cluster, fake_slurm
from tests.training import ROOT, prepare

TWO_NODES = Launcher("slurm", nodes=2)
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with fake_slurm(tmp_path / "slurm", monkeypatch) as cluster:
        yield cluster


def driver(output: Path, code: str) -> list[str]:
    """A driver that runs Python `code`, for which `said` writes a status, and `restarts` counts requeues."""
    head = f"""
import json, os, pathlib, signal, sys, time
restarts = int(os.environ.get("SLURM_RESTART_COUNT", 0))
def said(status, file="pretrain/status.json"):
    path = pathlib.Path({str(output)!r}) / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({{"message": "", "status": status}}, indent=2))
def on_term(status):
    signal.signal(signal.SIGTERM, lambda *_: (said(status), sys.exit(1)))
    said("running")
    time.sleep(600)
"""
    return [sys.executable, "-c", head + code]


def started(output: Path) -> bool:
    return read_status(output / "pretrain")[0] == "running"


def test_a_job_gets_the_words_as_they_are_and_what_was_asked_for(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "gpu")
    output, words = tmp_path / "out put", ["a b", "$(touch danger)", "`x`", "tracking.experiment='; rm -rf'", ""]
    number = submit(
        [*driver(output, "said(json.dumps(sys.argv[1:]))"), *words], output, "tiny", Launcher("slurm", 2, 4)
    )
    assert slurm.wait_for(number, *ENDS) == "COMPLETED"
    job = slurm.job(number)
    assert job["words"][-len(words) :] == words  # type: ignore[index]
    assert read_status(output / "pretrain")[0] == str(words).replace("'", '"').replace('"; rm -rf"', "'; rm -rf'")
    wanted = {"nodes": "2", "gpus_per_node": "4", "ntasks_per_node": "1", "partition": "gpu", "job_name": "tiny"}
    assert wanted.items() <= job.items()
    assert (output / f"slurm-{number}.log").exists()


def test_a_job_that_saved_itself_at_the_warning_goes_on_in_the_same_job(slurm: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "output"
    code = "print('start', restarts, flush=True)\nif not restarts: on_term('preempted')\nsaid('finished')"
    number = submit(driver(output, code), output, "tiny", TWO_NODES)
    slurm.wait(lambda: started(output))
    slurm.warn(number)
    assert slurm.wait_for(number, *ENDS) == "COMPLETED"
    assert slurm.job(number)["restarts"] == 1
    log = (output / f"slurm-{number}.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("start")] == ["start 0", "start 1"]


def test_a_driver_that_is_stopped_before_it_trains_goes_on_too(slurm: Cluster, tmp_path: Path) -> None:
    """While it makes data, it just dies of the signal."""
    output = tmp_path / "output"
    code = "said('old', 'started')\nif not restarts: time.sleep(600)"
    number = submit(driver(output, code), output, "tiny", TWO_NODES)
    slurm.wait((output / "started").exists)
    slurm.warn(number)
    assert slurm.wait_for(number, *ENDS) == "COMPLETED"
    assert slurm.job(number)["restarts"] == 1


def test_slurm_may_signal_the_steps_instead_of_the_script(slurm: Cluster, tmp_path: Path) -> None:
    """As it does for a job with less priority: the ranks save themselves, and nobody has warned the script."""
    output = tmp_path / "output"
    code = "said('finished' if restarts else 'preempted'); sys.exit(not restarts)"
    number = submit(driver(output, code), output, "tiny", TWO_NODES)
    assert slurm.wait_for(number, *ENDS) == "COMPLETED"
    assert slurm.job(number)["restarts"] == 1


@pytest.mark.parametrize("code", ["said('failed'); sys.exit(1)", "restarts or on_term('failed')", "sys.exit(3)"])
def test_a_job_that_failed_is_not_run_again(slurm: Cluster, tmp_path: Path, code: str) -> None:
    output = tmp_path / "output"
    number = submit(driver(output, code), output, "tiny", TWO_NODES)
    if "on_term" in code:
        slurm.wait(lambda: started(output))
        slurm.warn(number)
    assert slurm.wait_for(number, *ENDS) == "FAILED"
    assert slurm.job(number)["restarts"] == 0


def test_an_old_failure_does_not_keep_a_job_from_going_on(slurm: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "output"
    (output / "scratch").mkdir(parents=True)
    (output / "scratch" / "status.json").write_text('{"status": "failed"}')
    os.utime(output / "scratch" / "status.json", (0, 0))
    code = "said('finished' if restarts else 'preempted'); sys.exit(not restarts)"
    number = submit(driver(output, code), output, "tiny", TWO_NODES)
    assert slurm.wait_for(number, *ENDS) == "COMPLETED"


def test_a_cancelled_job_stays_cancelled(slurm: Cluster, tmp_path: Path) -> None:
    output = tmp_path / "output"
    number = submit(driver(output, "restarts or on_term('preempted')"), output, "tiny", TWO_NODES)
    slurm.wait(lambda: started(output))
    slurm.cancel(number)
    slurm.wait(lambda: read_status(output / "pretrain")[0] == "preempted")
    slurm.wait(lambda: "over" in slurm.job(number))
    assert (slurm.job(number)["state"], slurm.job(number)["restarts"]) == ("CANCELLED", 0)


def test_submitting_says_what_is_wrong(tmp_path: Path, slurm: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SLURM", str(tmp_path / "nowhere"))
    with pytest.raises(PdepotError, match=r"(?s)Slurm has refused the job.*nowhere.*SBATCH_"):
        submit(["true"], tmp_path, "tiny", TWO_NODES)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no sbatch on this machine"):
        submit(["true"], tmp_path, "tiny", TWO_NODES)


@pytest.mark.slow
def test_a_run_on_two_nodes_is_preempted_and_finishes_with_the_same_weights(
    slurm: Cluster, data: dict[str, Any], uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # or a node of one rank would sum in another order
    long: dict[str, Any] = {"ranks": 2, "steps": 60}  # enough that the warning comes before the end
    undisturbed = prepare(data, tmp_path / "undisturbed", **long)
    run_ranks(undisturbed, 2, uri)

    folder = prepare(data, tmp_path / "output", **long)
    code = (
        "import sys, pathlib, launch.ranks as r, launch.launcher as l; "
        "r.run_ranks(pathlib.Path(sys.argv[1]), 2, sys.argv[2], l.Launcher('slurm', nodes=2))"
    )
    monkeypatch.chdir(ROOT)
    number = submit([sys.executable, "-c", code, str(folder), uri], tmp_path / "output", "tiny", TWO_NODES)
    log = tmp_path / "output" / f"slurm-{number}.log"
    slurm.wait(lambda: any((folder / "checkpoints").glob("step-*")) or slurm.job(number)["state"] in ENDS)
    slurm.warn(number)
    assert slurm.wait_for(number, *ENDS) == "COMPLETED", log.read_text()
    assert slurm.job(number)["restarts"] == 1, log.read_text()
    assert read_status(folder) == ("finished", "")
    assert "forcing job termination" not in log.read_text()
    assert (folder / "torchrun-1.log").exists()  # the second node's
    final = "final/model.safetensors"
    assert (folder / final).read_bytes() == (undisturbed / final).read_bytes()
