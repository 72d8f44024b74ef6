"""Baselines of the field: architectures of the `neuraloperator` package, behind the interface of our own network.

The package is wrapped, not rewritten, and imported only where a baseline is used: pip install -e '.[baselines]'.
"""

import importlib
import inspect
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from threading import RLock
from types import ModuleType
from typing import Any, ClassVar, Literal, TypeVar, cast

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor, nn

from data_pipeline.base.config import Config
from data_pipeline.base.errors import ConfigError, nearest
from pretrain.model.config import Count

_FROM_THE_DATA = ("in_channels", "out_channels")
# The library's modules hold their complex weights only while one of them is called, see `Baseline`.
_ONE_CALL_AT_A_TIME = RLock()
ConfigT = TypeVar("ConfigT", bound=Config)


class Architecture(Config):
    """An architecture of another library, without what follows from the data (grid, channels)."""

    library: Literal["neuraloperator"]
    architecture: Literal["FNO", "TFNO", "UNO"]
    """FNO and TFNO (its weights Tucker-factorised), and UNO, the U-shaped one: the library has no plain U-Net."""
    arguments: dict[str, Any]
    """The constructor's, by the library's names: `n_modes`, `hidden_channels`, ..."""

    @field_validator("arguments")
    @classmethod
    def _constructor_takes(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "architecture" not in info.data:
            return given  # unknown, which is the error to report
        architecture = info.data["architecture"]
        given = _with_whole_numbers_as_keys(given)
        _check_arguments(architecture, given)
        try:
            with torch.device("meta"):  # neither memory nor time
                _construct(architecture, given | dict.fromkeys(_FROM_THE_DATA, 1))
        except Exception as error:  # whatever the library raises
            raise ValueError(f"{architecture} cannot be made of them: {type(error).__name__}: {error}") from None
        return given


class BaselineModelConfig(Architecture):
    """A baseline as a pretraining job asks for it."""

    slots: Literal["named", "anonymous"] = "named"
    """As in `OperatorConfig.slots`."""
    bundle: Count = 1
    """Frames that it predicts at once."""
    condition: ClassVar[bool] = False
    """No baseline is told of its equation."""
    resize_position: ClassVar[bool] = False
    patch_size: ClassVar[int] = 1


class BaselineConfig(Architecture):
    """A baseline's shape: takes the place of NetworkConfig in an operator."""

    space: tuple[Count, ...]
    """Grid points along each axis."""
    in_channels: Count
    out_channels: Count
    in_timesteps: Count = 10
    out_timesteps: Count = 1

    # What our own network can and a baseline cannot.
    conditions: ClassVar[int] = 0
    resize_position: ClassVar[bool] = False
    patch_size: ClassVar[int] = 1


def chosen(value: Any, own: type[ConfigT], baseline: type[ConfigT]) -> Any:
    """Configuration of our own network, or of a baseline where the mapping `value` names a library.

    For validators: choosing beforehand lets errors speak of one of the two, not of both.
    """
    if isinstance(value, Config):
        return value
    return (baseline if isinstance(value, Mapping) and "library" in value else own).model_validate(value)


class Baseline(nn.Module):
    """A library's architecture as a network: frames and channels of the history become its input channels.

    Its weights are real: each complex one of the library is kept as real and imaginary part (..., 2), since DeepSpeed
    takes no complex parameters at any ZeRO stage, and is handed to the library's module, as the complex view of these
    numbers, for the time of a call. They are this module's own parameters, named as in the library but with `__` for
    `.`, and not the modules': those are never called themselves, so ZeRO-3 would not gather their weights.

    Everything is computed in float32, under autocast too: Fourier transforms know no bfloat16.
    """

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        _check_grid(config)
        self.model = _build(config)
        self._complex: list[tuple[str, nn.Module, str]] = []
        for name, weight in list(self.model.named_parameters()):
            if weight.is_complex():
                self._keep_real(name, weight)
        self.register_state_dict_post_hook(_drop_metadata)  # type: ignore[no-untyped-call]

    def _keep_real(self, name: str, weight: nn.Parameter) -> None:
        owner_name, _, leaf = name.rpartition(".")
        owner = self.model.get_submodule(owner_name)
        delattr(owner, leaf)
        own_name = name.replace(".", "__")
        self.register_parameter(own_name, nn.Parameter(torch.view_as_real(weight.detach()).clone()))
        self._complex.append((own_name, owner, leaf))

    def forward(self, history: Tensor) -> Tensor:
        """(B, *space, T_in, c_in) -> (B, *space, T_out, c_out), float32."""
        x = history.float().flatten(-2).movedim(-1, 1)
        with torch.autocast(x.device.type, enabled=False), self._complex_weights():
            y = self.model(x)
        return cast(Tensor, y.movedim(1, -1).unflatten(-1, (self.config.out_timesteps, self.config.out_channels)))

    @contextmanager
    def _complex_weights(self) -> Iterator[None]:
        with _ONE_CALL_AT_A_TIME:  # a served model is called from several threads
            for name, owner, leaf in self._complex:
                setattr(owner, leaf, torch.view_as_complex(getattr(self, name)))
            try:
                yield
            finally:
                for _, owner, leaf in self._complex:
                    delattr(owner, leaf)


def _drop_metadata(_: nn.Module, state: dict[str, Any], *__: Any) -> None:
    """Take from a state dict what the library adds to the weights: its constructor's arguments, code among them."""
    state.pop("_metadata", None)


def _with_whole_numbers_as_keys(value: Any) -> Any:
    """A copy in which keys such as "4", which JSON makes of 4, are whole numbers again (UNO's skips are such keys)."""
    if isinstance(value, Mapping):
        return {
            int(k) if isinstance(k, str) and k.isdecimal() else k: _with_whole_numbers_as_keys(v)
            for k, v in value.items()
        }
    return [_with_whole_numbers_as_keys(v) for v in value] if isinstance(value, list | tuple) else value


def _check_arguments(architecture: str, given: Mapping[str, Any]) -> None:
    """Raises ValueError, pydantic's, when the constructor would not take the arguments."""
    known = _parameters(architecture)
    for name in given:
        if name in _FROM_THE_DATA:
            raise ValueError(f"{name} follows from the data and is not asked for")
        if name not in known:
            raise ValueError(f"{name} is no argument of {architecture}; {nearest(name, list(known))}")
        default = known[name].default
        if default is not inspect.Parameter.empty and callable(default):
            raise ValueError(f"{name} of {architecture} is code, which a configuration cannot hold")
    required = [name for name, p in known.items() if p.default is p.empty and name not in _FROM_THE_DATA]
    missing = [name for name in required if name not in given]
    if missing:
        raise ValueError(f"{architecture} needs {', '.join(missing)}")


def _parameters(architecture: str) -> dict[str, inspect.Parameter]:
    """What the constructor takes by name, with what it passes on to those of its base classes."""
    found: dict[str, inspect.Parameter] = {}
    for cls in getattr(_models(), architecture).__mro__:
        if "__init__" not in vars(cls):
            continue
        own = inspect.signature(cls.__init__).parameters
        found = {**own, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            break
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in found.items() if p.kind in by_name and name != "self"}


def _models() -> ModuleType:
    """The library's models. Raises ConfigError when it is not installed."""
    try:
        with warnings.catch_warnings():  # importing it changes what this process is warned of
            return importlib.import_module("neuralop.models")
    except ImportError as error:
        raise ConfigError(
            "the baselines' library cannot be imported", key="library", found=error,
            expected="neuraloperator, installed", remedy="in the checkout: pip install -e '.[baselines]'",
        ) from None  # fmt: skip


def _construct(architecture: str, arguments: Mapping[str, Any]) -> nn.Module:
    with redirect_stdout(io.StringIO()):  # some constructors print
        return cast(nn.Module, getattr(_models(), architecture)(**arguments))


def _build(config: BaselineConfig) -> nn.Module:
    frames_in = config.in_timesteps * config.in_channels
    frames_out = config.out_timesteps * config.out_channels
    return _construct(config.architecture, config.arguments | {"in_channels": frames_in, "out_channels": frames_out})


def _check_grid(config: BaselineConfig) -> None:
    """Raises ConfigError when the architecture does not map fields on the grid to real fields on the same grid."""
    x_shape = (1, config.in_timesteps * config.in_channels, *config.space)
    y_shape = (1, config.out_timesteps * config.out_channels, *config.space)
    try:
        with torch.device("meta"), torch.no_grad():
            y = _build(config)(torch.empty(x_shape))
        found = "" if (y.shape, y.dtype) == (y_shape, torch.float32) else f"a field of {tuple(y.shape)}, {y.dtype}"
    except Exception as error:  # whatever the library raises
        found = f"{type(error).__name__}: {error}"
    if found:
        raise ConfigError(
            f"this {config.architecture} does not map fields on the grid to fields on the grid",
            key="arguments", found=found, expected=f"from {x_shape} to {y_shape}, real",
        )  # fmt: skip
