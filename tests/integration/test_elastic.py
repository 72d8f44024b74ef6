"""A run goes on with other numbers of ranks and other ZeRO stages: the same samples, the same losses to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pretrain.run import read_status
from tests.training import STEPS, Watched, prepare, stream, train_in_ranks


@pytest.fixture(scope="module")
def undisturbed(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Watched]]:
    folder = prepare(data, tmp_path_factory.mktemp("undisturbed"), ema=0.9, clip_quantile=0.5, clip_window=4)
    return folder, train_in_ranks(folder, 2)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([(1, 2, 4), (0, 1, 4), (2, 4, 4)], id="2-1-4 ranks, stages 1-0-2"),
        pytest.param(
            [(3, 2, 3), (1, 4, 2), (3, 1, 4), (0, 2, 3)], id="2-4-1-2 ranks, stages 3-1-3-0", marks=pytest.mark.slow
        ),
        pytest.param([(2, 4, 5), (3, 2, 7)], id="4-2 ranks, stages 2-3", marks=pytest.mark.slow),
    ],
)
def test_ranks_and_stages_may_change(
    data: dict[str, Any], undisturbed: tuple[Path, list[Watched]], tmp_path: Path,
    parts: list[tuple[int, int, int]],
) -> None:  # fmt: skip
    losses: list[float] = []
    positions: list[list[int]] = []
    for stage, ranks, steps in parts:
        folder = prepare(data, tmp_path, ema=0.9, clip_quantile=0.5, clip_window=4, zero_stage=stage, ranks=ranks)
        seen = train_in_ranks(folder, ranks, steps)
        losses += seen[0].losses
        positions += stream(seen)
    assert seen[0].status == "finished"
    assert len(losses) == STEPS
    assert positions == stream(undisturbed[1])
    torch.testing.assert_close(losses, undisturbed[1][0].losses, rtol=1e-6, atol=1e-6)
    for name, value in weights(undisturbed[0]).items():
        torch.testing.assert_close(weights(folder)[name], value, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 2)), 3])
def test_the_same_ranks_go_on_to_the_same_bits(data: dict[str, Any], tmp_path: Path, stage: int) -> None:
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    options: dict[str, Any] = {"ema": 0.9, "clip_quantile": 0.5, "clip_window": 4, "zero_stage": stage, "steps": 6}
    train_in_ranks(prepare(data, whole, **options), 2)
    for steps in (1, 3, None):
        seen = train_in_ranks(prepare(data, parts, **options), 2, steps)
    assert seen[0].status == "finished"
    final = Path("pretrain", "final", "model.safetensors")
    assert (parts / final).read_bytes() == (whole / final).read_bytes()
    # The average is what is published, not the weights.
    assert (whole / final).read_bytes() != (
        whole / "pretrain" / "checkpoints" / "step-00000006" / final.name
    ).read_bytes()
    assert read_status(whole / "pretrain")[0] is None  # it is the process that trains that writes it
