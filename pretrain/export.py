"""Operators as files for other programs: a torch.export program, an AOTInductor package, or an ONNX graph.

What is exported is the operator for one of its datasets: physical units in and out, the dataset's own channels in
their own order, any number of samples at a time. What depends on weights alone is computed beforehand and stored in
their place. A file is loaded back and compared with the operator before it gets its name.

    format  file   runs in                                  loading it
    torch   .pt2   Python with torch (torch.export)         unpickles: load only what you exported yourself
    aoti    .pt2   Python with torch, C++ with libtorch     runs machine code: load only what you exported yourself
    onnx    .onnx  any ONNX runtime                         executes nothing of the file's own

`torch` and `aoti` files run on the kind of device that the operator was on, `aoti` files on processors with the same
instructions, and only with inputs that are contiguous; they do not check that (`pretrain.exported` sees to it).
"""

import hashlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from data_pipeline.base.errors import ConfigError, PdepotError
from data_pipeline.base.files import publish_file
from pretrain.execution import full_float32
from pretrain.exported import INPUTS, KEY, OUTPUT, SUFFIXES, Description, Exported, Format, load_exported, require_onnx
from pretrain.model.dpot import Dpot
from pretrain.model.operator import Operator
from pretrain.model.standalone import DatasetOperator, parameters_of

TOLERANCE = 1e-5
# Exporters take 0 and 1 for special: traced with two samples, tried with one and with three.
_TRACED_BATCH, _TRIED_BATCHES = 2, (1, 3)
# Bytes; beyond them the exporter writes a second file, since a protobuf ends at 2 GiB.
_ONNX_LIMIT = 1536 * 2**20


def export_operator(operator: Operator, file: Path, format: Format, dataset: str | None = None) -> float:
    """Write an operator as a file that computes it without pdepot.

    Args:
        operator: its network is one of ours, not a baseline.
        file: does not exist yet; ends in .pt2 or .onnx, as its format does.
        format: `torch`, `aoti` (needs a C++ compiler) or `onnx` (needs pdepot[export]), see above.
        dataset: the one that the file is for; may be left out where the operator knows only one.

    Returns:
        Relative L2 between the file, loaded back, and the operator on random histories: of the worst channel, in terms
        of its deviation from the dataset's mean, at the worst batch size. At most 1e-5, or there is no file.

    Raises:
        ConfigError: the operator, the file's name or the dataset is none of these, or something needed is missing.
        PdepotError: the file does not compute what the operator does.
    """
    _check_file(file, format)
    _check_operator(operator, format)
    description = _describe(operator, format, dataset)
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch_folder = tempfile.TemporaryDirectory(dir=file.parent, prefix=".export-")
    with scratch_folder as scratch, _quiet(), full_float32():
        written = Path(scratch) / file.name
        _WRITERS[format](_trace(operator, description), written, description)
        error = _difference(load_exported(written), operator)
        if not error <= TOLERANCE:
            raise PdepotError(
                "the exported file does not compute what the operator does; it was not kept", file=file,
                found=f"relative L2 {error:.2g}", expected=f"at most {TOLERANCE:g}", remedy="try another format",
            )  # fmt: skip
        publish_file(written, file)
    return error


def _check_file(file: Path, format: Format) -> None:
    if file.suffix != SUFFIXES[format]:
        raise ConfigError(f"the file's name does not fit the format {format}", file=file, found=file.suffix or None,
                          expected=SUFFIXES[format])  # fmt: skip
    if file.exists():
        raise ConfigError("the file exists already", file=file, remedy="choose a new name")


def _check_operator(operator: Operator, format: Format) -> None:
    if not isinstance(operator.network, Dpot):
        raise ConfigError(
            "a baseline cannot be exported: its library's code holds for one batch size only", key="network",
            found=operator.network.config.architecture, expected="pdepot's own network",
        )  # fmt: skip
    if format == "aoti":
        _require_compiler()
    if format == "onnx":
        require_onnx()


def _require_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        remedy = "install one (Debian: apt install g++), or name it: CXX=/path/to/g++"
        raise ConfigError("AOTInductor needs a C++ compiler that works", key="format", remedy=remedy) from None


def _describe(operator: Operator, format: Format, dataset: str | None) -> Description:
    config = operator.config
    if dataset is None:
        if len(config.datasets) > 1:
            raise ConfigError("the operator knows several datasets, and a file is for one", key="dataset",
                              expected=f"one of: {', '.join(d.name for d in config.datasets)}")  # fmt: skip
        dataset = config.datasets[0].name
    known = config.datasets[operator.dataset_index(dataset)]
    state = {name: value.detach().cpu().contiguous() for name, value in operator.state_dict().items()}
    return Description(
        format=format, dataset=dataset, channels=known.channels, parameters=parameters_of(operator, dataset),
        grid=operator.grid(dataset), boundaries=known.boundaries, frames_in=config.network.in_timesteps,
        frames_out=config.network.out_timesteps, dt=known.dt,
        device="cpu" if format == "onnx" else operator.scale.device.type,
        weights_sha256=hashlib.sha256(safetensors.torch.save(state)).hexdigest(),
        pdepot=installed_version("pdepot"), torch=torch.__version__,
    )  # fmt: skip


