"""Channel slots: by field name, or anonymous as published; slots that a dataset lacks tell the network nothing."""

import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.loader import Loader, mixture_of
from finetune.adapt import adapt
from finetune.train import _channels
from pretrain.evaluate import evaluate
from pretrain.job import channel_slots
from pretrain.model import DatasetScaling, Operator
from tests.operator_fakes import MemoryStore, travelling_waves
from tests.operators import make_operator

FLOW, HEIGHT = ("velocity", "density"), ("height",)


def known(name: str, channels: tuple[str, ...]) -> DatasetScaling:
    n = len(channels)
    return DatasetScaling(
        name=name, channels=channels, mean=(0.0,) * n, std=(1.0,) * n, change_rms=(1.0,) * n, dt=0.5
    )  # fmt: skip


def operator_for(slots: str) -> Operator:
    channels = ("density", "velocity", "height") if slots == "named" else ("channel_1", "channel_2", "channel_3")
    datasets = (known("flow", FLOW), known("pond", HEIGHT))
    return make_operator(channels, space=(8, 8), slots=slots, datasets=datasets, predict="state")


def entering(operator: Operator, x: Tensor, dataset: Tensor) -> Tensor:
    """What the network sees."""
    seen: list[Tensor] = []
    hook = operator.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    operator(x, dataset)
    hook.remove()
    return seen[0]


def test_named_slots_follow_names_and_anonymous_ones_the_datasets_order() -> None:
    assert operator_for("named").slots("flow") == [1, 0]
    assert operator_for("named").slots("pond") == [2]
    assert operator_for("anonymous").slots("flow") == [0, 1]
    assert operator_for("anonymous").slots("pond") == [0]


@pytest.mark.parametrize("slots", ["named", "anonymous"])
def test_a_store_with_its_fields_in_another_order_fills_the_same_slots(slots: str) -> None:
    operator = operator_for(slots)
    assert operator.slots("flow", FLOW[::-1]) == operator.slots("flow")[::-1]


def test_a_field_without_a_slot_is_refused() -> None:
    for slots in ("named", "anonymous"):
        with pytest.raises(ConfigError, match=r"(?s)'flow'.*pressure.*velocity, pressure.*velocity, density"):
            operator_for(slots).slots("flow", ("velocity", "pressure"))
    with pytest.raises(ValueError, match="flow has fields"):
        make_operator(("velocity", "height"), datasets=(known("flow", FLOW),))
    with pytest.raises(ValueError, match="more fields than there are slots, 1"):
        make_operator(("channel_1",), slots="anonymous", datasets=(known("flow", FLOW),))


@pytest.mark.parametrize(("slots", "padding"), [("named", 0.0), ("anonymous", 1.0)])
def test_the_network_sees_padding_whatever_stands_in_slots_that_a_dataset_lacks(slots: str, padding: float) -> None:
    operator, dataset = operator_for(slots), torch.tensor([0, 1])
    x = torch.randn(2, 8, 8, 3, 3)
    x[0, ..., 2] = float("nan")
    seen = entering(operator, x, dataset)
    for row, name in enumerate(("flow", "pond")):
        own = operator.slots(name)
        for slot in range(3):
            expected = x[row, ..., slot] if slot in own else torch.full_like(seen[row, ..., slot], padding)
            assert torch.equal(seen[row, ..., slot], expected)


def store(name: str, channels: tuple[str, ...]) -> MemoryStore:
    fields = travelling_waves(frames=8)[..., : len(channels)]
    return MemoryStore(fields, name=name, channels=channels)


def test_the_loader_fills_the_operators_slots() -> None:
    stores, operator = [store("flow", FLOW), store("pond", HEIGHT)], operator_for("anonymous")
    with Loader(
        stores, mixture_of(stores, [1, 1], 3, 1, 0, batch_size=8, micro_batch=8),
        slots=[operator.slots(s.info.name) for s in stores], num_channels=3, history=3, target=1, rank=0,
        world_size=1, first_step=0, shift=False, seed=0,
    ) as loader:  # fmt: skip
        batch = next(loader)
    assert batch.dataset.unique().tolist() == [0, 1]
    for row, mask in zip(batch.dataset.tolist(), batch.channel_mask.tolist(), strict=True):
        assert mask == [[True, True, False], [True, False, False]][row]
    assert batch.history[..., 0].abs().sum((1, 2, 3)).all()
    assert not batch.history[..., 2].any()


def test_an_evaluation_reads_and_scores_the_anonymous_slots() -> None:
    operator = operator_for("anonymous")
    torch.nn.init.zeros_(operator.network.out_layer[4].weight)
    with torch.no_grad():
        operator.network.out_layer[4].bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    found = evaluate(operator, store("flow", FLOW[::-1]), limit=1)
    truth = torch.from_numpy(travelling_waves(frames=8)[:1, 3:])
    for channel, constant, name in ((1, 1.0, "velocity"), (0, 2.0, "density")):
        true = truth[..., channel]
        assert found.per_channel[name] == pytest.approx(((constant - true).norm() / true.norm()).item(), rel=1e-5)


def test_a_job_has_as_many_anonymous_slots_as_its_widest_dataset_has_fields() -> None:
    stores = [store("flow", FLOW), store("pond", HEIGHT)]
    assert channel_slots(stores, "anonymous") == ("channel_1", "channel_2")
    assert channel_slots(stores, "named") == ("velocity", "density", "height")


def test_fine_tuning_keeps_anonymous_slots_and_what_is_in_them() -> None:
    old = operator_for("anonymous")
    channels = _channels(old, [store("pond", HEIGHT)])
    assert channels == old.config.channels
    new = adapt(old, [known("pond", HEIGHT)], channels, (8, 8), {})
    x = torch.randn(2, 8, 8, 3, 3)
    assert torch.equal(new(x, torch.tensor([0, 0])), old(x, torch.tensor([1, 1])))
    assert _channels(operator_for("named"), [store("pond", HEIGHT)]) == HEIGHT
    assert len(_channels(old, [store("wide", ("a", "b"))])) == 3
