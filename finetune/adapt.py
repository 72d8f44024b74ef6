"""A pretrained operator made ready for new datasets: other channels, another grid. Nothing is dropped in silence."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from data_pipeline.base.errors import ConfigError, nearest
from pretrain.model.baseline import Baseline, BaselineConfig
from pretrain.model.conditions import condition_count, parameter_union
from pretrain.model.config import NetworkConfig
from pretrain.model.dpot import Dpot, resize
from pretrain.model.operator import DatasetScaling, Operator, OperatorConfig
from pretrain.model.reference import load_weights


def adapt(
    pretrained: Operator,
    datasets: Sequence[DatasetScaling],
    channels: Sequence[str],
    space: Sequence[int],
    start_from: Mapping[str, str],
    *,
    condition: bool = False,
) -> Operator:
    """An operator for new datasets that starts from pretrained weights.

    Every weight is the pretrained one, with these exceptions: the stem's filters and the head's last rows are those
    of the pretrained channel that each new channel starts from, the position embedding is interpolated when the grid
    is another one, and what a network is told of parameters that it has not met changes nothing before it is trained.

    Args:
        pretrained: the operator to start from.
        datasets: the new datasets.
        channels: the new channel slots.
        space: the new grid.
        start_from: new channel -> pretrained channel, as far as the user says.
        condition: let time step, boundaries and parameters condition a network that was pretrained without. Its new
            weights are drawn from torch's global generator, and have no effect before they are trained.

    Raises:
        ConfigError: a channel in `start_from` does not exist, or the new grid does not fit the patches. A baseline is
            asked to take other channels or conditions.
    """
    origin = match_channels(channels, pretrained.config.channels, start_from)
    if isinstance(pretrained.network, Baseline):
        baseline = pretrained.network.config
        _check_unchanged(baseline, origin, pretrained.config.channels, condition)
        return _with_weights_kept(pretrained, baseline, datasets, space)
    old = pretrained.network.config
    _check_grid(old, space)
    parameters: tuple[str, ...] = ()
    if condition or old.conditions:
        parameters = parameter_union([pretrained.config.parameters, *(dataset.parameters for dataset in datasets)])
    network = old.model_copy(
        update={
            "space": tuple(space),
            "conditions": condition_count(len(space), len(parameters)) if condition or old.conditions else 0,
            "in_channels": len(channels),
            "out_channels": len(channels),
            "stem_width": len(pretrained.network.state_dict()["patch_embed.proj.0.bias"]),
        }
    )
    config = pretrained.config.model_copy(
        update={
            "network": network,
            "channels": tuple(channels),
            "datasets": tuple(datasets),
            "parameters": parameters,
        }
    )
    operator = Operator(config)
    assert isinstance(operator.network, Dpot)
    slots = [pretrained.config.channels.index(origin[channel]) for channel in channels]
    load_weights(operator.network, _adapted_weights(pretrained.network, slots, operator.network))
    return operator


def match_channels(new: Sequence[str], old: Sequence[str], start_from: Mapping[str, str]) -> dict[str, str]:
    """The pretrained channel that each new channel starts from: the user's word, else its namesake, else in turn."""
    for key, value in start_from.items():
        if key not in new:
            raise ConfigError(
                "no such channel in the data", key=f"adapt.channels.{key}", remedy=nearest(key, list(new))
            )
        if value not in old:
            raise ConfigError(
                "no such channel in the pretrained model", key=f"adapt.channels.{key}", found=value,
                remedy=nearest(value, list(old)),
            )  # fmt: skip
    origin = {c: start_from.get(c, c) for c in new if c in start_from or c in old}
    free = [c for c in old if c not in origin.values()] or list(old)
    rest = [c for c in new if c not in origin]
    return origin | {channel: free[i % len(free)] for i, channel in enumerate(rest)}


def from_scratch(operator: Operator, seed: int) -> Operator:
    """The same network with fresh weights: what fine-tuning is to be compared with."""
    torch.manual_seed(seed)
    return Operator(OperatorConfig.model_validate(operator.config.model_dump()))


def _check_unchanged(old: BaselineConfig, origin: Mapping[str, str], channels: Sequence[str], condition: bool) -> None:
    if condition or list(origin.items()) != [(channel, channel) for channel in channels]:
        raise ConfigError(
            f"only DPOT networks are adapted to other channels or conditions, and the model is a {old.architecture}",
            key="adapt", found=f"channels {', '.join(origin)}" + (", condition" if condition else ""),
            expected=f"the pretrained channels {', '.join(channels)}, in this order",
            remedy="fine-tune a DPOT network, or train this baseline on the new data from the start",
        )  # fmt: skip


def _with_weights_kept(
    pretrained: Operator, old: BaselineConfig, datasets: Sequence[DatasetScaling], space: Sequence[int]
) -> Operator:
    """The same weights for new datasets, perhaps on another grid: a neural operator's weights belong to none."""
    network = old.model_copy(update={"space": tuple(space)})
    operator = Operator(pretrained.config.model_copy(update={"network": network, "datasets": tuple(datasets)}))
    load_weights(operator.network, pretrained.network.state_dict())
    return operator


def _check_grid(old: NetworkConfig, space: Sequence[int]) -> None:
    if len(space) != len(old.space):
        raise ConfigError(
            "the pretrained model has another number of spatial axes", key="space", found=tuple(space),
            expected=f"{len(old.space)} axes",
        )  # fmt: skip
    if any(n % old.patch_size for n in space):
        raise ConfigError(
            "the patches of the pretrained model do not cover the new grid", key="space", found=tuple(space),
            expected=f"multiples of {old.patch_size}",
        )  # fmt: skip


def _adapted_weights(old: Dpot, slots: Sequence[int], new: Dpot) -> dict[str, Tensor]:
    weights = {name: value.detach().clone() for name, value in old.state_dict().items()}
    c = old.config.in_channels
    stem = weights["patch_embed.proj.0.weight"]  # (E, c + coordinates, *patch)
    weights["patch_embed.proj.0.weight"] = torch.cat([stem[:, list(slots)], stem[:, c:]], dim=1)
    for name in ("out_layer.4.weight", "out_layer.4.bias"):  # rows are (T_out, c)
        rows = weights[name].unflatten(0, (old.config.out_timesteps, old.config.out_channels))
        weights[name] = rows[:, list(slots)].flatten(0, 1)
    for name in ("scale_feats_mu.weight", "scale_feats_sigma.weight"):  # columns are (means, deviations) of c
        if name in weights:
            columns = weights[name].unflatten(1, (2, c))
            weights[name] = columns[:, :, list(slots)].flatten(1, 2)
    if old.config.conditions != new.config.conditions:
        weights |= _condition_weights(weights, new)
    latent = new.pos_embed.shape[2:]
    if weights["pos_embed"].shape[2:] != latent:
        weights["pos_embed"] = resize(weights["pos_embed"], latent)
    return weights


def _condition_weights(weights: Mapping[str, Tensor], new: Dpot) -> dict[str, Tensor]:
    """Weights for more conditions: features that the old network was not told change nothing yet."""
    fresh = {k: v.detach().clone() for k, v in new.state_dict().items() if k not in weights}
    columns = weights.get("condition.0.weight")  # (C, K), the features of new parameters last
    if columns is not None:
        fresh["condition.0.weight"] = F.pad(columns, (0, new.config.conditions - columns.shape[1]))
    return {k: v for k, v in fresh.items() if k.startswith("condition.") or ".modulation." in k}
