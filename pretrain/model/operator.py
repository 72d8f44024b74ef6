"""The operator: the network between physical units, for the datasets and channels that it knows."""

from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_pipeline.base.config import Config, build
from data_pipeline.base.errors import ConfigError, DataError, nearest
from data_pipeline.base.files import read_json, write_json
from pretrain.model.dpot import Dpot, NetworkConfig
from pretrain.model.reference import load_weights

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "model.json"
# The network's unit of change, in deviations of the field. One number for all datasets: with a unit of its own for
# each, the same trend in the input would mean another output in every dataset.
CHANGE_UNIT = 0.1


class DatasetScaling(Config):
    """A dataset that the operator knows: its channels, and the figures that its fields are scaled by."""

    name: str
    channels: tuple[str, ...]
    """Names of its fields, each one among the operator's channels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    change_rms: tuple[float, ...]
    """RMS of the difference between two consecutive frames, in the fields' units."""
    dt: float
    """Time between two frames."""


class OperatorConfig(Config):
    """All that is needed to build the operator again and to use it; written beside the weights."""

    network: NetworkConfig
    channels: tuple[str, ...]
    """Field name of every channel slot of the network."""
    datasets: tuple[DatasetScaling, ...]
    predict: Literal["state", "change"]
    """What the network's output means: the next state, or its change since the last frame of the history."""
    normalisation: Literal["dataset", "none"]
    """`dataset`: fields enter the network with zero mean and unit deviation over their dataset."""


class Operator(nn.Module):
    """Maps a history in physical units to the frames after it.

    With `predict: state`, y = mean + std * network((x - mean) / std); with `predict: change`,
    y = x_last + 0.1 * std * network((x - mean) / std). The figures are those of the sample's dataset; slots
    that a dataset does not have pass through as they are, and mean nothing.
    """

    mean: Tensor
    std: Tensor
    change_rms: Tensor

    def __init__(self, config: OperatorConfig) -> None:
        super().__init__()
        self.config = config
        self.network = Dpot(config.network)
        scale = config.normalisation == "dataset"
        # (datasets, C); constant fields (std 0) keep their units, so that nothing is divided by zero.
        for name, neutral in (("mean", 0.0), ("std", 1.0), ("change_rms", 1.0)):
            table = torch.full((len(config.datasets), len(config.channels)), neutral)
            for row, dataset in enumerate(config.datasets) if scale else ():
                for slot, value in zip(self.slots(dataset.name), getattr(dataset, name), strict=True):
                    table[row, slot] = value if value or name == "mean" else neutral
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

    def slots(self, dataset: str) -> list[int]:
        """The channel slots that a dataset's fields take, in the order of its channels."""
        return [self.config.channels.index(c) for c in self.config.datasets[self.dataset_index(dataset)].channels]

    def forward(self, history: Tensor, dataset: Tensor) -> Tensor:
        """Predict the next frames.

        Args:
            history: (B, *space, T_in, C), physical units, channels in their slots.
            dataset: (B,) int64, row of each sample's dataset.

        Returns:
            (B, *space, T_out, C), physical units.
        """
        expand = (slice(None), *(None,) * (history.ndim - 2))
        mean, std = self.mean[dataset][expand], self.std[dataset][expand]  # (B, 1, ..., 1, C)
        y = self.network((history - mean) / std)
        if self.config.predict == "change":
            return cast(Tensor, history[..., -1:, :] + CHANGE_UNIT * std * y)
        return cast(Tensor, mean + std * y)

    def normalised(self, history: Tensor, dataset: Tensor) -> Tensor:
        """The history as the network sees it, (B, *space, T_in, C): zero mean and unit deviation per dataset."""
        expand = (slice(None), *(None,) * (history.ndim - 2))
        return (history - self.mean[dataset][expand]) / self.std[dataset][expand]

    @property
    def frames_in(self) -> int:
        """Frames of history that the operator needs."""
        return self.config.network.in_timesteps


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
