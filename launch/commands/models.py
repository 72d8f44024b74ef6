"""`pdepot models`: the model registry, published checkpoints, other programs' formats."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.base.config import build, load, parse_overrides
from data_pipeline.base.errors import ConfigError
from launch.commands.parser import Commands, add_command, add_overrides, mlflow_uri

if TYPE_CHECKING:
    from pretrain.model import Dpot
    from pretrain.model.baseline import Baseline


def add_model_commands(commands: Commands) -> None:
    """Add them to their group."""
    add_command(commands, "list", _list_models, "list the registered models", "models list")
    add = add_command(
        commands,
        "show",
        _show_model,
        "show a model's versions, figures and lineage",
        "models show models:/pdepot-demo@champion",
    )
    add.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    add = add_command(
        commands,
        "pull",
        _pull_model,
        "download a model into a folder",
        "models pull models:/pdepot-demo@champion operators/demo",
    )
    add.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    add.add_argument("folder", type=Path)
    _add_file_commands(commands)
    _add_diagnose_command(commands)
    add = add_command(
        commands,
        "promote",
        _promote_model,
        "give an alias to a version of a model, on record",
        "models promote pdepot-demo 2 --alias champion --reason 'better on all families'",
    )
    add.add_argument("name")
    add.add_argument("version", type=int)
    add.add_argument("--alias", default="champion")
    add.add_argument("--reason", default="", help="kept on record beside the version")


def _add_file_commands(commands: Commands) -> None:
    add = add_command(
        commands,
        "import",
        _import_model,
        "turn a published checkpoint into an operator, executing nothing",
        "models import model_Ti.pth operators/ti --register dpot-ti",
    )
    add.add_argument("file", type=Path, help="a checkpoint as the published code writes it")
    add.add_argument("folder", type=Path)
    add.add_argument("--size", help="published size that the file must have (default: the one in its name, if any)")
    add.add_argument("--register", metavar="NAME", help="register the operator under this name, too")
    add = add_command(
        commands,
        "export",
        _export_model,
        "write an operator as a file for other programs",
        "models export models:/pdepot-demo@champion ns.onnx --format onnx --dataset navier_stokes_2d",
    )
    add.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder with an operator")
    add.add_argument("file", type=Path, help="a new file: .pt2 (torch, aoti), .onnx (onnx), .pth (reference)")
    add.add_argument(
        "--format",
        required=True,
        choices=["torch", "aoti", "onnx", "reference"],
        help="torch: a torch.export program; aoti: compiled by AOTInductor for this machine, with its "
        "GPU if it has one; onnx: a graph for ONNX runtimes; reference: as the published code loads. "
        "Loading .pt2 files executes what is in them: load only those that you made",
    )
    add.add_argument("--dataset", metavar="NAME", help="the one whose fields a torch, aoti or onnx file takes and "
                     "gives; needed where the operator knows several")  # fmt: skip


def _add_diagnose_command(commands: Commands) -> None:
    add = add_command(
        commands,
        "diagnose",
        _diagnose_model,
        "show how gradients pass through a network, block by block",
        "models diagnose configs/pretrain/demo.yaml model.depth=12 --space 64 64",
    )
    add.add_argument(
        "model",
        nargs="?",
        help="a pretraining configuration, for fresh weights; or an operator: "
        "models:/NAME@ALIAS, models:/NAME/VERSION or a folder",
    )
    add_overrides(add)
    add.add_argument("--space", type=int, nargs="+", metavar="N", help="a configuration's grid (default: 64 64)")
    add.add_argument("--channels", type=int, metavar="C", help="a configuration's channels (default: 1)")
    add.add_argument("--init", choices=["published", "edge_of_chaos"], help="draw fresh weights in this way")
    add.add_argument("--stack", action="store_true", help="a bare stack of spectral layers, as in theory; settings: "
                     "width, depth, points, modes, activation, sigma2, signal, amplitude, seed")  # fmt: skip


def _list_models(_: argparse.Namespace) -> int:
    from pretrain.registry import list_models
    from pretrain.report import table

    prefix = "relative_l2."
    rows = []
    for m in list_models(mlflow_uri()):
        errors = {k.removeprefix(prefix): value for k, value in m.metrics.items() if k.startswith(prefix)}
        shown = ", ".join(f"{dataset} {error:.3g}" for dataset, error in errors.items())
        row = {"name": m.name, "version": m.version, "aliases": ", ".join(m.aliases), "created": m.created}
        rows.append({**row, "relative L2 of roll-outs": shown})
    print(table(rows) if rows else f"no models in {mlflow_uri()}")
    return 0


def _show_model(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    import yaml

    from pretrain.registry import show

    record = asdict(show(options.model, mlflow_uri()))
    record["aliases"] = list(record["aliases"])
    print(yaml.safe_dump(record, sort_keys=False), end="")
    return 0


def _pull_model(options: argparse.Namespace) -> int:
    from pretrain.registry import pull

    print(pull(options.model, options.folder, uri=mlflow_uri()))
    return 0


def _import_model(options: argparse.Namespace) -> int:
    from data_pipeline.base.files import sha256_file
    from pretrain.model.official import import_official
    from pretrain.model.operator import WEIGHTS_FILE

    if options.register:
        from pretrain.registry import check_words, register
        from pretrain.tracking import check_reachable

        check_words(options.register, None)
        check_reachable(mlflow_uri())
    official = import_official(options.file, options.folder, options.size)
    print(f"{official.text()}\n{'sha256':11} {sha256_file(options.folder / WEIGHTS_FILE)}  {options.folder}")
    if options.register:
        source = {"file": options.file.name, "sha256": sha256_file(options.file), "size": official.size}
        name = options.register
        print(
            register(
                options.folder, name, uri=mlflow_uri(), experiment=name, lineage={"source": source}, metrics={}
            ).uri
        )
    return 0


def _export_model(options: argparse.Namespace) -> int:
    from pretrain.registry import load_operator

    operator = load_operator(options.model, mlflow_uri())
    if options.format == "reference":
        from pretrain.model.official import export_reference

        if options.dataset:
            raise ConfigError("a reference file is for no dataset", key="--dataset", found=options.dataset)
        export_reference(operator, options.file)
        print(options.file)
    else:
        from pretrain.engine import device_type
        from pretrain.export import export_operator

        error = export_operator(operator.to(device_type()), options.file, options.format, options.dataset)
        print(f"{options.file}  (relative L2 to the operator on random histories: {error:.1e})")
    return 0


def _diagnose_model(options: argparse.Namespace) -> int:
    from pretrain.diagnose import StackConfig, diagnose, diagnose_stack
    from pretrain.model.signal import critical_variance
    from pretrain.report import table

    flags = [f"--{flag}" for flag in ("space", "channels", "init") if getattr(options, flag) is not None]
    if options.stack:
        settings = [word for word in (options.model, *options.overrides) if word is not None]
        if flags:
            raise ConfigError("a stack has settings only", found=" ".join(flags), expected="key=value, as --help says")
        stack = build(StackConfig, parse_overrides(settings))
        edge = critical_variance(stack.activation)
        print(f"{stack.activation}: sigma^2 {stack.variance:.4g}, edge of chaos at {edge:.4g}")
        found = diagnose_stack(stack)
    elif options.model is None:
        raise ConfigError("nothing to diagnose", expected="a configuration, an operator, or --stack")
    else:
        found = diagnose(_network_to_diagnose(options))
    print(table(found.rows()))
    print(found.verdict)
    return 0


def _network_to_diagnose(options: argparse.Namespace) -> "Dpot | Baseline":
    from pretrain.config import PretrainConfig
    from pretrain.diagnose import fresh_network, redrawn
    from pretrain.registry import load_operator

    if Path(options.model).suffix in (".yaml", ".yml"):
        init = [f"model.initialisation={options.init}"] if options.init else []
        config = load(PretrainConfig, options.model, [*options.overrides, *init])
        return fresh_network(config, options.space or (64, 64), 1 if options.channels is None else options.channels)
    if options.overrides or options.space or options.channels is not None:
        raise ConfigError(
            "the shape of an operator is fixed", file=options.model, expected="--init alone, or a YAML configuration"
        )
    network = load_operator(options.model, mlflow_uri()).network
    return redrawn(network, options.init) if options.init else network


def _promote_model(options: argparse.Namespace) -> int:
    import getpass

    from pretrain.registry import promote

    promote(
        options.name, options.version, options.alias, uri=mlflow_uri(), by=getpass.getuser(), reason=options.reason
    )
    print(f"models:/{options.name}@{options.alias} is now version {options.version}")
    return 0
