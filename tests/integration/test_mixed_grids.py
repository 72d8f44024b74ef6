"""One training run on data of one, two and three axes and several resolutions, on two real ranks."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import read_json
from data_pipeline.loader import Batch
from data_pipeline.stores import open_store
from finetune.config import FinetuneConfig
from finetune.train import prepare_finetuning
from launch.ranks import run_ranks
from pretrain.config import RunConfig
from pretrain.evaluate import evaluate
from pretrain.model import load_operator_files
from pretrain.run import read_status
from pretrain.schedule import run_mixture
from pretrain.setup import frames_out, make_loader
from tests.mixed import FIELDS, MIXED_MODEL, SPACES, WEIGHTS, make_mixed_data
from tests.training import prepare, start_ranks, wait_for

STEPS, EVERY = 24, 6


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_mixed_data(tmp_path_factory.mktemp("mixed"))


def lay_out(data: dict[str, Any], folder: Path, **training: Any) -> Path:
    """A run's folder."""
    options = {"steps": STEPS, "checkpoint_every": EVERY, "log_every": 1, "learning_rate": 1e-2} | training
    return prepare(data, folder, model=MIXED_MODEL, **options)


@pytest.fixture(scope="module")
def undisturbed(mixed: dict[str, Any], uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = lay_out(mixed, tmp_path_factory.mktemp("undisturbed"))
    run_ranks(folder, 2, uri)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_operator_files(folder / "final").state_dict()


def batches(folder: Path, data: dict[str, Any], rank: int, ranks: int, first_step: int, steps: int) -> list[Batch]:
    """What a rank of a run is fed."""
    config = build(RunConfig, read_json(folder / "config.json"))
    stores = [open_store(Path(data["root"]) / f"{name}.shards", "train") for name in SPACES]
    operator = load_operator_files(folder / "initial")
    mixture = run_mixture(config, config.history + frames_out(config, operator))
    with make_loader(config, mixture, stores, operator, first_step, rank=rank, world_size=ranks) as loader:
        return [next(loader) for _ in range(steps * 4 // ranks)]


@pytest.mark.slow
def test_one_network_learns_all_of_them(mixed: dict[str, Any], undisturbed: Path, uri: str) -> None:
    client, run_id = MlflowClient(uri), read_json(undisturbed / "tracking.json")["run_id"]
    losses = [m.value for m in client.get_metric_history(run_id, "loss")]
    assert len(losses) == STEPS
    assert sum(losses[-6:]) < 0.75 * sum(losses[:6])
    operator = load_operator_files(undisturbed / "final")
    assert operator.config.network.space == (32, 24, 8)
    assert {name: operator.grid(name) for name in SPACES} == SPACES
    for name, fields in FIELDS.items():
        assert client.get_metric_history(run_id, f"loss/{name}")
        found = evaluate(operator, open_store(Path(mixed["root"]) / f"{name}.shards", "test"))
        assert (found.channels, found.diverged) == (fields, 0)
        assert found.one_step is not None
        assert found.one_step < found.one_step_persistence


@pytest.mark.slow
def test_each_batch_has_one_grid_and_ranks_share_the_stream(mixed: dict[str, Any], undisturbed: Path) -> None:
    alone = batches(undisturbed, mixed, 0, 1, 0, STEPS)
    pair = [batches(undisturbed, mixed, rank, 2, 0, STEPS) for rank in range(2)]
    shared = [batch for both in zip(*pair, strict=True) for batch in both]
    for one, other in zip(alone, shared, strict=True):
        assert torch.equal(one.position, other.position)
        assert torch.equal(one.dataset, other.dataset)
        assert torch.equal(one.window, other.window)
        assert {tuple(SPACES.values())[row] for row in one.dataset.tolist()} == {one.window.shape[2:-1]}
    at_the_same_time = {(a.window.shape[2:-1], b.window.shape[2:-1]) for a, b in zip(*pair, strict=True)}
    assert len({shape for shape, _ in at_the_same_time}) == len(SPACES)
    assert any(a != b for a, b in at_the_same_time)  # the ranks' networks work on different grids
    later = batches(undisturbed, mixed, 1, 2, 5, 1)
    assert [b.position.tolist() for b in later] == [b.position.tolist() for b in pair[1][10:12]]
    seen = torch.bincount(torch.cat([batch.dataset for batch in alone]), minlength=4)
    assert torch.allclose(seen / seen.sum(), torch.tensor([*WEIGHTS.values()]) / 6, atol=0.1)


def test_another_grid_needs_the_option(mixed: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)line 32, coarse 16x16.*remedy: set model.resize_position: true"):
        prepare(mixed, tmp_path, model=MIXED_MODEL | {"resize_position": False})
    with pytest.raises(ConfigError, match=r"(?s)do not cover the grid of dataset 'fine'.*found: 16"):
        prepare(mixed, tmp_path, model=MIXED_MODEL | {"patch_size": 16})


@pytest.mark.slow
def test_fine_tuning_on_fewer_axes_starts_from_the_same_function(
    mixed: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    data = mixed | {"datasets": [{"config": "line.yaml"}, {"config": "coarse.yaml"}]}
    content = {
        "name": "narrow", "output": str(tmp_path), "data": data, "model": "unused",
        "training": {"steps": 1, "batch_size": 8, "micro_batch": 2},
    }  # fmt: skip
    configs = Path(mixed["root"]).parent
    folder, _ = prepare_finetuning(build(FinetuneConfig, content), configs, undisturbed / "final")["fine-tuned"]
    adapted = load_operator_files(folder / "initial")
    assert adapted.config.network.space == (32, 16, 4)
    assert adapted.grids == {(32,), (16, 16)}
    assert adapted(torch.randn(2, 32, 4, 1), torch.tensor([0, 0])).isfinite().all()


@pytest.mark.slow
def test_a_kill_changes_no_weight(mixed: dict[str, Any], uri: str, undisturbed: Path, tmp_path: Path) -> None:
    folder = lay_out(mixed, tmp_path)
    process = start_ranks(folder, uri)
    wait_for(lambda: any((folder / "checkpoints").glob("step-*")), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert read_status(folder)[0] == "running"
    run_ranks(folder, 2, uri)
    found, expected = weights(folder), weights(undisturbed)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_every_zero_stage_gives_the_same_weights_to_rounding(
    stage: int, mixed: dict[str, Any], uri: str, undisturbed: Path, tmp_path: Path
) -> None:
    # Ranks are on different grids at the same time: what they reduce must still be the same weights, in one order.
    folder = lay_out(mixed, tmp_path, zero_stage=stage)
    run_ranks(folder, 2, uri)
    found = weights(folder)
    for name, value in weights(undisturbed).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_recomputation_and_bfloat16_take_all_grids(mixed: dict[str, Any], uri: str, tmp_path: Path) -> None:
    folder = lay_out(mixed, tmp_path, recompute=True, precision="bfloat16", zero_stage=2, steps=6)
    run_ranks(folder, 2, uri)
    assert all(value.isfinite().all() for value in weights(folder).values())
