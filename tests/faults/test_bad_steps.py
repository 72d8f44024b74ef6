"""Steps that cannot be taken: agreed on by all ranks, recorded so that they can be computed again, and left behind."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.base.errors import DataError
from data_pipeline.base.files import read_json
from launch.cli import main
from pretrain.comparison import read_run
from pretrain.incidents import rollbacks
from pretrain.model.operator import load_operator_files
from pretrain.replay import replay
from tests.rank_group import run_in_ranks
from tests.training import STEPS, Watched, prepare, watched

BATCH, MICRO = 8, 2


def spoil(folder: Path, bad: Sequence[int], where: str) -> None:
    """Let samples at these positions give no number, as a fault in the hardware or in the data would, unless another
    micro-batch stands in for theirs."""
    from pretrain.objective import DenoisingObjective

    true_forward = DenoisingObjective.forward

    def forward(self: DenoisingObjective, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss, samples = true_forward(self, batch)
        replaced = read_run(folder).replaced
        hit = torch.tensor([p in bad and p // MICRO not in replaced for p in batch.position.tolist()])
        if not hit.any():
            return loss, samples
        if where == "gradient":
            loss.register_hook(lambda gradient: gradient * torch.inf)
            return loss, samples
        return loss * torch.nan, torch.where(hit, torch.nan, samples)

    DenoisingObjective.forward = forward  # type: ignore[method-assign]


def spoilt(folder: Path, bad: Sequence[int], where: str, steps: int | None) -> Watched:
    spoil(folder, bad, where)
    return watched(folder, steps)


def incident(folder: Path, step: int) -> dict[str, Any]:
    content: dict[str, Any] = read_json(folder / "incidents" / f"step-{step:08d}" / "incident.json")
    return content


@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2, 3))])
def test_one_sample_without_a_number_costs_one_step(data: dict[str, Any], tmp_path: Path, stage: int) -> None:
    folder = prepare(data, tmp_path, zero_stage=stage, steps=4, log_every=1)
    position = BATCH + 2 * MICRO + 1  # step 1, a micro-batch of rank 0
    seen = run_in_ranks(spoilt, 2, folder, [position], "loss", None)
    assert [each.status for each in seen] == ["finished", "finished"]
    assert [loss == loss for loss in seen[1].losses] == [True, False, True, True]
    assert all(value.isfinite().all() for value in load_operator_files(folder / "final").state_dict().values())
    record = incident(folder, 1)
    assert record["positions"] == [position]
    assert record["samples"][0]["dataset"] in ("first", "second")
    assert rollbacks(folder) == []
    # The step left no trace: the optimizer has taken one fewer.
    state = read_json(folder / "checkpoints" / "step-00000004" / "manifest.json")["state"]
    assert [kind["counters"] for kind in state] == [{"step": 3.0}]


@pytest.mark.slow
def test_a_gradient_without_a_number_is_no_step_either(data: dict[str, Any], tmp_path: Path) -> None:
    for stage in (0, 2):
        folder = prepare(data, tmp_path / str(stage), zero_stage=stage, steps=3)
        run_in_ranks(spoilt, 2, folder, [BATCH], "gradient", None)
        record = incident(folder, 1)
        assert record["reason"] == "the gradient is not finite"
        assert record["positions"] == list(range(BATCH, 2 * BATCH))  # it may be any of them
        assert all(value.isfinite().all() for value in load_operator_files(folder / "final").state_dict().values())


def test_after_some_in_a_row_the_run_goes_back_and_on_with_other_samples(data: dict[str, Any], tmp_path: Path) -> None:
    bad = [step * BATCH for step in (4, 5, 6)]
    folder = prepare(data, tmp_path / "whole", patience=3)
    seen = run_in_ranks(spoilt, 2, folder, bad, "loss", None)
    assert seen[0].status == "finished"
    replaced = [position // MICRO for position in bad]
    assert rollbacks(folder) == [
        {"from_step": 7, "to_step": 3, "micro_batches": replaced, "positions": bad},
    ]
    assert read_run(folder).replaced == tuple(replaced)
    assert len(seen[0].losses) == 7 + STEPS - 3
    # Interrupted after it went back, it goes on to the same weights.
    parts = prepare(data, tmp_path / "parts", patience=3)
    run_in_ranks(spoilt, 2, parts, bad, "loss", 9)
    run_in_ranks(spoilt, 2, parts, bad, "loss", None)
    final = Path("final", "model.safetensors")
    assert (parts / final).read_bytes() == (folder / final).read_bytes()


def test_a_row_of_bad_steps_that_is_interrupted_is_one_row(data: dict[str, Any], tmp_path: Path) -> None:
    bad = [step * BATCH for step in (4, 5, 6)]
    folder = prepare(data, tmp_path, patience=3)
    run_in_ranks(spoilt, 2, folder, bad, "loss", 6)  # two of the three
    assert rollbacks(folder) == []
    assert run_in_ranks(spoilt, 2, folder, bad, "loss", None)[0].status == "finished"
    assert rollbacks(folder) == [
        {"from_step": 7, "to_step": 6, "micro_batches": [bad[2] // MICRO], "positions": bad},
    ]


@pytest.mark.slow
def test_a_run_that_would_go_back_for_ever_fails(data: dict[str, Any], tmp_path: Path) -> None:
    folder = prepare(data, tmp_path, patience=2, max_rollbacks=1, learning_rate=1e30, clip=0, warmup=0)
    with pytest.raises(DataError, match=r"(?s)2 steps in a row could not be taken.*after 1 roll-backs.*replay"):
        run_in_ranks(watched, 2, folder, None)
    assert len(rollbacks(folder)) == 1
    assert not (folder / "final").exists()


def test_an_incident_can_be_computed_again(
    data: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A bound so tight that the loss's own ups and downs break it.
    folder = prepare(data, tmp_path, steps=40, max_loss_ratio=1.01, patience=50, checkpoint_every=20)
    run_in_ranks(watched, 2, folder, None)
    found = [path for path in sorted((folder / "incidents").iterdir()) if (path / "model.safetensors").exists()]
    assert 1 <= len(found) <= 5
    for path in found:
        again = replay(path)
        assert all(row["again"] == pytest.approx(float(row["loss"]), rel=1e-4) for row in again.rows)
        assert not again.broken
    command = read_json(found[0] / "incident.json")["command"]
    assert command == f"pdepot replay {found[0]}"
    capsys.readouterr()
    assert main(command.split()[1:]) == 0
    assert "losses are as they were; the gradient is finite\n" in capsys.readouterr().out
    # Noise is drawn on the device, so another kind of it gives other losses though nothing is wrong.
    file = found[0] / "incident.json"
    file.write_text(json.dumps(read_json(file) | {"device": "another GPU"}))
    assert "computed on another GPU, where noise is other than on cpu" in replay(found[0]).text


def test_a_full_disk_costs_the_record_of_a_bad_step_and_not_the_run(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
from pathlib import Path
from types import SimpleNamespace
import torch
from pretrain.incidents import record_incident
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
mixture, model = SimpleNamespace(replaced=(), datasets=[]), SimpleNamespace(model_dump=lambda mode: {})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
record_incident(Path(sys.argv[1]), 3, "the loss is not finite", [], mixture, model, {"weight": torch.zeros(10000)})
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "could not be recorded" in done.stdout
    assert list((tmp_path / "incidents").iterdir()) == []
