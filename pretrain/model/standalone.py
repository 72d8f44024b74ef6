"""The operator as a program of its own, for one dataset: what `pretrain.export` writes."""

import copy
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from pretrain.model.operator import Operator

Item = TypeVar("Item")


class DatasetOperator(nn.Module):
    """A copy of an operator for one dataset: takes and gives the dataset's own channels, and its own parameters.

    Products of weights alone are computed when it is made, and are constants.
    """

    slots: Tensor
    channel_of_slot: Tensor
    parameter_of_column: Tensor

    def __init__(self, operator: Operator, dataset: str, device: str) -> None:
        super().__init__()
        self.operator = copy.deepcopy(operator).to(device).eval().requires_grad_(False)
        self.folded = _owned(self.operator.fold(operator.grid(dataset)))
        self.row, slots = operator.dataset_index(dataset), operator.slots(dataset)
        self.register_buffer("slots", torch.tensor(slots))
        self.register_buffer("channel_of_slot", torch.tensor(_places(range(len(operator.config.channels)), slots)))
        columns = _places(operator.config.parameters, parameters_of(operator, dataset))
        self.register_buffer("parameter_of_column", torch.tensor(columns, dtype=torch.int64))
        self.to(device)

    def forward(self, history: Tensor, parameters: Tensor | None = None) -> Tensor:
        """(B, *grid, frames_in, C) and, where the dataset has any, (B, P) -> (B, *grid, frames_out, C)."""
        rows = torch.full((history.shape[0],), self.row, dtype=torch.int64, device=history.device)
        # What a dataset lacks stands behind what it has: zeros for a slot, NaN for a parameter.
        padded = torch.cat([history, torch.zeros_like(history[..., :1])], dim=-1)
        if parameters is not None:
            unknown = torch.full_like(parameters[:, :1], float("nan"))
            parameters = torch.cat([parameters, unknown], dim=-1).index_select(-1, self.parameter_of_column)
        frames = self.operator(padded.index_select(-1, self.channel_of_slot), rows, parameters, self.folded)
        return cast(Tensor, frames.index_select(-1, self.slots))


def parameters_of(operator: Operator, dataset: str) -> tuple[str, ...]:
    """The PDE parameters of a dataset that the operator is told."""
    carried = operator.config.datasets[operator.dataset_index(dataset)].parameters
    return tuple(name for name in carried if name in operator.config.parameters)


def _owned(value: Any) -> Any:
    """A copy whose tensors share no memory, with weights or with one another."""
    if isinstance(value, Tensor):
        return value.clone(memory_format=torch.contiguous_format)
    if isinstance(value, tuple):
        return tuple(_owned(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _owned(getattr(value, field.name)) for field in fields(value)})
    return value


def _places(wanted: Sequence[Item], known: Sequence[Item]) -> list[int]:
    """Where each of `wanted` stands in `known`; behind its end where it does not."""
    return [known.index(w) if w in known else len(known) for w in wanted]
