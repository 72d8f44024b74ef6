"""Optimizers on real ranks: every ZeRO stage does what torch does on whole parameters, Muon as well as Adam."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError
from pretrain.config import PretrainConfig, TrainingConfig
from pretrain.engine import deepspeed_config
from pretrain.fragments import Fragment, fragments, full_weights, inner_optimizer
from pretrain.muon import orthogonal
from pretrain.optimizers import connect, make_optimizer
from pretrain.schedules import set_rates
from tests.operators import make_operator
from tests.rank_group import run_in_ranks

STEPS, SAMPLES = 4, 6  # samples of one update, over all ranks


def training(optimizer: str, **changes: Any) -> TrainingConfig:
    # The epsilon keeps Adam from dividing rounding errors by rounding errors.
    fixed = {
        "steps": STEPS,
        "learning_rate": 1e-2,
        "epsilon": 1e-4,
        "weight_decay": 0.1,
        "batch_size": SAMPLES,
        "clip": 0,
    }
    return build(TrainingConfig, fixed | {"optimizer": optimizer} | changes)


def network() -> nn.Module:
    """Two blocks whose matrices are wide, tall and complex, and none of whose sizes a rank's partition ends at."""
    return make_operator(network={"depth": 2, "mlp_ratio": 1.5}).network


