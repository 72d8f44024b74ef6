"""torch.compile sees the whole network as one graph of real tensors, and changes no weight's name."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.fx import GraphModule

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError
from pretrain.config import TrainingConfig
from pretrain.execution import apply_execution, begin_micro_batch, check_execution
from pretrain.model import Dpot, NetworkConfig

OPTIONS: dict[str, dict[str, Any]] = {
    "1d": {"space": (16,)},
    "2d": {"space": (16, 16)},
    "3d": {"space": (8, 8, 8)},
    "normalize": {"space": (16, 16), "normalize": True},
    "conditions": {"space": (16, 16), "conditions": 3},
    "symmetric": {"space": (16, 16), "mode_truncation": "symmetric", "modes": 2},
}
WAYS = {"plain": (False, False), "recompute": (True, False), "bfloat16": (False, True), "both": (True, True)}


@pytest.fixture(autouse=True)
def _forget_what_was_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network_and_inputs(**options: Any) -> tuple[Dpot, list[Tensor]]:
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "patch_size": 4, "in_channels": 2, "out_channels": 2, "in_timesteps": 3, "width": 16, "depth": 2, "heads": 2,
        "head_width": 8, "modes": 4,
    }  # fmt: skip
    network = Dpot(NetworkConfig(**shape | options))
    inputs = [torch.randn(2, *network.config.space, 3, 2)]
    if network.config.conditions:
        inputs.append(torch.randn(2, network.config.conditions))
    return network, inputs


def gradients(network: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    network(*inputs).square().mean().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("options", OPTIONS)
def test_no_graph_breaks(options: str, way: str) -> None:
    network, inputs = network_and_inputs(**OPTIONS[options])
    network.recompute_blocks, bfloat16 = WAYS[way]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        found = torch._dynamo.explain(network)(*inputs)
    assert (found.graph_break_count, found.graph_count) == (0, 1), found.break_reasons


@pytest.mark.parametrize("way", WAYS)
def test_the_compiled_step_is_the_eager_one(way: str) -> None:
    network, inputs = network_and_inputs(space=(16, 16), normalize=True)
    network.recompute_blocks, bfloat16 = WAYS[way]
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        expected = gradients(network, *inputs)
        network.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        found = gradients(network, *inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= (3e-2 if bfloat16 else 1e-5) * value.norm(), name


@pytest.mark.parametrize("options", OPTIONS)
def test_no_tensor_of_either_pass_is_complex(options: str) -> None:
    dtypes = set()

    def note(graph: GraphModule, _: list[Tensor]) -> Any:
        values = [node.meta.get("val") for node in graph.graph.nodes]
        dtypes.update(value.dtype for value in values if isinstance(value, Tensor))
        return make_boxed_func(graph.forward)

    network, inputs = network_and_inputs(**OPTIONS[options])
    network.compile(fullgraph=True, backend=aot_autograd(fw_compiler=note, bw_compiler=note))
    gradients(network, *inputs)
    assert torch.float32 in dtypes
    assert not any(dtype.is_complex for dtype in dtypes)


def test_what_is_configured_is_applied_and_names_stay() -> None:
    network, _ = network_and_inputs(space=(16, 16))
    names = list(network.state_dict())
    apply_execution(network, TrainingConfig(steps=1), torch.device("cpu"))
    assert (network.recompute_blocks, network._compiled_call_impl) == (False, None)
    apply_execution(network, TrainingConfig(steps=1, compile=True, recompute=True), torch.device("cpu"))
    assert network.recompute_blocks
    assert network._compiled_call_impl is not None
    assert list(network.state_dict()) == names


@pytest.mark.parametrize("key", ["compile", "recompute"])
def test_a_baseline_is_run_as_it_is(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{key}"):
        check_execution(TrainingConfig(steps=1, **{key: True}), nn.Identity(), cuda=True)


def test_cuda_graphs_without_a_gpu_are_refused() -> None:
    network, _ = network_and_inputs(space=(16,))
    training = TrainingConfig(steps=1, compile="cuda_graphs")
    check_execution(training, network, cuda=True)
    with pytest.raises(ConfigError, match=r"(?s)no GPU.*training\.compile=true"):
        check_execution(training, network, cuda=False)


def test_zero_stage_3_cannot_be_compiled() -> None:
    with pytest.raises(ConfigError, match="zero_stage 3 gathers weights"):
        build(TrainingConfig, {"steps": 1, "compile": True, "zero_stage": 3})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("recompute", [False, True])
def test_cuda_graphs_accumulate_the_gradients_of_micro_batches(recompute: bool) -> None:
    network, _ = network_and_inputs(space=(16, 16))
    network.cuda()
    batches = [torch.randn(2, 16, 16, 3, 2, device="cuda") for _ in range(12)]
    training = TrainingConfig(steps=1, compile="cuda_graphs", recompute=recompute)

    def accumulated() -> list[list[Tensor]]:
        """Gradients of each step of three micro-batches, over several steps: recorded, then replayed."""
        found = []
        for start in range(0, len(batches), 3):
            network.zero_grad()
            for batch in batches[start : start + 3]:
                begin_micro_batch(training)
                network(batch).square().mean().backward()
            found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        return found

    begin_micro_batch(TrainingConfig(steps=1))  # without CUDA graphs there is nothing to do
    expected = accumulated()
    apply_execution(network, training, torch.device("cuda"))
    for one, two in zip(expected, accumulated(), strict=True):
        for a, b in zip(one, two, strict=True):
            assert (a - b).norm() <= 1e-3 * a.norm()
