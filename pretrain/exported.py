"""Files that `pretrain.export` wrote: what they say of themselves, and how they are run."""

import importlib.util
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from data_pipeline.base.config import Config, build
from data_pipeline.base.errors import ConfigError, DataError
from data_pipeline.trajectory import Boundary

Format = Literal["torch", "aoti", "onnx"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "aoti": ".pt2", "onnx": ".onnx"}
INPUTS, OUTPUT = ("history", "parameters"), "frames"
KEY = "pdepot"


class Description(Config):
    """What an exported file says of itself, as JSON under the name `pdepot`.

    In the extra files of a `torch` file, in the metadata of an `aoti` one, in the metadata_props of an ONNX graph.
    """

    format: Format
    dataset: str
    channels: tuple[str, ...]
    """Last axis of `history` (B, *grid, frames_in, C) and of the output `frames` (B, *grid, frames_out, C)."""
    units: Literal["physical"] = "physical"
    """Of fields in and out: those of the dataset, not normalised."""
    parameters: tuple[str, ...]
    """Second axis of the input `parameters` (B, P), NaN where one is not known. If empty, there is no such input."""
    grid: tuple[int, ...]
    boundaries: tuple[Boundary, ...]
    """For each axis of the grid; none where they are not known."""
    frames_in: int
    frames_out: int
    dt: float
    """Time between two frames."""
    dtype: Literal["float32"] = "float32"
    device: str
    """Kind of device that inputs must be on, and the output is on."""
    weights_sha256: str
    """Of the operator's model.safetensors."""
    pdepot: str
    """Version that exported, and of torch in the next."""
    torch: str


class Exported:
    """An exported file, loaded: call it on a history."""

    def __init__(self, description: Description, run: Callable[..., Tensor]) -> None:
        self.description = description
        self._run = run

    def __call__(self, history: Tensor, parameters: Tensor | None = None) -> Tensor:
        """Predict the next frames.

        Args:
            history: float32 (B, *grid, frames_in, C), physical units, channels as in `description`.
            parameters: float32 (B, P), NaN where a sample lacks one; None where none is known.

        Returns:
            (B, *grid, frames_out, C), physical units.

        Raises:
            ConfigError: the shapes or data types are not those.
        """
        d = self.description
        if parameters is None:
            parameters = history.new_full((len(history), len(d.parameters)), float("nan"))
        _check("history", history, (len(history), *d.grid, d.frames_in, len(d.channels)))
        _check("parameters", parameters, (len(history), len(d.parameters)))
        inputs = (history, parameters) if d.parameters else (history,)
        with torch.no_grad():
            return self._run(*(value.to(d.device).contiguous() for value in inputs))


def _check(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.dtype != torch.float32:
        raise ConfigError(
            "not an input of the exported operator", key=name, found=f"{value.dtype} {tuple(value.shape)}",
            expected=f"torch.float32 {shape}",
        )  # fmt: skip


def load_exported(file: Path) -> Exported:
    """Load what `export_operator` wrote. `torch` and `aoti` files execute code: load only those that you exported.

    Raises:
        ConfigError: what runs such a file is not installed.
        DataError: not a file that pdepot exported.
    """
    description = describe(file)
    return Exported(description, _LOADERS[description.format](file))


def describe(file: Path) -> Description:
    """What an exported file says of itself. Nothing in it is executed.

    Raises:
        ConfigError: the file is ONNX, and pdepot[export] is not installed.
        DataError: not a file that pdepot exported.
    """
    if not file.is_file():
        raise DataError("no such file", file=file)
    try:
        return build(Description, json.loads(_description_text(file)), file=file)
    except (ValueError, KeyError, zipfile.BadZipFile):
        raise DataError("not a file that pdepot exported", file=file, expected="as by pdepot models export") from None


def require_onnx() -> None:
    """Raises ConfigError where a package that ONNX files need is not installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"ONNX files need {' and '.join(missing)}", key="format", found="not installed",
                          remedy="in the checkout: pip install -e '.[export]'")  # fmt: skip


def _description_text(file: Path) -> str:
    """Raises ValueError, KeyError or BadZipFile where there is none."""
    if file.suffix == SUFFIXES["onnx"]:
        require_onnx()
        import onnx
        from google.protobuf.message import DecodeError

        try:
            properties = onnx.load(file).metadata_props
        except DecodeError as error:
            raise ValueError(error) from None
        return str({p.key: p.value for p in properties}[KEY])
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        for name in names:
            if name.endswith(f"/extra/{KEY}.json"):
                return archive.read(name).decode()
        metadata = next((name for name in names if name.endswith("_metadata.json")), "")
        return str(json.loads(archive.read(metadata))[KEY])


def _load_torch(file: Path) -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch.export.load(file).module())


def _load_aoti(file: Path) -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch._inductor.aoti_load_package(str(file)))


def _load_onnx(file: Path) -> Callable[..., Tensor]:
    require_onnx()
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        named = {name: value.numpy() for name, value in zip(INPUTS, inputs, strict=False)}
        return torch.from_numpy(session.run([OUTPUT], named)[0])

    return run


_LOADERS: dict[Format, Callable[[Path], Callable[..., Tensor]]] = {
    "torch": _load_torch, "aoti": _load_aoti, "onnx": _load_onnx,
}  # fmt: skip
