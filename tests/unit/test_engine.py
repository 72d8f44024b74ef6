"""DeepSpeed made ready: on which device, and with how much memory of its own."""

from typing import Any

import pytest
import torch

from pretrain.config import TrainingConfig
from pretrain.engine import deepspeed_config, device_type
from pretrain.job import number_of_ranks
from tests.rank_group import run_in_ranks
from tests.stages import engine_of, one_step


def test_deepspeed_and_torch_agree_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingConfig(steps=1, batch_size=64, micro_batch=8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    assert (device_type(), number_of_ranks(training)) == ("cuda", 8)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert (device_type(), number_of_ranks(training)) == ("cpu", 2)


def test_the_users_own_bucket_wins() -> None:
    own = {"zero_optimization": {"reduce_bucket_size": 7}}
    training = TrainingConfig(steps=1, batch_size=64, micro_batch=8, zero_stage=2, deepspeed=own)
    assert deepspeed_config(training, 1, 100)["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 7}


def largest_buffers(stages: list[int]) -> list[tuple[int, int]]:
    """For each stage the number of weights, and of elements in the largest empty tensor of two steps."""
    found = []
    for stage in stages:
        engine, sizes, true_empty = engine_of(stage), [0], torch.empty

        def empty(*size: Any, sizes: list[int] = sizes, true_empty: Any = true_empty, **settings: Any) -> torch.Tensor:
            made: torch.Tensor = true_empty(*size, **settings)
            sizes.append(made.numel())
            return made

        torch.empty = empty  # type: ignore[assignment]
        try:
            for step in range(2):
                one_step(engine, step)
        finally:
            torch.empty = true_empty
        found.append((sum(parameter.numel() for parameter in engine.module.parameters()), max(sizes)))
    return found


def test_what_deepspeed_takes_for_itself_goes_with_the_network() -> None:
    """Its own default would be 2 GB of every GPU."""
    for weights, largest in run_in_ranks(largest_buffers, 2, [1, 2])[0]:
        assert 0 < largest <= 2 * weights
