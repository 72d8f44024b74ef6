"""One network for several grids and for fields of one, two and three axes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.loader import Batch
from data_pipeline.trajectory import DatasetInfo
from pretrain.config import ObjectiveConfig, TrainingConfig
from pretrain.evaluate import evaluate
from pretrain.execution import apply_execution, check_execution
from pretrain.export import export_operator
from pretrain.exported import load_exported
from pretrain.model import DatasetScaling, Operator, OperatorConfig, load_operator_files, save_operator
from pretrain.model.conditions import BOUNDARIES, condition_count, dataset_features
from pretrain.model.grids import check_grids, lifted_grid, network_grid
from pretrain.objective import DenoisingObjective
from pretrain.registry import _signature
from pretrain.rollout import rollout_block
from pretrain.serving_model import ServedOperator
from tests.operator_fakes import MemoryStore
from tests.operators import make_operator

SPACES = ((32,), (24, 16), (8, 8, 8))
LARGEST = (32, 16, 8)
T_IN = 3


def mixed_operator(spaces: tuple[tuple[int, ...], ...] = SPACES, axes: int = 3, **options: Any) -> Operator:
    """Knows the datasets `line`, `plane` and `box`, as many as there are `spaces`; none has the network's grid."""
    datasets = tuple(
        DatasetScaling(
            name=name,
            channels=("a", "b"),
            mean=(2.0, -1.0),
            std=(1.5, 0.5),
            change_rms=(0.5, 0.1),
            dt=0.5,
            boundaries=("wall",) * len(space),
            space=space,
        )
        for name, space in zip(("line", "plane", "box"), spaces, strict=False)
    )
    network: dict[str, Any] = {"resize_position": True, "conditions": condition_count(axes, 0)}
    network |= options.pop("network", {})
    operator = make_operator(
        "ab", space=network_grid(spaces, 4, axes), datasets=datasets, network=network, **options
    )  # fmt: skip
    for parameter in operator.parameters():
        if not parameter.any():  # conditions start at zero
            torch.nn.init.normal_(parameter, std=0.1)
    return operator


def history(space: tuple[int, ...], samples: int = 2) -> Tensor:
    return 2 + torch.randn(samples, *space, T_IN, 2, generator=torch.Generator().manual_seed(samples))


def test_missing_axes_and_axes_of_one_point_take_one_patch() -> None:
    assert lifted_grid((32,), 3, 4) == lifted_grid((32, 1, 1), 3, 4) == (32, 4, 4)
    assert lifted_grid((32, 16), 2, 8) == (32, 16)
    assert network_grid(SPACES, 4) == LARGEST
    assert network_grid([(32,), (64,)], 8) == (64,)
    assert network_grid([(32,)], 8, axes=2) == (32, 8)


@pytest.mark.parametrize("predict", ["state", "change"])
@pytest.mark.parametrize("normalisation", ["none", "mean_std", "rms", "sample"])
@pytest.mark.parametrize(("row", "space"), [(0, (32,)), (1, (24, 16))])
def test_a_field_of_fewer_axes_is_one_that_is_constant_along_the_others(
    predict: str, normalisation: str, row: int, space: tuple[int, ...]
) -> None:
    operator = mixed_operator(predict=predict, normalisation=normalisation)
    x, rows, missing = history(space), torch.tensor([row, row]), 3 - len(space)
    wide = x.reshape(2, *space, *(1,) * missing, T_IN, 2).expand(2, *space, *(4,) * missing, T_IN, 2)
    y = operator(x, rows)
    expected = operator(wide, rows).mean(tuple(range(1 + len(space), 4)))
    torch.testing.assert_close(y, expected)
    assert y.shape == (2, *space, 1, 2)
    one_point = operator(x.reshape(2, *space, *(1,) * missing, T_IN, 2), rows)
    torch.testing.assert_close(one_point, y.reshape(2, *space, *(1,) * missing, 1, 2))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 2), st.lists(st.integers(1, 6), min_size=1, max_size=2), st.integers(0, 99))
def test_samples_on_a_lifted_grid_do_not_touch_each_other(samples: int, cells: list[int], seed: int) -> None:
    operator = mixed_operator(normalisation="sample")
    space = tuple(4 * n for n in cells)
    x = torch.randn(samples + 1, *space, T_IN, 2, generator=torch.Generator().manual_seed(seed))
    rows = torch.full((samples + 1,), len(space) - 1)
    torch.testing.assert_close(operator(x, rows)[:1], operator(x[:1], rows[:1]), rtol=1e-4, atol=1e-5)


