"""The main job end to end, small, with every part real: Ray, Zarr, WebDataset, DeepSpeed on two ranks, MLflow."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from mlflow import MlflowClient

from data_pipeline.base.files import read_json
from pretrain.registry import load_operator, show
from tests.training import ROOT

# Kept short: what is proven here is that the parts meet, and that any of them may be killed.
FAMILIES = {
    "navier": {"family": "navier_stokes_2d", "frames": 8, "dt": 0.2, "parameters": {"step": 0.1}},
    "reaction": {
        "family": "diffusion_reaction_2d",
        "frames": 8,
        "dt": 0.1,
        "start": 0.5,
        "parameters": {"diffusivity_activator": 5e-3},
    },
    "water": {"family": "shallow_water_2d", "frames": 8, "dt": 0.05},
    "unseen": {
        "family": "gray_scott_2d",
        "frames": 8,
        "dt": 10.0,
        "parameters": {"regimes": ["maze"], "diffusivity_a": 1e-3, "diffusivity_b": 5e-4},
    },
}
MODEL = {"width": 16, "depth": 1, "mlp_ratio": 1, "heads": 2, "head_width": 8, "patch_size": 4}
TRAINING = {"batch_size": 8, "micro_batch": 4, "learning_rate": 2e-3, "checkpoint_every": 4, "log_every": 2}


def write_configs(folder: Path) -> Path:
    """A pretraining and a fine-tuning configuration with their datasets; returns the first one's path."""
    for name, family in FAMILIES.items():
        config = {"name": name, "generate": {"resolution": [16, 16], "splits": {"train": 4, "test": 2}, **family}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    data = {"root": str(folder / "data"), "history": 4}
    finetune = {
        "name": "tiny-unseen", "output": "unused", "model": "unused",
        "data": data | {"datasets": [{"config": "unseen.yaml"}]}, "training": TRAINING | {"steps": 4},
    }  # fmt: skip
    pretrain = {
        "name": "tiny", "output": str(folder / "runs"), "model": MODEL, "training": TRAINING | {"steps": 12},
        "data": data | {"datasets": [{"config": f"{name}.yaml"} for name in ("navier", "reaction", "water")]},
        "registry": {"name": "tiny"}, "finetune": "finetune.yaml",
    }  # fmt: skip
    (folder / "finetune.yaml").write_text(yaml.safe_dump(finetune))
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(pretrain))
    return folder / "pretrain.yaml"


def start(config: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{config.parent / 'mlflow.db'}"}
    return subprocess.Popen(
        [sys.executable, "-m", "launch.pipeline", str(config)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def run(config: Path) -> str:
    process = start(config)
    output, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, output
    return output


def kill_when(config: Path, condition: Callable[[], bool]) -> None:
    """Start the job, and SIGKILL it and all of its descendants once `condition` holds."""
    process = start(config)
    deadline = time.monotonic() + 900
    while not condition():
        assert process.poll() is None, f"the job ended before it could be killed: {process.stdout.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in tree:
        try:
            member.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=60)
    assert process.stdout is not None
    process.stdout.close()
    process.wait()


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    config = write_configs(tmp_path_factory.mktemp("pipeline"))
    return config.parent, run(config)


def digests(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: read_json(folder / "data" / f"{name}.shards" / "manifest.json")["digest"] for name in FAMILIES
    }
    for final in ("pretrain", "finetune/fine-tuned", "finetune/scratch"):
        found[final] = (folder / "runs" / final / "final" / "model.safetensors").read_bytes()
    return found


def test_the_job_ends_with_one_table_and_one_report(clean: tuple[Path, str]) -> None:
    folder, output = clean
    table = output[output.index("Relative L2") :]
    assert all(name in table for name in FAMILIES)
    assert all(column in table for column in ("persistence", "pretrained", "scratch", "fine-tuned"))
    report = folder / "runs" / "report.html"
    assert str(report) in output
    assert "mlflow ui" in output
    assert report.read_text().count("data:image/png;base64,") >= 9


def test_the_registry_holds_both_models_with_their_lineage(clean: tuple[Path, str]) -> None:
    folder, _ = clean
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    operator = load_operator("models:/tiny@champion", uri)
    assert operator.config.channels == ("vorticity", "activator", "inhibitor", "height")
    version = show("models:/tiny@champion", uri)
    expected = {f"data.{name}" for name in ("navier", "reaction", "water")} | {"config_digest", "git_revision"}
    assert expected <= version.lineage.keys()
    assert version.run_id is not None
    metrics = MlflowClient(uri).get_run(version.run_id).data.metrics
    assert {"loss", "loss/navier", "relative_l2/water"} <= metrics.keys()


def test_fine_tuning_starts_from_the_registered_weights(clean: tuple[Path, str]) -> None:
    folder, _ = clean
    from safetensors.torch import load_file

    pretrained = load_file(folder / "runs/pretrain/final/model.safetensors")
    adapted = load_file(folder / "runs/finetune/fine-tuned/initial/model.safetensors")
    scratch = load_file(folder / "runs/finetune/scratch/initial/model.safetensors")
    name = "network.blocks.0.filter.w1"
    assert adapted[name].equal(pretrained[name])
    assert not scratch[name].equal(pretrained[name])
    finetuned, fresh = (read_json(folder / f"runs/finetune/{kind}/config.json") for kind in ("fine-tuned", "scratch"))
    for key in ("name", "parent"):
        del finetuned[key], fresh[key]
    assert finetuned == fresh  # same data, samples, noise and steps


@pytest.mark.slow
def test_a_second_run_reuses_everything(clean: tuple[Path, str]) -> None:
    folder, _ = clean
    kept = [folder / "data", folder / "runs/pretrain/final", folder / "runs/finetune/fine-tuned/final"]
    before = {p: p.stat().st_mtime_ns for top in kept for p in top.rglob("*")}
    output = run(folder / "pretrain.yaml")
    assert output.count("up to date, nothing to do") == 2 * len(FAMILIES)
    assert output.count("finished already, nothing to do") == 3
    assert {p: p.stat().st_mtime_ns for top in kept for p in top.rglob("*")} == before
    assert show("models:/tiny@champion", f"sqlite:///{folder / 'mlflow.db'}").version == 1


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_data_and_weights(clean: tuple[Path, str], tmp_path: Path) -> None:
    config = write_configs(tmp_path)
    runs = tmp_path / "runs"
    stages = [
        lambda: any((tmp_path / "data").glob(".*.partial/journal.jsonl")),
        lambda: any((tmp_path / "data").glob("*.shards")),
        lambda: any((runs / "pretrain/checkpoints").glob("step-*")),
        lambda: (runs / "pretrain/final").exists(),
        lambda: any((runs / "finetune/fine-tuned/checkpoints").glob("step-*")),
    ]
    for stage in stages:
        kill_when(config, stage)
    run(config)
    assert digests(tmp_path) == digests(clean[0])
