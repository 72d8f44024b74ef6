"""The operator: the network between physical units, for the datasets and channels that it knows."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import field_validator, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_pipeline.base.config import Config, build
from data_pipeline.base.errors import ConfigError, DataError, nearest
from data_pipeline.base.files import read_json, write_json
from data_pipeline.trajectory import Boundary, parameter_row
from pretrain.model.baseline import Baseline, BaselineConfig, chosen
from pretrain.model.conditions import condition_count, dataset_features, parameter_features, with_lead
from pretrain.model.config import NetworkConfig
from pretrain.model.dpot import Dpot, Folded
from pretrain.model.grids import lifted_grid, on_lifted_grid
from pretrain.model.normalisation import Normalisation, dataset_figures, sample_figures
from pretrain.model.reference import load_weights

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
# The network's unit of change, as a share of what normalisation divides the field by. One number for all datasets:
# with a unit of its own for each, the same trend in the input would mean another output in every dataset.
CHANGE_UNIT = 0.1
# What the network sees, after normalisation, in slots that a sample's dataset does not have.
PADDING = {"named": 0.0, "anonymous": 1.0}


class DatasetScaling(Config):
    """A dataset that the operator knows: its channels, and the figures that its fields are scaled by."""

    name: str
    channels: tuple[str, ...]
    """Names of its fields; with named slots, each one among the operator's channels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    change_rms: tuple[float, ...]
    """RMS of the difference between two consecutive frames, in the fields' units."""
    dt: float
    """Time between two frames."""
    boundaries: tuple[Boundary, ...] = ()
    """For each spatial axis; none where they are not known."""
    parameters: tuple[str, ...] = ()
    """Names of the PDE parameters that its trajectories carry."""
    space: tuple[int, ...] = ()
    """Its own grid, which may have fewer axes than the network's; empty where it is the network's."""


class OperatorConfig(Config):
    """All that is needed to build the operator again and to use it; written beside the weights."""

    network: NetworkConfig | BaselineConfig
    channels: tuple[str, ...]
    """Field name of every channel slot of the network; `channel_1` and so on for anonymous ones."""
    datasets: tuple[DatasetScaling, ...]
    predict: Literal["state", "change"]
    """What the network's output means: the next state, or its change since the last frame of the history."""
    normalisation: Normalisation
    """What fields are shifted and divided by before they enter the network, see `Normalisation`."""
    slots: Literal["named", "anonymous"] = "named"
    """`named`: fields of one name share a slot in all datasets, and the network sees zeros in slots that a dataset
    does not have. `anonymous`, the published rule: each dataset's fields fill the first slots in their own order, and
    the network sees ones in the others."""
    parameters: tuple[str, ...] = ()
    """The PDE parameters that a conditioned network is told, by name, in the order of `Operator.forward`'s."""

    @field_validator("network", mode="before")
    @classmethod
    def _kind_of_network(cls, value: Any) -> Any:
        return chosen(value, NetworkConfig, BaselineConfig)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for d in self.datasets:
            if self.slots == "named" and not set(d.channels) <= set(self.channels):
                raise ValueError(f"dataset {d.name} has fields {d.channels}, the slots are {self.channels}")
            if len(d.channels) > len(self.channels):
                raise ValueError(f"dataset {d.name} has more fields than there are slots, {len(self.channels)}")
            space = d.space or self.network.space
            if len(space) > len(self.network.space):
                raise ValueError(f"dataset {d.name} has the grid {space}, more axes than the network's")
            if d.boundaries and len(d.boundaries) != len(space):
                raise ValueError(f"dataset {d.name} has {len(d.boundaries)} boundaries, expected one for each axis")
        count = condition_count(len(self.network.space), len(self.parameters))
        if self.network.conditions not in (0, count) or (self.parameters and not self.network.conditions):
            raise ValueError(
                f"the network takes {self.network.conditions} conditions, "
                f"dt, boundaries and {len(self.parameters)} parameters make {count}"
            )
        return self