def loss(module: nn.Module, step: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """Of this rank's share of the samples of a step."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(2, SAMPLES, 16, 16, 3, 2, generator=generator).chunk(ranks, dim=1)[rank]
    return (module(x) - y[..., :1, :]).square().mean()


def plainly(optimizer: str, **changes: Any) -> dict[str, Tensor]:
    """Weights after training without DeepSpeed, on one rank."""
    module, config = network(), training(optimizer, **changes)
    chosen = make_optimizer(config, module.named_parameters())
    if optimizer == "muon":
        chosen.connect(whole_parameters(module), False, torch.device("cpu"))  # type: ignore[attr-defined]
    for step in range(STEPS):
        set_rates(chosen.param_groups, config, step)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)  # as DeepSpeed: what has no part in the loss decays, too
        loss(module, step).backward()
        chosen.step()
    return {name: value.detach() for name, value in module.state_dict().items()}


def whole_parameters(module: nn.Module) -> list[Any]:
    """Fragments as at stage 0, of a module without an engine."""

    class Engine:
        optimizer = None

        @staticmethod
        def zero_optimization_stage() -> int:
            return 0

    Engine.module = module  # type: ignore[attr-defined]
    return fragments(Engine)


def after_training(
    runs: Sequence[tuple[str, int]],
) -> list[tuple[dict[str, Tensor], dict[tuple[str, int], Tensor]]]:
    """On each rank: weights after training with each optimizer and stage, and this rank's parts of Muon's momentum."""
    import deepspeed

    results = []
    for optimizer, stage in runs:
        module, config = network(), training(optimizer, zero_stage=stage)
        settings = deepspeed_config(config, dist.get_world_size(), 1000) | {
            "train_micro_batch_size_per_gpu": SAMPLES // dist.get_world_size(), "gradient_accumulation_steps": 1,
            "zero_allow_untested_optimizer": True,
        }  # fmt: skip
        settings.pop("optimizer", None)
        chosen = make_optimizer(config, module.named_parameters())
        engine, *_ = deepspeed.initialize(model=module, optimizer=chosen, config=settings, dist_init_required=False)
        connect(engine)
        for step in range(STEPS):
            set_rates(engine.optimizer.param_groups, config, step)
            engine.backward(loss(engine, step, dist.get_rank(), dist.get_world_size()))
            engine.step()
        state = inner_optimizer(engine).state
        momentum = {
            (part.name, part.start): part.cut(state[part.owner]["momentum_buffer"]).clone()
            for part in fragments(engine)
            if "momentum_buffer" in state[part.owner]
        }
        results.append((full_weights(engine, wanted=True), momentum))
    return results


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.slow
def test_all_stages_do_what_one_process_does() -> None:
    runs = [("adamw", 1), ("adam", 2), ("adam", 3), *(("muon", stage) for stage in range(4))]
    expected = {optimizer: plainly(optimizer) for optimizer in ("adamw", "adam", "muon")}
    assert not torch.equal(expected["muon"]["blocks.1.filter.w1"], expected["adamw"]["blocks.1.filter.w1"])
    for rank in run_in_ranks(after_training, 2, runs):
        for (optimizer, _), (weights, _) in zip(runs, rank, strict=True):
            assert_close(weights, expected[optimizer])


@pytest.mark.slow
def test_muons_momentum_is_one_figure_for_each_weight_wherever_it_lies() -> None:
    """Which is what lets a checkpoint go on with other ranks and another stage."""
    ranks = run_in_ranks(after_training, 3, [("muon", 0), ("muon", 1), ("muon", 3)])
    (_, whole), *_ = ranks[0]
    assert {name for name, _ in whole} == MATRICES
    for stage in (1, 2):
        pieces: dict[str, list[tuple[int, Tensor]]] = {}
        for rank in ranks:
            for (name, start), values in rank[stage][1].items():
                pieces.setdefault(name, []).append((start, values))
        assert any(len(found) > 1 for found in pieces.values())  # some matrix is cut
        for name in MATRICES:
            joined = torch.cat([values for _, values in sorted(pieces[name], key=lambda piece: piece[0])])
            torch.testing.assert_close(joined, whole[name, 0], rtol=1e-4, atol=1e-7)


MATRICES = {
    f"blocks.{block}.{name}" for block in (0, 1) for name in ("mlp.0.weight", "mlp.2.weight", "filter.w1", "filter.w2")
}


def test_muon_takes_the_blocks_matrices_and_nothing_else() -> None:
    module = network()
    first, second = make_optimizer(training("muon"), module.named_parameters()).param_groups
    name_of = {parameter: name for name, parameter in module.named_parameters()}
    assert {name_of[p] for p in first["params"]} == MATRICES
    assert {name_of[p] for p in second["params"]} == set(name_of.values()) - MATRICES


@pytest.mark.parametrize("decoupled", [True, False])
def test_adam_is_torchs_with_the_configured_figures(decoupled: bool) -> None:
    config = training("adamw" if decoupled else "adam", betas=(0.8, 0.9), epsilon=1e-5)
    module = network()
    module.head_frozen = nn.Parameter(torch.zeros(1), requires_grad=False)  # type: ignore[assignment]
    made = make_optimizer(config, module.named_parameters())
    assert type(made) is (torch.optim.AdamW if decoupled else torch.optim.Adam)
    (group,) = made.param_groups
    assert group["params"] == [p for p in module.parameters() if p.requires_grad]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (1e-2, (0.8, 0.9), 1e-5, 0.1)


def test_weight_decay_of_adam_goes_through_the_gradient() -> None:
    """Coupled, a weight without any other gradient moves by the learning rate; decoupled, by a share of itself."""
    moved = {}
    for kind in ("adam", "adamw"):
        weight = nn.Parameter(torch.tensor([2.0]))
        optimizer = make_optimizer(training(kind), [("w", weight)])
        weight.grad = torch.zeros(1)
        optimizer.step()
        moved[kind] = 2 - weight.item()
    assert moved == pytest.approx({"adam": 1e-2, "adamw": 2 * 0.1 * 1e-2}, rel=1e-3)


@pytest.mark.parametrize("shape", [(24, 16, 1, 1), (16, 24, 1), (32, 32, 1, 1, 1)])
def test_an_update_has_singular_values_alike_and_the_size_of_adams(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    momentum = torch.randn(shape) * 1e-6
    update = orthogonal(momentum)
    assert update.shape == shape
    values = torch.linalg.svdvals(update.flatten(1)) / (0.2 * max(shape) ** 0.5)
    assert values.min() > 0.6
    assert values.max() < 1.3
    u, _, v = torch.linalg.svd(momentum.flatten(1), full_matrices=False)
    exact = 0.2 * max(shape) ** 0.5 * (u @ v)
    assert nn.functional.cosine_similarity(update.flatten(), exact.flatten(), dim=0) > 0.98
    torch.testing.assert_close(orthogonal(1e4 * momentum), update, rtol=1e-4, atol=1e-5)  # has no unit


def test_a_complex_matrix_becomes_unitary_for_each_head() -> None:
    torch.manual_seed(0)
    momentum = torch.randn(2, 3, 16, 16)
    momentum[:, 1] *= 1e-5  # a head of small gradients learns at the pace of the others
    update = orthogonal(momentum)
    heads = torch.complex(update[0], update[1])
    values = torch.linalg.svdvals(heads) / (0.2 * 32**0.5)
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_a_step_follows_the_momentum_and_looks_ahead_along_it() -> None:
    module, config = network(), training("muon")
    name, weight = "blocks.0.filter.w1", module.blocks[0].filter.w1  # type: ignore[union-attr, index]
    optimizer = make_optimizer(config, [(name, weight)])
    optimizer.connect([Fragment(name, 0, weight.data.view(-1), weight, 0)], False, torch.device("cpu"))  # type: ignore[attr-defined]
    first, second = torch.randn(2, *weight.shape)
    weight.grad = first
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = second
    optimizer.step()
    momentum = 0.95 * first + second
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], momentum)
    expected = before * (1 - 1e-2 * 0.1) - 1e-2 * orthogonal(second + 0.95 * momentum)
    torch.testing.assert_close(weight.detach(), expected)


def test_a_gradient_of_zeros_gives_no_update() -> None:
    assert not orthogonal(torch.zeros(8, 8, 1, 1)).any()


def test_what_has_no_gradient_stays() -> None:
    """As it is with a step that is not to be taken."""
    module, config = network(), training("muon")
    optimizer = make_optimizer(config, module.named_parameters())
    optimizer.connect(whole_parameters(module), False, torch.device("cpu"))  # type: ignore[attr-defined]
    loss(module, 0).backward()
    optimizer.step()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    optimizer.zero_grad()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_muon_without_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="Muon has no matrix"):
        make_optimizer(training("muon"), [("head.weight", nn.Parameter(torch.zeros(4, 4)))])
    job = {
        "name": "x", "output": "x", "data": {"datasets": [{"config": "x.yaml"}]},
        "model": {
            "library": "neuraloperator", "architecture": "FNO", "arguments": {"n_modes": [4], "hidden_channels": 8},
        },
        "training": {"steps": 1, "optimizer": "muon"},
    }  # fmt: skip
    with pytest.raises(ConfigError, match="use adamw with a baseline"):
        build(PretrainConfig, job)
