"""Published checkpoints in and out: a pickled dict of arguments, weights and optimizer, read without executing it.

Such a file is what the reference writes with torch.save: `{args: argparse.Namespace, model: state_dict, optimizer}`,
the weights' names perhaps behind the `module.` of its data-parallel wrapper. The shape of the network is read off the
weights. The arguments tell what shapes cannot (`modes` and `act`); the others must agree with the weights.
"""

import pickle
import re
import tempfile
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nextafter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError, DataError, nearest
from data_pipeline.base.files import publish_directory, replace_file
from pretrain.model.config import NetworkConfig
from pretrain.model.operator import DatasetScaling, Operator, OperatorConfig, save_operator
from pretrain.model.plain import PlainDpot
from pretrain.model.reference import NAMES, check_weights, load_weights
from pretrain.model.sizes import SIZES

DATASET = "published"
PUBLISHED = {
    name: NetworkConfig(space=(128, 128), in_channels=4, out_channels=4, **shape)
    for name, shape in SIZES.items()
    if name != "nano"
}
"""The networks of the published files, by their sizes."""
# What the arguments alone can tell, and what every published file has there.
_TOLD = {"modes": 32, "act": "gelu"}
# Settings that the published network does not have.
_BEYOND = sorted(NetworkConfig.model_fields.keys() - {*NAMES.values(), "space", "stem_width", "initialisation"})


@dataclass(frozen=True)
class Official:
    """What a published file holds.

    Attributes:
        operator: the network, between fields as they are: it predicts the state and scales nothing.
        size: the published size that it has exactly; None for another shape.
        parameters: their number.
        assumed: arguments that the file does not give, for which the published values were taken.
    """

    operator: Operator
    size: str | None
    parameters: int
    assumed: tuple[str, ...]

    def text(self) -> str:
        """What was found, a line each."""
        config = self.operator.config
        network = config.network
        assert isinstance(network, NetworkConfig)
        lines = {
            "size": self.size or "none of the published ones",
            "parameters": f"{self.parameters:,}",
            "grid": f"{' x '.join(map(str, network.space))}, patches of {network.patch_size}",
            "frames": f"{network.in_timesteps} in, {network.out_timesteps} out",
            "channels": ", ".join(config.channels),
            "modes": f"{network.modes}{self._source('modes')}",
            "activation": f"{network.activation}{self._source('act')}",
        }
        return "\n".join(f"{name:11} {value}" for name, value in lines.items())

    def _source(self, argument: str) -> str:
        return ", as published; the file does not say" if argument in self.assumed else ""


