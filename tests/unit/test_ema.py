"""The average of the weights is the plain formula's, under every ZeRO stage."""

import pytest
import torch
from torch import Tensor

from pretrain.ema import WeightAverage
from pretrain.fragments import full_weights
from tests.rank_group import run_in_ranks
from tests.stages import engine_of, one_step

DECAY, STEPS, RANKS = 0.3, 4, 2  # at the third step it is the decay that counts, no longer the step's number


def averaged(stages: list[int]) -> list[tuple[dict[str, Tensor], dict[tuple[str, int], Tensor]]]:
    """For each stage: the plain formula on whole weights, and what this rank has of the average."""
    results = []
    for stage in stages:
        engine = engine_of(stage)
        average = WeightAverage(engine, DECAY)
        plain = {name: value.clone() for name, value in full_weights(engine, wanted=True).items()}
        for step in range(STEPS):
            one_step(engine, step)
            average.update(step)
            kept = min(DECAY, (1 + step) / (10 + step))
            for name, value in full_weights(engine, wanted=True).items():
                plain[name] = kept * plain[name] + (1 - kept) * value
        results.append((plain, {(part.name, part.start): values.clone() for part, values in average.pieces()}))
    return results


@pytest.mark.slow
def test_the_average_is_the_plain_formulas_at_every_stage() -> None:
    plain, whole = run_in_ranks(averaged, 1, [0])[0][0]
    trained = {name for name, _ in whole}
    assert "pos_embed" not in trained
    size = sum(plain[name].numel() for name in trained)
    ranks = run_in_ranks(averaged, RANKS, [0, 1, 2, 3])
    for stage in range(4):
        found = 0
        for rank in ranks:
            for (name, start), values in rank[stage][1].items():
                expected = plain[name].flatten()[start : start + values.numel()]
                torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
                found += values.numel()
        assert found == size * (RANKS if stage == 0 else 1)
