"""What a rank holds of the optimised parameters and of their optimizer's state, under every ZeRO stage alike.

A fragment is a stretch of one parameter, laid out flat, in float32. ZeRO cuts parameters into fragments where its
partitions end; without ZeRO (stage 0) a fragment is a whole parameter, which all ranks hold. Named by parameter and
first element, fragments mean the same for every number of ranks and every stage: that is what lets a checkpoint go on
elsewhere. This is the one file that knows DeepSpeed's inner names.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """A stretch of a parameter that this rank updates.

    Attributes:
        name: the parameter's, in the module.
        start: its first element's number in the parameter, laid out flat.
        values: (N,) float32, the master weights themselves: a view, which changes with every step.
        owner: what the optimizer keeps its state under.
        offset: where in the owner, laid out flat, the fragment begins.
    """

    name: str
    start: int
    values: Tensor
    owner: Tensor
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.values.numel()

    def cut(self, state: Tensor) -> Tensor:
        """The fragment's part (N,) of a state tensor of its owner: a view."""
        return state.view(-1).narrow(0, self.offset, self.size)


def inner_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer below DeepSpeed's wrapping, if it is wrapped."""
    optimizer = engine.optimizer
    inner: torch.optim.Optimizer = optimizer.optimizer if engine.zero_optimization_stage() else optimizer
    return inner


def fragments(engine: Any) -> list[Fragment]:
    """The fragments of this rank, in the order of the module's parameters; frozen parameters have none."""
    stage = engine.zero_optimization_stage()
    cut = {0: _whole, 1: _in_partition, 2: _in_partition, 3: _in_shards}[stage]
    found = []
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            found += list(cut(engine.optimizer, name, parameter))
    return found


def release(engine: Any) -> None:
    """End an engine and give its weights and optimizer state back at once, so that the next one of this process need
    not fit beside them: its parts refer to one another, and DeepSpeed's caches hold those of stage 3 for good."""
    parameters = list(engine.module.parameters())
    held = {*parameters, *(fragment.owner for fragment in fragments(engine))}
    held |= {parameter.ds_tensor for parameter in parameters if hasattr(parameter, "ds_tensor")}
    states = inner_optimizer(engine).state.values()
    held |= {value for state in states for value in state.values() if isinstance(value, Tensor)}
    engine.destroy()
    for tensor in held:
        tensor.untyped_storage().resize_(0)


def _whole(_: Any, name: str, parameter: nn.Parameter) -> Iterator[Fragment]:
    yield Fragment(name, 0, parameter.data.view(-1), parameter, 0)


def _in_partition(optimizer: Any, name: str, parameter: Any) -> Iterator[Fragment]:
    """Stages 1 and 2: each group of parameters is one flat tensor, of which each rank has one stretch."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return  # all of it lies in other ranks' partitions
    flat = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    start, offset = mapping.lp_fragment_address.start, mapping.hp_fragment_address.start
    yield Fragment(name, start, flat.data.narrow(0, offset, mapping.hp_fragment_address.numel), flat, offset)


def _in_shards(optimizer: Any, name: str, parameter: Any) -> Iterator[Fragment]:
    """Stage 3: each parameter is cut into as many equal shards as there are ranks; the last ones may be padding."""
    group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    start = torch.distributed.get_rank() * size
    real = min(size, parameter.ds_numel - start)
    if real > 0:
        flat = optimizer.fp32_partitioned_groups_flat[group]
        yield Fragment(name, start, flat.data.narrow(0, offset, real), flat, offset)


def state_keys(owner: Tensor, state: Mapping[str, Any]) -> list[str]:
    """Names, in order, of the tensors in an optimizer's state that are as long as what they belong to (`exp_avg`)."""
    return sorted(
        key
        for key, value in state.items()
        if isinstance(value, Tensor) and value.numel() == owner.numel() and value.dim() > 0
    )


def full_weights(engine: Any, wanted: bool) -> dict[str, Tensor]:
    """All parameters and buffers of the module as float32 tensors; empty where `wanted` is false.

    Collective under ZeRO-3, whose ranks hold a shard of each parameter: gathered one at a time.
    """
    import deepspeed

    sharded = engine.zero_optimization_stage() == 3
    result: dict[str, Tensor] = {}
    for name, value in engine.module.state_dict(keep_vars=True).items():
        with deepspeed.zero.GatheredParameters([value], enabled=sharded and hasattr(value, "ds_id")):
            if wanted:
                result[name] = value.detach().clone() if sharded else value.detach()
    return result