class Operator(nn.Module):
    """Maps a history in physical units to the frames after it.

    With shift m and scale s of the normalisation, of the sample's dataset or of the sample:
    `predict: state`   y = m + s * network((x - m) / s)
    `predict: change`  y = x_last + 0.1 * s * network((x - m) / s), so the network's unit of change is a tenth of a
    deviation (`mean_std`, `sample`), of the RMS (`rms`) or of the field's own unit (`none`).
    k frames ahead the unit is k times that: the network gives the mean rate of change, which varies little with k, and
    the same trend in the input means the same output.
    What is in slots that the dataset does not have is not seen by the network, and what comes out there means nothing.
    Fields of fewer axes than the network's are constant along those that they lack, see `pretrain.model.grids`.
    """

    shift: Tensor
    scale: Tensor
    change_rms: Tensor
    owned: Tensor
    dataset_conditions: Tensor

    def __init__(self, config: OperatorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = build_network(config.network)
        slots = (len(config.datasets), len(config.channels))
        tables = {"shift": torch.zeros(slots), "scale": torch.ones(slots), "change_rms": torch.zeros(slots)}
        tables["owned"] = torch.zeros(slots, dtype=torch.bool)
        for row, dataset in enumerate(config.datasets):
            taken = self.slots(dataset.name)
            shift, scale = dataset_figures(config.normalisation, dataset.mean, dataset.std)
            tables["shift"][row, taken], tables["scale"][row, taken] = torch.tensor(shift), torch.tensor(scale)
            tables["change_rms"][row, taken] = torch.tensor(dataset.change_rms)
            tables["owned"][row, taken] = True
        if config.network.conditions:
            axes = len(config.network.space)
            features = [dataset_features(dataset.dt, dataset.boundaries, axes) for dataset in config.datasets]
            tables["dataset_conditions"] = torch.tensor(features)
        for name, table in tables.items():
            # Not in the state dict: the configuration is their home.
            self.register_buffer(name, table, persistent=False)

    def dataset_index(self, name: str) -> int:
        """Row of a dataset. Raises ConfigError for one that the operator does not know."""
        names = [d.name for d in self.config.datasets]
        if name not in names:
            raise ConfigError(
                "the operator does not know this dataset", key=name, found=names, remedy=nearest(name, names)
            )
        return names.index(name)

    def slots(self, dataset: str, fields: Sequence[str] | None = None) -> list[int]:
        """The channel slots of a dataset's fields, in the order of its channels, or in that of `fields`.

        Raises:
            ConfigError: the operator does not know the dataset, or not one of the fields in it.
        """
        known = self.config.datasets[self.dataset_index(dataset)].channels
        names = self.config.channels[: len(known)] if self.config.slots == "anonymous" else known
        slot_of = {field: self.config.channels.index(name) for field, name in zip(known, names, strict=True)}
        missing = [field for field in fields or () if field not in slot_of]
        if missing:
            raise ConfigError(
                f"dataset {dataset!r} has a field for which the model has no channel: {', '.join(missing)}",
                key="channels", found=f"the dataset's fields {', '.join(fields or ())}",
                expected=f"those that the model knows of it: {', '.join(known)}",
            )  # fmt: skip
        return [slot_of[field] for field in (known if fields is None else fields)]

    def forward(
        self,
        history: Tensor,
        dataset: Tensor,
        parameters: Tensor | None = None,
        folded: Folded | None = None,
        padding: Tensor | float | None = None,
        lead: Tensor | None = None,
    ) -> Tensor:
        """Predict the next frames.

        Args:
            history: (B, *space, T_in, C), physical units, channels in their slots. Axes of the network that the
                dataset lacks are left out, or have one point.
            dataset: (B,) int64, row of each sample's dataset.
            parameters: (B, P), each sample's PDE parameters in the order of `config.parameters`, NaN where it lacks
                one; None where none is known. An operator without conditions makes no use of them.
            folded: what `fold` gave, for inference.
            padding: what the network sees, as it is, in slots that a sample's dataset does not have, broadcastable to
                `history`; by default zeros (named slots) or ones (anonymous).
            lead: (B,), how many frames after the history's last one the predicted frame is; None for the next one. A
                conditioned operator is told, and has learned those that it was trained with (`objective.max_lead`).

        Returns:
            (B, *space, T_out, C), physical units.

        Raises:
            ConfigError: a lead for an operator without conditions, or one that predicts several frames at once.
        """
        shift, scale = self.figures(history, dataset)
        owned = _expand(self.owned[dataset], history)
        x = torch.where(owned, (history - shift) / scale, PADDING[self.config.slots] if padding is None else padding)
        told = (self.conditions(dataset, parameters, lead),) if self.config.network.conditions else ()
        given: dict[str, Any] = {} if folded is None else {"folded": folded}
        y = on_lifted_grid(lambda wide: self.network(wide, *told, **given), x, self.lifted(x.shape[1:-2]))
        if lead is not None:
            self._check_takes_leads()
            y = y * _expand(lead[:, None], y) if self.config.predict == "change" else y
        if self.config.predict == "change":
            return history[..., -1:, :] + CHANGE_UNIT * scale * y
        return shift + scale * y

    def fold(self, space: Sequence[int]) -> Folded | None:
        """The network's products of weights alone, for fields on the grid `space`, to be computed once for a roll-out.

        None for baselines.
        """
        return self.network.fold(self.lifted(space)) if isinstance(self.network, Dpot) else None

    def lifted(self, space: Sequence[int]) -> tuple[int, ...]:
        """The grid on which the network sees fields on the grid `space`."""
        network = self.config.network
        return lifted_grid(space, len(network.space), network.patch_size)

    def grid(self, dataset: str) -> tuple[int, ...]:
        """A dataset's own grid."""
        return self.config.datasets[self.dataset_index(dataset)].space or self.config.network.space

    def figures(self, history: Tensor, dataset: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale of each sample's channels, two (B, 1, ..., 1, C); arguments as in `forward`."""
        if self.config.normalisation == "sample":
            return sample_figures(history)
        return _expand(self.shift[dataset], history), _expand(self.scale[dataset], history)

    def conditions(self, dataset: Tensor, parameters: Tensor | None, lead: Tensor | None = None) -> Tensor:
        """What the network is told of each sample's equation, (B, K), see `pretrain.model.conditions`."""
        if parameters is None:
            parameters = self.scale.new_full((len(dataset), len(self.config.parameters)), float("nan"))
        features = torch.cat([self.dataset_conditions[dataset], parameter_features(parameters)], dim=-1)
        return features if lead is None else with_lead(features, lead)

    def _check_takes_leads(self) -> None:
        network = self.config.network
        if not network.conditions or network.out_timesteps > 1:
            raise ConfigError(
                "the operator cannot be told how far ahead to predict", key="lead",
                found=f"{network.conditions} conditions, {network.out_timesteps} frames at once",
                expected="a conditioned network that predicts one frame",
            )  # fmt: skip

    def parameter_values(self, values: Mapping[str, float]) -> Tensor:
        """The PDE parameters of one sample as `forward` takes them, (1, P).

        Raises:
            ConfigError: a value's name is none that the operator was trained with, or a value is no number.
        """
        names = list(self.config.parameters)
        for name, value in values.items():
            if name not in names:
                raise ConfigError("the operator is told no such parameter", key=name, remedy=nearest(name, names))
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError("not a value of a parameter", key=name, found=value, expected="a finite number")
        return self.scale.new_tensor([parameter_row(values, names)])

    @property
    def grids(self) -> set[tuple[int, ...]]:
        """The grids of its datasets."""
        return {self.grid(d.name) for d in self.config.datasets}

    def takes_grid(self, space: Sequence[int], dataset: str) -> bool:
        """Whether histories of a dataset may have this grid; axes that it lacks are left out, or have one point."""
        network, axes = self.config.network, len(self.grid(dataset))
        if len(space) not in (axes, len(network.space)) or any(n < 1 for n in space) or set(space[axes:]) - {1}:
            return False
        grid = self.lifted(space)
        return grid == network.space or (network.resize_position and not any(n % network.patch_size for n in grid))

    @property
    def frames_in(self) -> int:
        """Frames of history that the operator needs."""
        return self.config.network.in_timesteps


def build_network(config: NetworkConfig | BaselineConfig) -> Dpot | Baseline:
    """The network of a configuration, with fresh weights."""
    return Baseline(config) if isinstance(config, BaselineConfig) else Dpot(config)


def _expand(table: Tensor, like: Tensor) -> Tensor:
    """(B, C) -> (B, 1, ..., 1, C), to go with a history."""
    return table[(slice(None), *(None,) * (like.ndim - 2))]


def save_operator(operator: Operator, folder: Path) -> None:
    """Write `model.safetensors` and `model.json` into an existing folder."""
    state = {name: value.detach().cpu().contiguous() for name, value in operator.state_dict().items()}
    save_file(state, folder / WEIGHTS_FILE)
    write_json(folder / CONFIG_FILE, operator.config.model_dump(mode="json"))


def load_operator_files(folder: Path) -> Operator:
    """The operator that `save_operator` wrote. Nothing is unpickled.

    Raises:
        DataError: a file is missing or damaged.
        ConfigError: configuration and weights do not belong together.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise DataError("not a saved operator", file=folder, expected=f"{CONFIG_FILE} and {WEIGHTS_FILE}")
    operator = Operator(build(OperatorConfig, read_json(folder / CONFIG_FILE), file=folder / CONFIG_FILE))
    try:
        load_weights(operator, load_file(folder / WEIGHTS_FILE))
    except SafetensorError as error:
        raise DataError("the weights are damaged", file=folder / WEIGHTS_FILE, found=error) from None
    return operator