def import_official(file: Path, folder: Path, size: str | None = None) -> Official:
    """Write the operator in a published file into a folder of `model.safetensors` and `model.json`.

    Args:
        file: as the reference writes it.
        folder: does not exist yet, or is empty.
        size: the published size that the file must have; see `read_official`.

    Raises:
        ConfigError: the folder holds something else.
        DataError, ConfigError: as `read_official`.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("the folder holds something else", file=folder, remedy="choose a new folder")
    official = read_official(file, size)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".import-") as scratch:
        finished = Path(scratch) / "operator"
        finished.mkdir()
        save_operator(official.operator, finished)
        publish_directory(finished, folder)
    return official


def read_official(file: Path, size: str | None = None) -> Official:
    """The operator in a published file. Nothing in the file is executed.

    The operator knows one dataset, `published`, with channels `channel_1`, `channel_2`, ...: the reference's slots
    are anonymous and mean different fields in different datasets. Adapting the operator to a dataset gives them a
    meaning; slots that the dataset leaves free are padded with ones, as published.

    Args:
        file: as the reference writes it. Optimizer state in it is left behind.
        size: the published size that the file must have, or else be refused; by default the one in a file name such
            as `model_Ti.pth`. Without either, any shape is taken.

    Raises:
        DataError: the file is missing or damaged, needs a global that is not data, is no such checkpoint, contradicts
            itself, or is not of its size.
        ConfigError: there is no such size or network, or weights are missing or left over.
    """
    if size is not None and size not in PUBLISHED:
        raise ConfigError("no such published size", key="size", found=size, remedy=nearest(size, list(PUBLISHED)))
    content = _unpickled(file)
    weights, arguments = _weights(content, file), _arguments(content, file)
    network = build(NetworkConfig, {**_shape(weights, file), **_told(arguments, file)}, file=file)
    with torch.device("meta"):
        check_weights(PlainDpot(network), weights, file)
    _check_arguments(arguments, network, file)
    parameters = sum(value.numel() for value in weights.values())
    named = re.search(rf"(?:^|_)({'|'.join(PUBLISHED)})$", file.stem)
    size = _checked_size(size or (named[1] if named else None), network, parameters, file)
    operator = Operator(_operator_config(network))
    load_weights(operator.network, weights)
    return Official(operator, size, parameters, tuple(name for name in _TOLD if name not in arguments))


def export_reference(operator: Operator, file: Path) -> None:
    """Write an operator as a file that the reference loads: `{args, model}`, without optimizer state.

    Such a file has no place for the names of channels and datasets; they are lost.

    Raises:
        ConfigError: the file exists, or the reference could not compute this function; says why.
    """
    if file.exists():
        raise ConfigError("the file exists already", file=file, remedy="choose a new name")
    network = operator.config.network
    if not isinstance(network, NetworkConfig):
        raise ConfigError("not the reference's architecture", key="network", found=network.architecture)
    if reasons := _beyond_reference(operator.config, network):
        raise ConfigError("the reference cannot compute this operator", key="\n       ".join(reasons))
    state = {name: value.detach().cpu().contiguous() for name, value in operator.network.state_dict().items()}
    with replace_file(file) as opened:
        torch.save({"args": Namespace(**_published_arguments(network)), "model": state}, opened)


def _unpickled(file: Path) -> Any:
    """The content of the file: tensors, containers and namespaces; anything else in it is refused."""
    if not file.is_file():
        raise DataError("no such file", file=file)
    try:
        archive = zipfile.is_zipfile(file)  # torch's first format, from before 1.6, is not
        if archive and (damaged := _damaged_member(file)):
            raise DataError("the checkpoint is damaged", file=file, found=f"wrong checksum of {damaged}")
        with torch.serialization.safe_globals([Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of other formats, which are errors below.
            return torch.load(file, map_location="cpu", weights_only=True, mmap=archive)
    except DataError:
        raise
    except Exception as error:  # A malformed file makes the unpickler raise anything.
        raise _refusal(file, error) from None


def _damaged_member(file: Path) -> str | None:
    """The first member whose bytes are not those that were written; torch.load does not look."""
    with zipfile.ZipFile(file) as archive:
        return archive.testzip()


def _refusal(file: Path, error: Exception) -> DataError:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and (wanted := re.search(r"GLOBAL (\S+)", text)):
        return DataError(
            "the file asks for more than data, which could execute anything; it was not loaded", file=file,
            found=wanted[1], expected="tensors, containers and argparse.Namespace",
            remedy="do not load it elsewhere either, unless you trust who wrote it",
        )  # fmt: skip
    reason = (text.partition("WeightsUnpickler error:")[2] or text).strip().partition("\n")[0]
    return DataError("not a checkpoint, or a damaged one", file=file, found=f"{type(error).__name__}: {reason}")


def _weights(content: Any, file: Path) -> dict[str, Tensor]:
    """The state dict, without the prefix of the data-parallel wrapper."""
    if not isinstance(content, Mapping) or "model" not in content:
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise DataError("not a published checkpoint", file=file, key="model", found=found, expected="args and model")
    state = content["model"]
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise DataError("not a state dict", file=file, key="model", found=type(state).__name__)
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.layout != torch.strided:
            found = f"{value.layout} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise DataError("not a weight", file=file, key=f"model.{name}", found=found, expected="a float32 tensor")
    weights = {name.removeprefix("module."): value for name, value in state.items()}
    if len(weights) < len(state):
        raise DataError("the same weight twice, with and without `module.`", file=file, key="model")
    return weights


def _arguments(content: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """What the reference was started with; empty when the file does not say."""
    arguments = content.get("args", Namespace())
    if not isinstance(arguments, Namespace):
        raise DataError("not arguments", file=file, key="args", found=type(arguments).__name__, expected="a Namespace")
    return vars(arguments)


def _shape(weights: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """The settings of the network that the shapes of its weights tell."""

    def sizes(name: str, axes: int) -> tuple[int, ...]:
        found = tuple(weights[name].shape) if name in weights else "no such weight"
        if isinstance(found, str) or len(found) != axes or 0 in found:
            raise DataError("not weights of the published network", file=file, key=f"model.{name}", found=found,
                            expected=f"{axes} axes")  # fmt: skip
        return found

    rank = weights["pos_embed"].ndim - 2 if "pos_embed" in weights else 2
    if rank not in (2, 3):
        raise DataError("not a published network", file=file, key="pos_embed", found=f"{rank} spatial axes",
                        expected="2 or 3")  # fmt: skip
    _, width, *latent = sizes("pos_embed", rank + 2)
    stem, stem_in, patch, *_ = sizes("patch_embed.proj.0.weight", rank + 2)
    # The published rule for the stem's width; a remainder makes the weights misfit the network, which is said below.
    channels = (stem - rank - 1) // patch
    out = sizes("out_layer.4.weight", rank + 2)[0]
    if channels != stem_in - rank - 1:
        raise DataError("an operator needs as many channels out as in", file=file, key="patch_embed.proj.0.weight",
                        found=f"{channels} out, {stem_in - rank - 1} in")  # fmt: skip
    return {
        "space": tuple(n * patch for n in latent),
        "patch_size": patch,
        "in_channels": channels,
        "out_channels": channels,
        "in_timesteps": sizes("time_agg_layer.w", 3)[0],
        "out_timesteps": out // channels if channels else 0,
        "width": width,
        "depth": sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name) is not None for name in weights),
        "heads": sizes("blocks.0.filter.w1", 4)[1],
        "mlp_ratio": _ratio(sizes("blocks.0.mlp.0.weight", rank + 2)[0], width),
        "head_width": sizes("out_layer.0.weight", rank + 2)[1],
        "classes": sizes("cls_head.4.weight", 2)[0],
        "normalize": "scale_feats_mu.weight" in weights,
        "time_aggregation": "exp_mlp" if "time_agg_layer.gamma" in weights else "mlp",
    }


def _ratio(hidden: int, width: int) -> float:
    """The number r with int(width * r) = hidden, which hidden / width may be just below of."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else nextafter(ratio, inf)