def batch(space: tuple[int, ...], row: int) -> Batch:
    x = history(space)
    return Batch.of(
        history=x, target=x[..., -1:, :] + 0.1, channel_mask=torch.ones(2, 2, dtype=torch.bool),
        dataset=torch.tensor([row, row]), dt=torch.ones(2), parameters=torch.empty(2, 0), position=torch.arange(2),
    )  # fmt: skip


@pytest.mark.parametrize("recompute", [False, True])
def test_every_grid_gives_every_weight_a_gradient_and_in_one_order(recompute: bool) -> None:
    # Ranks reduce gradients as they come: in another order on another grid, they would add up different weights.
    operator = mixed_operator()
    operator.network.recompute_blocks = recompute
    objective = DenoisingObjective(operator, ObjectiveConfig(), seed=0)
    trained = {name: p for name, p in operator.named_parameters() if ".cls_head." not in name}
    order: list[str] = []
    for name, parameter in trained.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    found = []
    for row, space in [*enumerate(SPACES), (1, (8, 8)), (2, LARGEST)]:
        order.clear()
        objective(batch(space, row))[0].backward()
        found.append(tuple(order))
        assert set(order) == set(trained)
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
        assert trained["network.pos_embed"].grad.any()
        operator.zero_grad()
    assert len(set(found)) == 1


def test_a_rollout_on_each_grid_feeds_itself() -> None:
    operator = mixed_operator().eval()
    for row, space in enumerate(SPACES):
        x, rows = history(space), torch.tensor([row, row])
        block = rollout_block(operator, x, rows, 3)
        with torch.inference_mode():
            for step in range(3):
                y = operator(x, rows)
                torch.testing.assert_close(block[:, step], y[..., 0, :])
                x = torch.cat([x[..., 1:, :], y], dim=-2)


@pytest.mark.parametrize(
    ("space", "dataset", "taken"),
    [
        ((32,), "line", True), ((64,), "line", True), ((32, 1), "line", False), ((32, 1, 1), "line", True),
        ((30,), "line", False), ((0,), "line", False), ((32, 16), "line", False), ((32,), "plane", False),
        ((24, 16), "plane", True), ((24, 16, 1), "plane", True), ((24, 16, 4), "plane", False),
        ((8, 8, 8), "box", True), ((8, 8), "box", False),
    ],
)  # fmt: skip
def test_a_dataset_has_its_own_number_of_axes(space: tuple[int, ...], dataset: str, taken: bool) -> None:
    operator = mixed_operator()
    assert operator.takes_grid(space, dataset) is taken
    x, rows = torch.zeros(1, *space, T_IN, 2), torch.tensor([operator.dataset_index(dataset)])
    if taken:
        assert rollout_block(operator, x, rows, 1).shape == (1, 1, *space, 2)
    else:
        with pytest.raises(ConfigError, match=rf"(?s)for dataset '{dataset}'.*key: history"):
            rollout_block(operator, x, rows, 1)


def test_a_network_that_takes_one_grid_takes_the_field_lifted_to_it() -> None:
    operator = mixed_operator(((32,),), axes=2, network={"resize_position": False})
    assert operator.config.network.space == (32, 4)
    assert operator.takes_grid((32,), "line")
    assert not operator.takes_grid((64,), "line")
    assert _signature(operator.config).inputs.inputs[0].shape == (-1, -1, -1, T_IN, 2)


def test_axes_that_fields_lack_are_periodic_if_boundaries_are_known() -> None:
    kinds = np.array(dataset_features(1.0, ("wall",), 3)[1:]).reshape(3, len(BOUNDARIES))
    assert [BOUNDARIES[row.argmax()] for row in kinds] == ["wall", "periodic", "periodic"]
    assert not any(dataset_features(1.0, (), 3))


def test_what_is_saved_knows_the_grids_and_files_of_before_are_read(tmp_path: Path) -> None:
    operator = mixed_operator()
    save_operator(operator, tmp_path)
    loaded = load_operator_files(tmp_path)
    assert loaded.grids == set(SPACES)
    x, rows = history((32,)), torch.tensor([0, 0])
    assert torch.equal(loaded(x, rows), operator(x, rows))
    old = make_operator().config.model_dump(mode="json")
    del old["datasets"][0]["space"]
    assert Operator(OperatorConfig.model_validate(old)).grid("toy") == (16, 16)


