"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) for the blocks' matrices, at every ZeRO stage.

The momentum of a matrix is replaced by the nearest matrix with orthonormal rows or columns, so that all directions are
learned at one pace. Updates are scaled to the RMS that AdamW's have (Liu et al. 2025, arXiv 2502.16982), hence one
learning rate and one weight decay serve both.

Which parameters: the products from latent channels to latent channels in the blocks, that is the MLP's two matrices
and the complex matrix of each head in both layers of the spectral mixer. All else is AdamW's: what has no matrix
(norms, biases, frequencies), and what has the fields, positions or frames on one side (stem, table of positions,
temporal aggregation, head, conditions), where rows are not alike and one pace for all would be wrong.

ZeRO cuts matrices across ranks. Momentum is kept where its part of the matrix is, a figure for each weight. In a step
the parts are put together on all ranks, and each one orthogonalises the matrices of which it has a part. Every rank
and stage thus works on the same numbers, and a checkpoint may go on with other ranks and stages.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data_pipeline.base.errors import ConfigError
from pretrain.fragments import Fragment

_MATRICES = re.compile(r"(^|\.)blocks\.\d+\.(mlp\.\d+\.weight|filter\.w[12])$")
_MOMENTUM = 0.95
_ADAM_RMS = 0.2  # of AdamW's updates, in units of the learning rate
# Coefficients of the published iteration: singular values come to about 1 in five rounds, from 0.01 and more.
_ROUNDS, _A, _B, _C = 5, 3.4445, -4.7750, 2.0315


class Muon(torch.optim.AdamW):
    """AdamW, with another update for the first group of parameters."""

    def __init__(self, named_parameters: Sequence[tuple[str, nn.Parameter]], **settings: Any) -> None:
        """
        Args:
            named_parameters: all that are trained, whole.
            settings: AdamW's.

        Raises:
            ConfigError: there is no matrix among them.
        """
        matrices = {name: p for name, p in named_parameters if _MATRICES.search(name)}
        others = [p for name, p in named_parameters if name not in matrices]
        if not matrices:
            raise ConfigError(
                "Muon has no matrix to train", key="training.optimizer", found="muon",
                expected="a DPOT network whose blocks are trained", remedy="use optimizer: adamw",
            )  # fmt: skip
        self._shapes = {name: tuple(p.shape) for name, p in matrices.items()}
        self._parts: list[Fragment] | None = None
        self._partitioned, self._device = False, torch.device("cpu")
        groups = [{"params": list(matrices.values()), "muon": True}, {"params": others, "muon": False}]
        super().__init__([group for group in groups if group["params"]], **settings)

    def connect(self, fragments: Iterable[Fragment], partitioned: bool, device: torch.device) -> None:
        """Say which parts of the matrices this rank updates.

        Args:
            fragments: of all parameters that this rank updates.
            partitioned: whether other ranks have other parts, or all of them have all.
            device: the network's, where matrices are put together; their parts may be offloaded from it.

        Raises:
            ConfigError: the matrices do not lie in one partition.
        """
        self._parts = [part for part in fragments if part.name in self._shapes]
        self._partitioned, self._device = partitioned, device
        if partitioned and len({id(part.owner) for part in self._parts}) > 1:
            raise ConfigError(
                "Muon needs all matrices in one partition", key="training.deepspeed.zero_optimization.sub_group_size",
                remedy="set it to more than the number of weights",
            )  # fmt: skip

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of what has a gradient. Collective where matrices are partitioned."""
        groups = self.param_groups
        for group in groups:
            if group["muon"]:
                self._step_matrices(group)
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            return cast("float | None", super().step(closure))
        finally:
            self.param_groups = groups

    def _step_matrices(self, group: dict[str, Any]) -> None:
        assert self._parts is not None, "connect() comes before the first step"
        directions = {owner: self._direction(owner) for owner in group["params"] if owner.grad is not None}
        if not directions:  # the turn of another group, or nothing to do
            return
        parts = [part for part in self._parts if part.owner in directions]
        whole = self._whole([(part, part.cut(directions[part.owner])) for part in parts])
        for owner in directions:
            owner.mul_(1 - group["lr"] * group["weight_decay"])
        for part in parts:
            update = orthogonal(whole[part.name].view(self._shapes[part.name])).reshape(-1)
            values = part.cut(part.owner)
            values.sub_(update.narrow(0, part.start, part.size).to(values.device), alpha=group["lr"])

    def _direction(self, owner: Tensor) -> Tensor:
        """Nesterov's look ahead along the momentum; shaped like `owner`."""
        state, gradient = self.state[owner], cast(Tensor, owner.grad)
        if not state:
            state["momentum_buffer"] = torch.zeros_like(owner)
        momentum: Tensor = state["momentum_buffer"].mul_(_MOMENTUM).add_(gradient)
        return gradient.add(momentum, alpha=_MOMENTUM)

    def _whole(self, parts: Sequence[tuple[Fragment, Tensor]]) -> dict[str, Tensor]:
        """Every matrix, laid out flat, from the ranks' parts."""
        if not self._partitioned:
            return {part.name: values for part, values in parts}
        sizes = [torch.Size(shape).numel() for shape in self._shapes.values()]
        everything = torch.zeros(sum(sizes), device=self._device)
        whole = dict(zip(self._shapes, torch.split(everything, sizes), strict=True))
        for part, values in parts:
            whole[part.name].narrow(0, part.start, part.size).copy_(values)
        dist.all_reduce(everything)  # exact: all ranks but one add zeros
        return whole


def orthogonal(momentum: Tensor) -> Tensor:
    """The update for a weight: its momentum made orthogonal, of RMS 0.2 where that succeeds.

    Args:
        momentum: (out, in, 1, ...), the weights of a convolution of one point; or (2, heads, n, n), the real and the
            imaginary part of a complex matrix for each head.

    Returns:
        A tensor of the same shape.
    """
    if momentum.shape[-1] == 1:
        return _orthogonal(momentum.flatten(1)).reshape(momentum.shape)
    # The complex matrix as a real one of twice the size, whose products are those of the complex one.
    real, imaginary = momentum
    size = real.shape[-1]
    wide = torch.cat([torch.cat([real, imaginary], -1), torch.cat([-imaginary, real], -1)], -2)
    return torch.stack(_orthogonal(wide)[:, :size].chunk(2, dim=-1))


def _orthogonal(matrix: Tensor) -> Tensor:
    """(..., m, n) -> its polar factor, roughly, times 0.2 sqrt(max(m, n)); zeros stay zeros."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Tensor = matrix.mT if tall else matrix
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-30)
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return (x.mT if tall else x) * (_ADAM_RMS * sqrt(max(matrix.shape[-2:])))
