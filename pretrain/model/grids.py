"""Several grids under one network: the grid that it is built for, and how it sees fields of fewer axes.

A network whose position table is interpolated (`resize_position`) takes every grid that its patches cover. Fields of
fewer spatial axes than it has are constant along the axes they lack, which stand last: they are repeated to one patch
along each, so that the network works on one latent cell there, and its prediction is averaged over them. An axis of
one point counts as one that is lacking.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from data_pipeline.base.errors import ConfigError
from data_pipeline.trajectory import DatasetInfo

Grid = tuple[int, ...]


def lifted_grid(space: Sequence[int], axes: int, patch: int) -> Grid:
    """The grid on which a network of `axes` axes and patches of `patch` points sees fields on the grid `space`."""
    return tuple(patch if n == 1 else n for n in _with_all_axes(space, axes))


def network_grid(spaces: Sequence[Sequence[int]], patch: int, axes: int | None = None) -> Grid:
    """The grid to build a network for: the largest of `spaces` along each axis, with `axes` axes or as many as any."""
    rank = axes or max(map(len, spaces))
    return tuple(map(max, zip(*(lifted_grid(space, rank, patch) for space in spaces), strict=True)))


def check_grids(infos: Sequence[DatasetInfo], patch: int, axes: int, *, resizable: bool) -> None:
    """Raise ConfigError unless one network takes the grids of all datasets.

    Args:
        infos: the datasets.
        patch: points of a patch along each axis.
        axes: spatial axes of the network.
        resizable: the network takes several grids (`resize_position`).
    """
    for info in infos:
        if len(info.space) > axes:
            raise ConfigError(
                f"dataset {info.name!r} has more spatial axes than the model", key="space", found=info.space,
                expected=f"at most {axes} axes",
            )  # fmt: skip
        if any(n % patch for n in lifted_grid(info.space, axes, patch)):
            raise ConfigError(
                f"the patches do not cover the grid of dataset {info.name!r}", key="model.patch_size", found=patch,
                expected=f"a divisor of every axis of {info.space}",
            )  # fmt: skip
    if not resizable and len({lifted_grid(info.space, axes, patch) for info in infos}) > 1:
        raise ConfigError(
            "the datasets of the mixture differ in their grids, and the model takes one", key="model.resize_position",
            found=", ".join(f"{info.name} {'x'.join(map(str, info.space))}" for info in infos),
            expected="one grid for all, or a model whose position table is interpolated to others",
            remedy="set model.resize_position: true (before pretraining; baselines have no such option), "
                   "or train on the datasets of one grid",
        )  # fmt: skip


def on_lifted_grid(network: Callable[[Tensor], Tensor], x: Tensor, grid: Grid) -> Tensor:
    """Apply a network to fields of fewer axes.

    Args:
        network: (B, *grid, T_in, C) -> (B, *grid, T_out, C).
        x: (B, *space, T_in, C).
        grid: `lifted_grid` of `space`.

    Returns:
        (B, *space, T_out, C).
    """
    space = x.shape[1:-2]
    if tuple(space) == grid:
        return network(x)
    padded = _with_all_axes(space, len(grid))
    y = network(x.reshape(len(x), *padded, *x.shape[-2:]).expand(-1, *grid, -1, -1))
    y = y.mean([axis for axis, n in enumerate(padded, start=1) if n == 1])
    return y.reshape(len(y), *space, *y.shape[-2:])


def _with_all_axes(space: Sequence[int], axes: int) -> Grid:
    return (*space, *(1,) * (axes - len(space)))
