"""DeepSpeed at every ZeRO stage, on two and four ranks, computes what a bare loop of plain PyTorch does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.comparison import read_run
from pretrain.model.operator import Operator, load_operator_files
from pretrain.objective import DenoisingObjective
from pretrain.run import freeze, read_cache
from pretrain.schedule import open_needed, run_mixture
from pretrain.schedules import set_rates
from pretrain.setup import frames_out, make_loader
from tests.training import prepare, train_in_ranks

STEPS = 5
OPTIONS: dict[str, Any] = {"steps": STEPS, "clip": 0.5, "weight_decay": 0.1, "learning_rate": 1e-2, "log_every": 1}


def plain(folder: Path) -> tuple[list[float], Operator]:
    """Train the run in one process with torch alone; the losses, and what it has learned."""
    config = read_run(folder)
    training = config.training
    operator = load_operator_files(folder / "initial")
    freeze(operator, None)
    mixture = run_mixture(config, config.history + frames_out(config, operator))
    objective = DenoisingObjective(operator, config.objective, config.seed)
    parameters = [p for p in operator.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=training.weight_decay)
    stores, count, losses = open_needed(config, 0, read_cache(folder)), training.batch_size // training.micro_batch, []
    with make_loader(config, mixture, stores, operator, 0, rank=0, world_size=1) as batches:
        for step in range(STEPS):
            set_rates(optimizer.param_groups, training, step)
            parts = []
            for _ in range(count):
                loss, samples = objective(next(batches))
                (loss / count).backward()
                parts.append(samples)
            torch.nn.utils.clip_grad_norm_(parameters, training.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(torch.cat(parts).mean()))
    return losses, operator


@pytest.fixture(scope="module")
def expected(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Operator]:
    return plain(prepare(data, tmp_path_factory.mktemp("plain"), **OPTIONS))


@pytest.mark.parametrize(
    ("stage", "ranks"),
    [
        (stage, ranks) if (stage, ranks) in {(1, 4), (3, 2)} else pytest.param(stage, ranks, marks=pytest.mark.slow)
        for stage in (0, 1, 2, 3)
        for ranks in (2, 4)
    ],
)
def test_every_stage_computes_what_plain_torch_does(
    data: dict[str, Any], tmp_path: Path, expected: tuple[list[float], Operator], stage: int, ranks: int
) -> None:
    folder = prepare(data, tmp_path, zero_stage=stage, ranks=ranks, **OPTIONS)
    losses, operator = expected
    torch.testing.assert_close(train_in_ranks(folder, ranks)[0].losses, losses, rtol=2e-6, atol=1e-6)
    found = load_operator_files(folder / "final").state_dict()
    for name, value in operator.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        (1, {"offload_optimizer": {"device": "cpu"}}),
        (3, {"offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"}}),
    ],
    ids=["optimizer", "optimizer and parameters"],
)
def test_offloading_computes_the_same_and_goes_on(
    data: dict[str, Any], tmp_path: Path, expected: tuple[list[float], Operator],
    stage: int, more: dict[str, Any],
) -> None:  # fmt: skip
    options = OPTIONS | {"zero_stage": stage, "ranks": 2, "deepspeed": {"zero_optimization": more}}
    losses: list[float] = []
    for steps in (2, None):
        folder = prepare(data, tmp_path, **options)
        losses += train_in_ranks(folder, 2, steps)[0].losses
    torch.testing.assert_close(losses, expected[0], rtol=2e-6, atol=1e-6)
    found = load_operator_files(folder / "final").state_dict()
    for name, value in expected[1].state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)