def test_a_grid_with_more_axes_than_the_network_is_refused() -> None:
    box = mixed_operator().config.datasets[2]
    with pytest.raises(ValueError, match=r"box has the grid \(8, 8, 8\), more axes than the network's"):
        make_operator("ab", space=(16, 16), datasets=(box,))


def test_evaluation_takes_each_dataset_on_its_grid() -> None:
    operator = mixed_operator()
    for name, space in zip(("line", "plane", "box"), SPACES, strict=True):
        fields = np.random.default_rng(0).normal(size=(3, 5, *space, 2))
        store = MemoryStore(fields, name=name, channels=("a", "b"))
        one, three = (evaluate(operator, store, batch_size=size) for size in (1, 3))
        assert (one.dataset, one.diverged, one.frames) == (name, 0, 2)
        assert one.relative_l2 == pytest.approx(three.relative_l2, rel=1e-5)


def test_an_exported_file_has_its_datasets_grid(tmp_path: Path) -> None:
    operator = mixed_operator()
    file = tmp_path / "line.pt2"
    assert export_operator(operator, file, "torch", "line") <= 1e-5
    exported = load_exported(file)
    assert (exported.description.grid, exported.description.boundaries) == ((32,), ("wall",))
    x = history((32,), 3)
    torch.testing.assert_close(exported(x), operator(x, torch.zeros(3, dtype=torch.int64)).detach())


def test_a_served_operator_takes_missing_axes_as_one_point() -> None:
    served = ServedOperator()
    served.device, served.operator = "cpu", mixed_operator().eval()
    x = history((32,))
    y = served.predict(None, x.reshape(2, 32, 1, 1, T_IN, 2).numpy(), {"dataset": "line", "steps": 2})
    assert y.shape == (2, 32, 1, 1, 2, 2)
    expected = rollout_block(served.operator, x, torch.tensor([0, 0]), 2).movedim(1, -2)
    torch.testing.assert_close(torch.from_numpy(y).reshape(expected.shape), expected)
    assert _signature(served.operator.config).inputs.inputs[0].shape == (-1, -1, -1, -1, T_IN, 2)


def info(name: str, space: tuple[int, ...]) -> DatasetInfo:
    n = len(space)
    return DatasetInfo(
        name=name, channels=("a",), space=space, frames=9, dt=1, axes=("x", "y", "z")[:n], extent=((0.0, 1.0),) * n,
        boundaries=("open",) * n,
    )  # fmt: skip


def test_several_grids_need_a_network_that_takes_them() -> None:
    infos = [info("line", (32,)), info("plane", (24, 16))]
    check_grids(infos, 4, 2, resizable=True)
    check_grids([infos[0], info("lifted", (32, 4))], 4, 2, resizable=False)
    with pytest.raises(ConfigError, match=r"(?s)line 32, plane 24x16.*remedy: set model.resize_position: true"):
        check_grids(infos, 4, 2, resizable=False)
    with pytest.raises(ConfigError, match=r"(?s)grid of dataset 'plane'.*found: 16.*every axis of \(24, 16\)"):
        check_grids(infos, 16, 2, resizable=True)
    with pytest.raises(ConfigError, match="'box' has more spatial axes than the model"):
        check_grids([info("box", (8, 8, 8))], 4, 2, resizable=True)


@pytest.mark.slow
def test_a_network_can_be_compiled_for_more_grids_than_torch_expects() -> None:
    grids = [(4 * n,) for n in range(1, 11)]  # by default torch gives up after eight
    operator = make_operator("ab", space=grids[-1], network={"resize_position": True})
    with torch._dynamo.config.patch(recompile_limit=8):
        apply_execution(operator.network, TrainingConfig(steps=1, compile=True), torch.device("cpu"), len(grids))
        operator.network.compile(fullgraph=True, dynamic=False, backend="eager")  # the tracing alone, which is limited
        for grid in grids:
            assert operator(history(grid), torch.tensor([0, 0])).shape == (2, *grid, 1, 2)


def test_cuda_graphs_are_for_one_grid() -> None:
    training = TrainingConfig(steps=1, compile="cuda_graphs")
    network = mixed_operator().network
    check_execution(training, network, cuda=True, grids=1)
    with pytest.raises(ConfigError, match="CUDA graphs are recorded for one grid"):
        check_execution(training, network, cuda=True, grids=3)
