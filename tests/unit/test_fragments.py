"""What each rank holds: all ranks' fragments make every parameter once, and are the weights themselves."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.checkpoint import Checkpoints, find_newest, restore
from pretrain.fragments import fragments, full_weights, inner_optimizer, release, state_keys
from tests.checkpoints import CONFIG
from tests.rank_group import run_in_ranks
from tests.stages import engine_of, one_step

RANKS = 2


def held(stages: list[int]) -> list[tuple[list[tuple[str, int, Tensor]], dict[str, Tensor], set[str]]]:
    """This rank's fragments after some steps, the whole weights, and the names of what is trained."""
    results = []
    for stage in stages:
        engine = engine_of(stage)
        parts = fragments(engine)  # before the steps: the values follow them
        for step in range(2):
            one_step(engine, step)
        for part in parts:
            assert part.cut(part.owner.data).data_ptr() == part.values.data_ptr()
        weights = {name: value.clone() for name, value in full_weights(engine, wanted=True).items()}
        assert full_weights(engine, wanted=False) == {}
        trained = {name for name, value in engine.module.named_parameters() if value.requires_grad}
        results.append(([(part.name, part.start, part.values.clone()) for part in parts], weights, trained))
    return results


@pytest.fixture(scope="module")
def ranks() -> list[Any]:
    return run_in_ranks(held, RANKS, [0, 1, 2, 3])


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_fragments_of_all_ranks_make_every_parameter(ranks: list[Any], stage: int) -> None:
    _, weights, trained = ranks[0][stage]
    covered = {name: torch.zeros(weights[name].numel()) for name in trained}
    assert "pos_embed" not in trained
    for rank in ranks:
        for name, start, values in rank[stage][0]:
            assert values.numel() > 0
            covered[name][start : start + values.numel()] += 1
            assert torch.equal(weights[name].flatten()[start : start + values.numel()], values)
    times = RANKS if stage == 0 else 1
    assert all((each == times).all() for each in covered.values())
    if stage:
        assert any(start for rank in ranks for _, start, _ in rank[stage][0]), "no parameter was cut"


def test_whole_weights_are_the_same_under_every_stage(ranks: list[Any]) -> None:
    for stage in (1, 2, 3):
        for name, value in ranks[0][0][1].items():
            torch.testing.assert_close(ranks[1][stage][1][name], value, rtol=1e-4, atol=1e-6)


def there_and_back(folder: Any, moves: list[tuple[str, int, int]]) -> list[tuple[str, list[str]]]:
    """Optimizer, stage before and stage after; differences between going on and having gone on, and state kept."""
    outcomes = []
    for number, (optimizer, before, after) in enumerate(moves):
        operator: Any = SimpleNamespace(config=CONFIG)
        engine = engine_of(before, optimizer)
        for step in range(2):
            one_step(engine, step)
        checkpoints = Checkpoints(folder / str(number), "this", keep=2)
        checkpoints.begin(engine, operator, 2, "that", {})
        checkpoints.finish()
        found = find_newest(folder / str(number), "this", lambda _: ["that"])
        assert found is not None
        fresh = engine_of(after, optimizer)
        load_weights(fresh, engine)
        restore(found, fresh)
        for each in (engine, fresh):
            one_step(each, 2)
        one, other = (
            {name: value.clone() for name, value in full_weights(each, wanted=True).items()}
            for each in (engine, fresh)
        )  # fmt: skip
        problem = [n for n, value in one.items() if not torch.allclose(other[n], value, rtol=1e-5, atol=1e-6)]
        checkpoints.begin(fresh, operator, 3, "that", {})  # and again, with the counters that were restored
        checkpoints.finish()
        inner = inner_optimizer(fresh)
        kinds = {",".join(state_keys(owner, state)) for owner, state in inner.state.items()}
        outcomes.append((", ".join(problem), sorted(kinds)))
        dist.barrier()
    return outcomes


def load_weights(engine: Any, source: Any) -> None:
    """Give the master weights of one engine those of another."""
    weights = {name: value.clone() for name, value in full_weights(source, wanted=True).items()}
    for part in fragments(engine):
        part.values.copy_(weights[part.name].flatten()[part.start : part.start + part.size])
    if engine.zero_optimization_stage() in (1, 2):
        for name, parameter in engine.module.named_parameters():
            parameter.data.copy_(weights[name])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimizers_state_goes_on_at_any_stage(tmp_path: Any, optimizer: str) -> None:
    """Muon keeps other things of matrices than of the rest."""
    moves = [(optimizer, 0, 1), (optimizer, 1, 2), (optimizer, 2, 0), (optimizer, 3, 1)]
    for outcomes in run_in_ranks(there_and_back, RANKS, tmp_path, moves):
        assert [problem for problem, _ in outcomes] == [""] * len(moves)
        expected = {"exp_avg,exp_avg_sq"} | ({"momentum_buffer"} if optimizer == "muon" else set())
        assert all(set(kinds) - {""} == expected for _, kinds in outcomes)


def left_behind(stages: list[int]) -> list[int]:
    """Bytes of weights and optimizer states that are still there once the engine has been released."""
    found = []
    for stage in stages:
        engine = engine_of(stage)
        for step in range(2):
            one_step(engine, step)
        tensors: list[Tensor] = [*engine.module.parameters(), *(part.owner for part in fragments(engine))]
        tensors += [p.ds_tensor for p in engine.module.parameters() if hasattr(p, "ds_tensor")]
        states = inner_optimizer(engine).state.values()
        tensors += [value for state in states for value in state.values() if isinstance(value, Tensor)]
        assert sum(tensor.untyped_storage().nbytes() for tensor in tensors) > 0
        release(engine)
        found.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
    return found


def test_a_released_engine_holds_nothing() -> None:
    """Else the next one, after a roll-back, would have to fit beside it on the GPU."""
    assert run_in_ranks(left_behind, RANKS, [0, 1, 2, 3]) == [[0, 0, 0, 0]] * RANKS
