"""Objectives on real ranks: the same losses for every number of ranks and every ZeRO stage."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.config import ObjectiveConfig, TrainingConfig
from pretrain.engine import make_engine
from pretrain.objective import DenoisingObjective
from tests.operators import make_operator
from tests.rank_group import run_in_ranks
from tests.unit.test_objective import batch_for

STEPS, SAMPLES = 3, 4
OBJECTIVES: dict[str, dict[str, Any]] = {
    "push_forward": {"rollout_steps": 3, "rollout_gradient": "push_forward", "rollout_random": True},
    "truncated": {"rollout_steps": 2, "rollout_gradient": "truncated"},
    "lead": {"max_lead": 4},
}


def losses(stage: int, objective: dict[str, Any]) -> list[float]:
    """Of every step, a mean over all ranks; a micro-batch is one sample."""
    operator = make_operator(space=(8, 8), network={"conditions": 7} if "max_lead" in objective else {})
    training = TrainingConfig(
        steps=STEPS, batch_size=SAMPLES, micro_batch=1, zero_stage=stage, learning_rate=1e-2, precision="bfloat16"
    )
    rank, ranks = dist.get_rank(), dist.get_world_size()
    module = DenoisingObjective(operator, ObjectiveConfig(noise=0.1, **objective), seed=1, batch_size=SAMPLES)
    engine, whole, found = make_engine(module, training, ranks), batch_for(operator, 3, size=SAMPLES), []
    if "max_lead" in objective:
        whole = replace(whole, window=whole.window[:, :-2], lead=torch.tensor([4, 1, 3, 2]))
    for step in range(STEPS):
        total = torch.zeros(())
        for row in range(rank, SAMPLES, ranks):
            tensors = {k: v[row : row + 1] for k, v in vars(whole).items() if isinstance(v, Tensor)}
            batch = replace(whole, **tensors | {"position": torch.tensor([step * SAMPLES + row])})
            loss, _ = engine(batch)
            engine.backward(loss)
            engine.step()
            total += loss.detach() / SAMPLES
        dist.all_reduce(total)
        found.append(total.item())
    engine.destroy()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_ranks_and_stages_agree(name: str) -> None:
    (alone,) = run_in_ranks(losses, 1, 0, OBJECTIVES[name])
    for stage in (0, 3):
        for found in run_in_ranks(losses, 2, stage, OBJECTIVES[name]):
            assert found == pytest.approx(alone, rel=1e-4)
    assert len(set(alone)) == STEPS