def _told(arguments: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The settings that the arguments alone can tell."""
    for name, published in _TOLD.items():
        value = arguments.get(name, published)
        if type(value) is not type(published):
            raise DataError("not a value of this argument", file=file, key=f"args.{name}", found=repr(value),
                            expected=f"such as {published!r}")  # fmt: skip
    return {"modes": arguments.get("modes", _TOLD["modes"]), "activation": arguments.get("act", _TOLD["act"])}


def _published_arguments(network: NetworkConfig) -> dict[str, Any]:
    """A network by the names of the reference's command line."""
    ratio = _ratio(int(network.width * network.mlp_ratio), network.width)
    return {
        "res": network.space[0],
        "patch_size": network.patch_size,
        "T_in": network.in_timesteps,
        "T_bundle": network.out_timesteps,
        "width": network.width,
        "n_layers": network.depth,
        "n_blocks": network.heads,
        "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
        "out_layer_dim": network.head_width,
        "modes": network.modes,
        "act": network.activation,
        "normalize": int(network.normalize),
        "mixing_type": "afno",
        "time_agg": network.time_aggregation,
    }


def _check_arguments(arguments: Mapping[str, Any], network: NetworkConfig, file: Path) -> None:
    """Raise DataError for arguments that are not those of the network that the weights make."""
    contradictions = [
        f"args.{name}: found {arguments[name]!r}, the weights have {expected!r}"
        for name, expected in _published_arguments(network).items()
        if name in arguments and not (isinstance(arguments[name], int | float | str) and arguments[name] == expected)
    ]
    if contradictions:
        raise DataError(
            "the file's arguments are not those of its weights", file=file, key="\n       ".join(contradictions)
        )


def _checked_size(size: str | None, network: NetworkConfig, parameters: int, file: Path) -> str | None:
    """The published size of a network. Raises DataError when it is not the `size` that was asked for."""
    if size is None:
        return next((name for name, other in PUBLISHED.items() if not _differing(network, other)), None)
    expected = PUBLISHED[size]
    if differing := _differing(network, expected):
        with torch.device("meta"):
            count = sum(p.numel() for p in PlainDpot(expected).parameters())
        raise DataError(
            f"not the published size {size}", file=file, key=", ".join(differing),
            found="; ".join([f"{parameters:,} parameters", *(f"{k} {getattr(network, k)}" for k in differing)]),
            expected="; ".join([f"{count:,} parameters", *(f"{k} {getattr(expected, k)}" for k in differing)]),
            remedy="give its true size, or rename the file if it is none of the published ones",
        )  # fmt: skip
    return size


def _differing(network: NetworkConfig, other: NetworkConfig) -> list[str]:
    """The settings in which the shapes of two networks differ."""
    told = {"modes", "activation"}
    return [name for name in NetworkConfig.model_fields if name not in told
            and getattr(network, name) != getattr(other, name)]  # fmt: skip


def _operator_config(network: NetworkConfig) -> OperatorConfig:
    c = network.in_channels
    channels = tuple(f"channel_{i + 1}" for i in range(c))
    dataset = DatasetScaling(
        name=DATASET, channels=channels, mean=(0.0,) * c, std=(1.0,) * c, change_rms=(1.0,) * c, dt=1.0
    )
    return OperatorConfig(
        network=network, channels=channels, datasets=(dataset,), predict="state", normalisation="none",
        slots="anonymous",
    )  # fmt: skip


def _beyond_reference(config: OperatorConfig, network: NetworkConfig) -> list[str]:
    """Why the reference could not compute what the operator does."""
    padded = any(len(dataset.channels) < len(config.channels) for dataset in config.datasets)
    rule = network.model_copy(update={"stem_width": None}).stem
    wanted: list[tuple[str, Any, Any]] = [
        ("predict", config.predict, "state"),
        ("normalisation", config.normalisation, "none"),
        ("slots", config.slots if padded else "anonymous", "anonymous"),
        ("network.space", network.space, (network.space[0],) * max(2, min(3, len(network.space)))),
        ("network.stem_width", network.stem, rule),
    ]
    wanted += [
        (f"network.{name}", getattr(network, name), NetworkConfig.model_fields[name].default) for name in _BEYOND
    ]
    return [f"{name}: {found}, the reference has only {only}" for name, found, only in wanted if found != only]