def _trace(operator: Operator, description: Description) -> ExportedProgram:
    with torch.no_grad():
        module = DatasetOperator(operator, description.dataset, description.device)
        inputs = _random_inputs(operator, description, _TRACED_BATCH)
        batch = Dim("batch", min=1)
        shapes = tuple({0: batch} for _ in inputs)
        # Strict: `len` of a tensor then stays symbolic, too.
        program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=True)
    _strip(program)
    return program


def _strip(program: ExportedProgram) -> None:
    """Take from a program the weights of which only products are used, and the names of this machine's folders."""
    used = {spec.target for spec in program.graph_signature.input_specs}
    for name in program.state_dict.keys() - used:
        del program.state_dict[name]
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)


def _random_inputs(operator: Operator, description: Description, samples: int) -> tuple[Tensor, ...]:
    """Histories as scattered as the dataset's, and parameters, one of them unknown, on the described device."""
    d, random = description, torch.Generator().manual_seed(samples)
    known = operator.config.datasets[operator.dataset_index(d.dataset)]
    noise = torch.randn(samples, *d.grid, d.frames_in, len(d.channels), generator=random)
    history = torch.tensor(known.mean) + torch.tensor([s or 1.0 for s in known.std]) * noise
    inputs = [history]
    if d.parameters:
        parameters = torch.randn(samples, len(d.parameters), generator=random)
        parameters[-1, -1] = float("nan")
        inputs.append(parameters)
    return tuple(value.to(d.device) for value in inputs)


def _difference(exported: Exported, operator: Operator) -> float:
    """Relative L2, see `export_operator`."""
    d = exported.description
    mean = torch.tensor(operator.config.datasets[operator.dataset_index(d.dataset)].mean)
    worst = []
    for samples in _TRIED_BATCHES:
        inputs = _random_inputs(operator, d, samples)
        worst.append(_relative_l2(exported(*inputs).cpu(), _predict(operator, d, *inputs).cpu(), mean))
    return float(torch.stack(worst).max())  # NaN if any is


def _predict(operator: Operator, description: Description, history: Tensor, told: Tensor | None = None) -> Tensor:
    """The operator's own frames, by its slots and names."""
    d, slots, device = description, operator.slots(description.dataset), operator.scale.device
    padded = history.new_zeros(*history.shape[:-1], len(operator.config.channels), device=device)
    padded[..., slots] = history.to(device)
    parameters = history.new_full((len(history), len(operator.config.parameters)), float("nan"), device=device)
    if told is not None:
        parameters[:, [operator.config.parameters.index(name) for name in d.parameters]] = told.to(device)
    rows = torch.full((len(history),), operator.dataset_index(d.dataset), device=device)
    with torch.no_grad():
        frames: Tensor = operator(padded, rows, parameters)
    return frames[..., slots]


def _relative_l2(found: Tensor, expected: Tensor, mean: Tensor) -> Tensor:
    """Of the worst channel."""
    error, deviation, whole = (
        x.double().flatten(0, -2).square().sum(0).sqrt() for x in (found - expected, expected - mean, expected)
    )
    # A large mean would hide everything else; yet of a field that hardly leaves it, float32 holds no more than this.
    size = torch.maximum(deviation, 0.01 * whole)
    return (error / size.clamp(min=torch.finfo(torch.float32).tiny)).max()


def _write_torch(program: ExportedProgram, file: Path, description: Description) -> None:
    program.example_inputs = None  # They would be stored, too.
    torch.export.save(program, file, extra_files={f"{KEY}.json": description.model_dump_json(indent=1)})


def _write_aoti(program: ExportedProgram, file: Path, description: Description) -> None:
    metadata = {KEY: description.model_dump_json()}
    torch._inductor.aoti_compile_and_package(
        program, package_path=str(file), inductor_configs={"aot_inductor.metadata": metadata}
    )


def _write_onnx(program: ExportedProgram, file: Path, description: Description) -> None:
    tensors = [v for v in (*program.state_dict.values(), *program.constants.values()) if isinstance(v, Tensor)]
    size = sum(value.nbytes for value in tensors)
    if size > _ONNX_LIMIT:
        raise ConfigError("too large for one ONNX file", key="weights", found=f"{size:,} bytes",
                          expected=f"at most {_ONNX_LIMIT:,}", remedy="export as torch or aoti")  # fmt: skip
    inputs = INPUTS[: 2 if description.parameters else 1]
    axes = tuple({0: "batch"} for _ in inputs)  # No more than a name here: the program has the axis.
    onnx = torch.onnx.export(
        program, dynamo=True, input_names=inputs, output_names=[OUTPUT], dynamic_shapes=axes, verbose=False
    )
    assert onnx is not None
    onnx.model.metadata_props[KEY] = description.model_dump_json()
    onnx.save(file)


_WRITERS: dict[Format, Callable[[ExportedProgram, Path, Description], None]] = {
    "torch": _write_torch, "aoti": _write_aoti, "onnx": _write_onnx,
}  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' remarks on themselves and on packages that are not needed."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch._inductor", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
