"""Training compiled, recomputed or in bfloat16 is the same training: real ranks, real checkpoints, real data."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow import MlflowClient
from torch import Tensor

from data_pipeline.base.config import build, load
from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import read_json
from data_pipeline.config import DatasetConfig
from launch.datasets import make_datasets
from launch.ranks import run_ranks
from pretrain.config import PretrainConfig
from pretrain.job import prepare_pretraining
from pretrain.model import load_operator_files
from tests.training import prepare, start_ranks, wait_for

FNO = {"library": "neuraloperator", "architecture": "FNO", "arguments": {"n_modes": [4, 4], "hidden_channels": 8}}
STEPS, WINDOW = 300, 50


@pytest.fixture(scope="module")
def plain(data: dict[str, Any], uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepare(data, tmp_path_factory.mktemp("plain"))
    run_ranks(folder, 2, uri)
    return folder / "final"


def assert_same_model(found: Path, expected: Path, tolerance: float) -> None:
    assert sorted(p.name for p in found.iterdir()) == sorted(p.name for p in expected.iterdir())
    one, two = (load_operator_files(path).state_dict() for path in (expected, found))
    assert list(two) == list(one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=tolerance, msg=name)


@pytest.mark.slow
def test_recomputation_changes_no_bit_of_the_weights(
    data: dict[str, Any], uri: str, plain: Path, tmp_path: Path
) -> None:
    folder = prepare(data, tmp_path, recompute=True)
    run_ranks(folder, 2, uri)
    assert_same_model(folder / "final", plain, tolerance=0)


@pytest.mark.parametrize("key", ["compile", "recompute"])
def test_what_a_baseline_cannot_do_is_said_before_anything_is_written(
    key: str, data: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{key}"):
        prepare(data, tmp_path, model=FNO, **{key: True})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_compiled_run_is_stopped_and_resumed_and_ends_with_the_same_weights(
    zero_stage: int, data: dict[str, Any], uri: str, plain: Path, tmp_path: Path
) -> None:
    folder = prepare(data, tmp_path, compile=True, recompute=zero_stage == 2, zero_stage=zero_stage)
    process = start_ranks(folder, uri)
    wait_for(lambda: any((folder / "checkpoints").glob("step-*")), process)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=600)
    run_ranks(folder, 2, uri)
    assert_same_model(folder / "final", plain, tolerance=1e-5)  # they have moved by 1e-2


@pytest.fixture(scope="module")
def two_families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two generated datasets, `data/`, and their configurations."""
    folder = tmp_path_factory.mktemp("families")
    burgers = {"family": "burgers_2d", "dt": 0.025, "parameters": {"viscosity": 1e-2, "speed": 0.5, "modes": 3}}
    reaction = {"family": "diffusion_reaction_2d", "dt": 0.2, "start": 1.0, "parameters": {"step": 0.02}}
    shape = {"resolution": [32, 32], "frames": 16, "seed": 0, "splits": {"train": 8, "valid": 1, "test": 1}}
    for name, family in (("burgers", burgers), ("reaction", reaction)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"name": name, "generate": family | shape}))
    make_datasets([load(DatasetConfig, path) for path in sorted(folder.glob("*.yaml"))], folder / "data")
    return folder


def losses(two_families: Path, output: Path, uri: str, predict: str, precision: str) -> Tensor:
    """The loss of every step, as it was logged."""
    content = {
        "name": "curve",
        "output": str(output),
        "data": {
            "root": str(two_families / "data"),
            "history": 6,
            "datasets": [{"config": "burgers.yaml"}, {"config": "reaction.yaml"}],
        },
        "model": {"width": 64, "depth": 2, "mlp_ratio": 1, "heads": 4, "head_width": 16, "patch_size": 4},
        "objective": {"predict": predict},
        "training": {
            "steps": STEPS, "batch_size": 8, "micro_batch": 8, "learning_rate": 2e-3, "precision": precision,
            "checkpoint_every": STEPS, "log_every": 1,
        },
    }  # fmt: skip
    folder, _ = prepare_pretraining(build(PretrainConfig, content), two_families)
    run_ranks(folder, 1, uri)
    run_id = read_json(folder / "tracking.json")["run_id"]
    return torch.tensor([m.value for m in MlflowClient(uri).get_metric_history(run_id, "loss")])


@pytest.mark.slow
@pytest.mark.parametrize("predict", ["change", "state"])
def test_the_loss_curve_of_bfloat16_is_that_of_float32_within_one_percent(
    predict: str, two_families: Path, uri: str, tmp_path: Path
) -> None:
    full, half = (losses(two_families, tmp_path / p, uri, predict, p) for p in ("float32", "bfloat16"))
    assert len(full) == len(half) == STEPS
    assert not torch.equal(full, half)
    smooth_full, smooth_half = (curve.reshape(-1, WINDOW).mean(1) for curve in (full, half))
    assert smooth_full[-1] < 0.7 * smooth_full[0]  # it learns
    assert ((smooth_half - smooth_full) / smooth_full).abs().max() < 0.01
