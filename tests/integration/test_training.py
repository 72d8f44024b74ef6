"""Training on two real ranks: it learns, it logs, and no kill changes the weights that come out."""

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
from data_pipeline.stores import open_store
from finetune.config import FinetuneConfig
from finetune.train import prepare_finetuning
from launch.ranks import run_ranks
from pretrain.comparison import read_run
from pretrain.evaluate import evaluate
from pretrain.model import load_operator_files
from pretrain.run import read_status
from tests.rank_group import run_in_ranks
from tests.training import MODEL, STEPS, prepare, start_ranks, wait_for, watched


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, Any], uri: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It alone is validated, which must not change its weights."""
    folder = prepare(data, tmp_path_factory.mktemp("undisturbed"), validation_trajectories=1)
    run_ranks(folder, 2, uri)
    return folder


def weights(folder: Path) -> bytes:
    return (folder / "final" / "model.safetensors").read_bytes()


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*"))


def test_a_run_trains_and_logs(undisturbed: Path, uri: str) -> None:
    assert read_status(undisturbed) == ("finished", "")
    assert weights(undisturbed) != (undisturbed / "initial" / "model.safetensors").read_bytes()
    assert load_operator_files(undisturbed / "final").config.channels == ("density", "pressure")
    assert [p.name for p in checkpoints(undisturbed)] == ["step-00000009", "step-00000012"]

    client, run_id = MlflowClient(uri), read_json(undisturbed / "tracking.json")["run_id"]
    metrics = client.get_run(run_id).data.metrics
    wanted = {"loss", "loss/first", "loss/second", "learning_rate", "samples_per_second", "gradient_norm"}
    assert wanted <= metrics.keys()
    assert {
        "skipped_steps",
        "data_wait_fraction",
        "flop_per_second",
        "fraction_of_peak",
        "memory_gib",
    } <= metrics.keys()
    assert [m.step for m in client.get_metric_history(run_id, "loss")] == [2, 4, 6, 8, 10, 12]


def test_every_checkpoint_is_validated(undisturbed: Path, uri: str) -> None:
    client, run_id = MlflowClient(uri), read_json(undisturbed / "tracking.json")["run_id"]
    for name in ("first", "second"):
        steps = [m.step for m in client.get_metric_history(run_id, f"valid/relative_l2/{name}")]
        assert steps == [3, 6, 9, 12]
        pictures = {f.path for f in client.list_artifacts(run_id, "figures/step-00000012")}
        assert {f"figures/step-00000012/{name}-{kind}.png" for kind in ("error", "rollout")} <= pictures
    newest = read_json(undisturbed / "validation.json")
    assert newest["step"] == 12
    operator = load_operator_files(undisturbed / "checkpoints" / "step-00000012")
    for found, name in zip(newest["datasets"], ("first", "second"), strict=True):
        path = next(d.path for d in read_run(undisturbed).data if d.name == name)
        again = evaluate(operator, open_store(path, "valid"), limit=1)
        assert found["relative_l2"] == pytest.approx(again.relative_l2, rel=1e-5)


def test_a_finished_run_is_left_alone(undisturbed: Path, uri: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.name != ".lock"}
    run_ranks(undisturbed, 2, uri)
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*") if p.name != ".lock"} == before


@pytest.mark.slow
def test_kill_9_of_all_ranks_does_not_change_the_weights(
    data: dict[str, Any], uri: str, undisturbed: Path, tmp_path: Path
) -> None:
    folder = prepare(data, tmp_path)
    process = start_ranks(folder, uri)
    wait_for(lambda: bool(checkpoints(folder)), process)
    process.kill()  # the launcher alone: torchrun and the ranks must not outlive it
    process.wait()
    assert read_status(folder)[0] == "running"
    run_ranks(folder, 2, uri)
    assert weights(folder) == weights(undisturbed)


@pytest.mark.slow
def test_sigterm_saves_and_the_next_start_goes_on(
    data: dict[str, Any], uri: str, undisturbed: Path, tmp_path: Path
) -> None:
    folder = prepare(data, tmp_path)
    process = start_ranks(folder, uri)
    wait_for(lambda: bool(checkpoints(folder)), process)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=600)
    if read_status(folder)[0] != "finished":  # the signal may come with the last step
        assert read_status(folder)[0] == "preempted"
        run_ranks(folder, 2, uri)
    assert weights(folder) == weights(undisturbed)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(
    data: dict[str, Any], uri: str, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(data, tmp_path)
    process = start_ranks(folder, uri)
    wait_for(lambda: len(checkpoints(folder)) == 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    newest = checkpoints(folder)[-1]
    victim = newest / "rank-00001.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    capfd.readouterr()
    run_ranks(folder, 2, uri)
    assert f"{newest.name} is damaged" in capfd.readouterr().out
    assert weights(folder) == weights(undisturbed)


def test_another_configuration_is_refused_and_named(data: dict[str, Any], undisturbed: Path) -> None:
    with pytest.raises(ConfigError, match=rf"training\.steps: {STEPS} in the folder, 99 asked for"):
        prepare(data, undisturbed.parent, steps=99)


@pytest.mark.slow
def test_conditions_and_anonymous_slots_train_on_two_ranks(data: dict[str, Any], uri: str, tmp_path: Path) -> None:
    options = {"condition": True, "slots": "anonymous", "mode_truncation": "symmetric", "resize_position": True}
    folder = prepare(data, tmp_path, model=MODEL | options, steps=3, learning_rate=1e-2)
    run_ranks(folder, 2, uri)
    operator = load_operator_files(folder / "final")
    assert (operator.config.channels, operator.config.parameters) == (("channel_1", "channel_2"), ("viscosity",))
    block = operator.network.blocks[0].modulation
    assert block.weight.any()
    assert block.bias.any()
    store = open_store(Path(data["root"]) / "second.shards", "test")
    assert evaluate(operator, store).diverged == 0


def test_fine_tuning_with_conditions_starts_from_the_same_function(
    data: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    content = {
        "name": "conditioned", "output": str(tmp_path), "data": data, "model": "unused", "adapt": {"condition": True},
        "training": {"steps": 1, "batch_size": 8, "micro_batch": 2},
    }  # fmt: skip
    configs = Path(data["root"]).parent
    folder, _ = prepare_finetuning(build(FinetuneConfig, content), configs, undisturbed / "final")["fine-tuned"]
    old, new = load_operator_files(undisturbed / "final"), load_operator_files(folder / "initial")
    assert new.config.parameters == ("viscosity",)
    x, row = torch.randn(2, 16, 16, 4, 2), torch.tensor([0, 1])
    assert torch.equal(new(x, row, torch.tensor([[0.01], [3.0]])), old(x, row))


@pytest.mark.slow
def test_zero_stage_3_gives_the_same_weights_to_rounding(
    data: dict[str, Any], uri: str, undisturbed: Path, tmp_path: Path
) -> None:
    folder = prepare(data, tmp_path, zero_stage=3)
    run_ranks(folder, 2, uri)
    one, three = (load_operator_files(path / "final").state_dict() for path in (undisturbed, folder))
    for name, value in one.items():
        torch.testing.assert_close(three[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_bfloat16_trains(data: dict[str, Any], uri: str, undisturbed: Path, tmp_path: Path) -> None:
    folder = prepare(data, tmp_path, precision="bfloat16")
    run_ranks(folder, 2, uri)
    one, half = (load_operator_files(path / "final").state_dict() for path in (undisturbed, folder))
    assert all(value.dtype == torch.float32 for value in half.values())
    name = "network.pos_embed"
    assert not half[name].equal(one[name])  # or it was float32 after all
    torch.testing.assert_close(half[name], one[name], rtol=0, atol=2e-2)


def test_a_folder_with_a_run_of_another_network_is_refused(data: dict[str, Any], tmp_path: Path) -> None:
    prepare(data, tmp_path)
    prepare(data, tmp_path)  # the same again: nothing to say
    with pytest.raises(ConfigError, match=r"model\.network\.depth: 1 in the folder, 2 asked for"):
        prepare(data, tmp_path, model=MODEL | {"depth": 2})


def order_of_a_stop(folder: Path, steps: int) -> list[str]:
    """What rank 0 does in a run that is asked to stop after so many steps: steps, checkpoints, validations."""
    from pretrain import train

    events: list[str] = []
    true_save, true_step = train.save, train.train_step

    def save(run: Any, done: int) -> None:
        events.append(f"save {done}")
        true_save(run, done)

    def step(run: Any, batches: Any, number: int, stop: bool) -> Any:
        events.append(f"step {number}, asked to stop" if stop else f"step {number}")
        return true_step(run, batches, number, stop)

    train.save, train.train_step = save, step  # type: ignore[assignment]
    train.validate = lambda _, __, checkpoint, *___: events.append(f"validate {checkpoint.name}")  # type: ignore
    assert watched(folder, steps).status == "preempted"
    return events


def test_a_request_to_stop_saves_before_all_else(data: dict[str, Any], tmp_path: Path) -> None:
    """A validation could outlast the time that is left. Here the checkpoint of step 3 waits for one."""
    folder = prepare(data, tmp_path, validation_trajectories=1)
    events = run_in_ranks(order_of_a_stop, 2, folder, 4)[0]
    assert events[events.index("step 3, asked to stop") :] == ["step 3, asked to stop", "save 4"]
