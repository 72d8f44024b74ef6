"""The command line `pdepot`. Every command is a thin call of a function that Python users call too."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from data_pipeline.base.config import apply_overrides, build, load, parse_overrides
from data_pipeline.base.errors import ConfigError, nearest
from data_pipeline.base.remote import as_location
from data_pipeline.config import DatasetConfig, ExportConfig
from launch.launcher import Launcher, add_launcher_flags, launcher_of
from launch.messages import exit_code

if TYPE_CHECKING:
    from pretrain.model import Dpot
    from pretrain.model.baseline import Baseline

Handler = Callable[[argparse.Namespace], int]


class _Parser(argparse.ArgumentParser):
    """argparse, except that a mistyped command, or value of an option, names its nearest neighbour."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice: " in message:
            argument = message.removeprefix("argument ").split(": invalid choice: ")[0]
            word = message.split("invalid choice: '")[-1].split("'")[0]
            known = {"/".join(a.option_strings) or a.metavar or a.dest: a.choices for a in self._actions if a.choices}
            what = "command" if argument == "COMMAND" else f"value of {argument}"
            message = f"unknown {what} {word!r}; {nearest(word, [str(c) for c in known[argument]])}"
        super().error(message)


_Commands: TypeAlias = "argparse._SubParsersAction[_Parser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's error is one clear message and exit code 1."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    options.words = list(sys.argv[1:] if arguments is None else arguments)
    # argparse takes all key=value settings before the first option; here they may also follow it.
    settings = [word for word in rest if "=" in word and word[0] != "-" and hasattr(options, "overrides")]
    if len(settings) < len(rest):
        parser.error(f"unrecognized arguments: {' '.join(word for word in rest if word not in settings)}")
    if settings:
        options.overrides = [*options.overrides, *settings]
    handler: Handler = options.handler
    return exit_code(lambda: handler(options))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pdepot",
        description="Pretrain one operator on many PDEs, and adapt it to yours.",
        epilog="example: pdepot data info data/navier_stokes_2d.zarr",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    data = commands.add_parser("data", help="make, convert and check datasets", epilog=_example("data --help"))
    _add_data_commands(data.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser))
    _add_training_commands(commands)
    _add_replay_command(commands)
    runs = commands.add_parser("runs", help="training runs and how far they are", epilog=_example("runs list"))
    _add_run_commands(runs.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser))
    models = commands.add_parser("models", help="the model registry", epilog=_example("models list"))
    _add_model_commands(models.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser))
    return parser


def _example(text: str) -> str:
    return f"example: pdepot {text}"


def _add(commands: _Commands, name: str, handler: Handler, text: str, example: str) -> _Parser:
    parser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", epilog=_example(example)
    )
    parser.set_defaults(handler=handler)
    return parser


def _add_overrides(parser: _Parser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")


def _add_data_commands(commands: _Commands) -> None:
    add = _add(commands, "generate", _generate, "solve a PDE family into a Zarr store",
               "data generate configs/data/navier_stokes_2d.yaml generate.splits.train=1000")  # fmt: skip
    add.add_argument("config", type=Path, nargs="?", help="configuration of the dataset")
    add.add_argument("--list", nargs="?", const="", metavar="FAMILY", help="list the families that can be solved, or "
                     "all about one of them, and end")  # fmt: skip
    _add_overrides(add)
    _add_place(add)

    add = _add(commands, "convert", _convert, "read a published dataset into a Zarr store",
               "data convert 2D_diff-react_NA_NA.h5 --name diff_react convert.splits={test: 0.1}")  # fmt: skip
    add.add_argument("source", type=Path, help="configuration of the dataset, or its files in a published layout")
    add.add_argument("--name", help="the dataset's name, when the source is a path; the path's last part if not given")
    _add_overrides(add)
    _add_place(add)

    add = _add(commands, "export", _export, "export a Zarr store as WebDataset shards with an offset index",
               "data export data/navier_stokes_2d.zarr dtype=float16")  # fmt: skip
    add.add_argument("store", type=as_location, help="a Zarr store made by generate or convert, or its URL")
    add.add_argument("--root", type=as_location,
                     help="folder or URL that gets NAME.shards or NAME (default: the store's own)")  # fmt: skip
    add.add_argument("--format", choices=["shards", "the_well"], default="shards",
                     help="shards: WebDataset tars for training; the_well: HDF5 in The Well's layout")  # fmt: skip
    _add_overrides(add)
    _add_ray_address(add)

    add = _add(commands, "validate", _validate, "say what a dataset is, and what is wrong with it",
               "data validate data/navier_stokes_2d.shards")  # fmt: skip
    add.add_argument("path", type=as_location,
                     help="a store, shards (or their URL), files in a published layout, a configuration")  # fmt: skip

    add = _add(commands, "info", _info, "summarise a dataset and draw one trajectory",
               "data info data/navier_stokes_2d.zarr --picture ns.png")  # fmt: skip
    add.add_argument("path", type=as_location,
                     help="a store, shards (or their URL), files in a published layout, a configuration")  # fmt: skip
    add.add_argument("--picture", type=Path, help="draw one trajectory into this PNG file")


def _add_place(parser: _Parser) -> None:
    parser.add_argument("--root", type=as_location, default=Path("data"),
                        help="folder of the stores, or its URL, s3://bucket/prefix (default: data)")  # fmt: skip
    _add_ray_address(parser)


def _add_ray_address(parser: _Parser) -> None:
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="an existing Ray cluster, whose nodes reach the "
                        "same files (default: a local session, for the time of the command)")  # fmt: skip


def _add_training_commands(commands: _Commands) -> None:
    add = _add(commands, "pretrain", _pretrain, "train an operator on a mixture of datasets, evaluate and register it",
               "pretrain configs/pretrain/turbulence.yaml training.steps=100")  # fmt: skip
    add.add_argument("config", type=Path, help="a pretraining configuration; its datasets must have been built")
    add.add_argument("--new-segment", action="store_true", help="let a run that has begun go on from its last "
                     "checkpoint with other datasets, weights or quarantine")  # fmt: skip
    add_launcher_flags(add)
    _add_overrides(add)

    add = _add(commands, "finetune", _finetune, "adapt a registered operator to a new dataset",
               "finetune configs/finetune/gray_scott.yaml model=models:/pdepot-demo@champion")  # fmt: skip
    add.add_argument("config", type=Path, help="a fine-tuning configuration; its datasets must have been built")
    add_launcher_flags(add)
    _add_overrides(add)

    add = _add(commands, "evaluate", _evaluate, "roll an operator out on held-out trajectories",
               "evaluate models:/pdepot-demo@champion data/navier_stokes_2d.shards")  # fmt: skip
    add.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder with an operator")
    add.add_argument("data", type=as_location, nargs="+",
                     help="stores or shards of datasets that the operator knows, or their URLs")  # fmt: skip
    add.add_argument("--split", default="test", choices=["train", "valid", "test"])
    add.add_argument("--limit", type=int, help="at most so many trajectories of each dataset")
    add.add_argument("--report", type=Path, help="write figures and pictures into this HTML file")


def _add_replay_command(commands: _Commands) -> None:
    add = _add(commands, "replay", _replay, "compute a training step that was not taken again",
               "replay runs/demo/pretrain/incidents/step-00000037")  # fmt: skip
    add.add_argument("incident", type=Path, help="a folder below a run's incidents/")


def _add_run_commands(commands: _Commands) -> None:
    add = _add(commands, "list", _list_runs, "list the runs below a folder", "runs list runs")
    add.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="default: runs")
    for name, handler, text in (
        ("show", _show_run, "show how far a run is, and what has happened to it"),
        ("watch", _watch_run, "show a run live until it ends; exit code 1 unless it has finished"),
        ("sync", _sync_run, "send MLflow what its server has missed of a run"),
    ):
        add = _add(commands, name, handler, text, f"runs {name} runs/demo")
        add.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one with a single run below it")


def _add_model_commands(commands: _Commands) -> None:
    _add(commands, "list", _list_models, "list the registered models", "models list")
    add = _add(
        commands, "show", _show_model, "show a model's versions, figures and lineage", "models show pdepot-demo"
    )
    add.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    add = _add(commands, "pull", _pull_model, "download a model into a folder",
               "models pull models:/pdepot-demo@champion operators/demo")  # fmt: skip
    add.add_argument("model", help="models:/NAME@ALIAS or models:/NAME/VERSION")
    add.add_argument("folder", type=Path)
    add = _add(commands, "import", _import_model, "turn a published checkpoint into an operator, executing nothing",
               "models import model_Ti.pth operators/ti --register dpot-ti")  # fmt: skip
    add.add_argument("file", type=Path, help="a checkpoint as the published code writes it")
    add.add_argument("folder", type=Path)
    add.add_argument("--size", help="published size that the file must have (default: the one in its name, if any)")
    add.add_argument("--register", metavar="NAME", help="register the operator under this name, too")
    add = _add(commands, "export", _export_model, "write an operator as a file for other programs",
               "models export models:/demo@champion ns.onnx --format onnx --dataset navier_stokes_2d")  # fmt: skip
    add.add_argument("model", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a folder with an operator")
    add.add_argument("file", type=Path, help="a new file: .pt2 (torch, aoti), .onnx (onnx), .pth (reference)")
    add.add_argument("--format", required=True, choices=["torch", "aoti", "onnx", "reference"],
                     help="torch: a torch.export program; aoti: compiled by AOTInductor for this machine, with its "
                     "GPU if it has one; onnx: a graph for ONNX runtimes; reference: as the published code loads. "
                     "Loading .pt2 files executes what is in them: load only those that you made")  # fmt: skip
    add.add_argument("--dataset", metavar="NAME", help="the one whose fields a torch, aoti or onnx file takes and "
                     "gives; needed where the operator knows several")  # fmt: skip
    add = _add(commands, "diagnose", _diagnose_model, "show how gradients pass through a network, block by block",
               "models diagnose configs/pretrain/demo.yaml model.depth=12 --space 64 64")  # fmt: skip
    add.add_argument("model", nargs="?", help="a pretraining configuration, for fresh weights; or an operator: "
                     "models:/NAME@ALIAS, models:/NAME/VERSION or a folder")  # fmt: skip
    _add_overrides(add)
    add.add_argument("--space", type=int, nargs="+", metavar="N", help="a configuration's grid (default: 64 64)")
    add.add_argument("--channels", type=int, metavar="C", help="a configuration's channels (default: 1)")
    add.add_argument("--init", choices=["published", "edge_of_chaos"], help="draw fresh weights in this way")
    add.add_argument("--stack", action="store_true", help="a bare stack of spectral layers, as in theory; settings: "
                     "width, depth, points, modes, activation, sigma2, signal, amplitude, seed")  # fmt: skip
    add = _add(commands, "promote", _promote_model, "give an alias to a version of a model, on record",
               "models promote pdepot-demo 2 --alias champion --reason 'better on all families'")  # fmt: skip
    add.add_argument("name")
    add.add_argument("version", type=int)
    add.add_argument("--alias", default="champion")
    add.add_argument("--reason", default="", help="kept on record beside the version")


def _generate(options: argparse.Namespace) -> int:
    from data_pipeline.build import build_store
    from data_pipeline.solvers.listing import describe_family, list_families

    if options.list is not None:
        print(describe_family(options.list) if options.list else list_families())
        return 0
    if options.config is None:
        raise ConfigError("no configuration given", expected="a file, for example configs/data/navier_stokes_2d.yaml")
    config = load(DatasetConfig, options.config, options.overrides)
    if config.generate is None:
        raise ConfigError(
            "nothing to generate", file=options.config, key="generate", remedy="use: pdepot data convert"
        )
    print(build_store(config, options.root, ray_address=options.ray_address))
    return 0


def _convert(options: argparse.Namespace) -> int:
    from data_pipeline.build import build_store

    if options.source.suffix not in (".yaml", ".yml"):
        name = options.name or re.sub(r"[^a-z0-9_-]", "_", options.source.resolve().stem.lower())
        content = {"name": name, "convert": {"path": str(options.source)}}
        config = build(
            DatasetConfig, apply_overrides(content, parse_overrides(options.overrides)), file=options.source
        )
    else:
        config = load(DatasetConfig, options.source, options.overrides)
    if config.convert is None:
        remedy = "use: pdepot data generate"
        raise ConfigError("nothing to convert", file=options.source, key="convert", remedy=remedy)
    print(build_store(config, options.root, ray_address=options.ray_address))
    return 0


def _export(options: argparse.Namespace) -> int:
    from data_pipeline.export import export_shards

    if options.format == "the_well":
        from data_pipeline.well_export import export_well

        if options.overrides:
            raise ConfigError("settings are for shards", found=" ".join(options.overrides), remedy="leave them out")
        root = options.root or _parent(options.store)
        if isinstance(root, str):
            raise ConfigError("The Well's layout is written to a folder", key="--root", found=root)
        print(export_well(options.store, root))
        return 0
    config = build(ExportConfig, parse_overrides(options.overrides))
    root = options.root or _parent(options.store)
    print(export_shards(options.store, root, config, ray_address=options.ray_address))
    return 0


def _parent(location: Path | str) -> Path | str:
    return location.parent if isinstance(location, Path) else location.rstrip("/").rpartition("/")[0]


def _validate(options: argparse.Namespace) -> int:
    from data_pipeline.inspect import validate

    report = validate(options.path)
    print(report.text())
    return 0 if report.ok else 1


def _info(options: argparse.Namespace) -> int:
    from data_pipeline.inspect import info

    print(info(options.path, options.picture).text())
    return 0


def _pretrain(options: argparse.Namespace) -> int:
    from launch.jobs import pretrain_job
    from pretrain.config import PretrainConfig

    job = partial(pretrain_job, new_segment=options.new_segment)
    return _run_job(load(PretrainConfig, options.config, options.overrides), options, job)


def _finetune(options: argparse.Namespace) -> int:
    from finetune.config import FinetuneConfig
    from launch.jobs import finetune_job

    return _run_job(load(FinetuneConfig, options.config, options.overrides), options, finetune_job)


def _run_job(config: Any, options: argparse.Namespace, job: Callable[[Any, Path, str, Launcher], Any]) -> int:
    """Run a whole job and show its results; or hand it to Slurm, which runs the same command again."""
    from launch.ranks import check_launch
    from launch.results import show_results
    from launch.slurm import must_submit, submit
    from pretrain.tracking import check_reachable

    launcher = launcher_of(options)
    check_launch(config.training, launcher)
    if must_submit(launcher):
        submit([sys.executable, "-m", "launch.cli", *options.words], Path(config.output), config.name, launcher)
        return 0
    check_reachable(_uri())
    outcome = job(config, options.config.parent, _uri(), launcher)
    show_results(Path(config.output), config.name, config.model_dump(mode="json"), [outcome], _uri())
    return 0


def _replay(options: argparse.Namespace) -> int:
    from pretrain.replay import replay
    from pretrain.report import table

    found = replay(options.incident)
    print(table(found.rows))
    print(found.text)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from data_pipeline.stores import open_store
    from pretrain.engine import device_type
    from pretrain.evaluate import evaluate
    from pretrain.registry import load_operator
    from pretrain.report import METRIC_NOTE, Table, evaluation_section, summary, table, write_report

    operator = load_operator(options.model, _uri()).to(device_type())
    evaluations = [
        evaluate(operator, open_store(path, options.split), device=device_type(), limit=options.limit)
        for path in options.data
    ]
    rows = summary({"operator": evaluations})
    print(table(rows))
    if options.report:
        write_report(
            options.report,
            title=options.model,
            tables=[Table("Relative L2 of the roll-out", rows, METRIC_NOTE)],
            sections=[evaluation_section({"operator": e}) for e in evaluations],
            configuration=operator.config.model_dump(mode="json"),
            lineage={"model": options.model} | {f"data.{e.dataset}": e.digest for e in evaluations},
        )
        print(f"\nreport: {options.report.resolve()}")
    return 0


def _list_runs(options: argparse.Namespace) -> int:
    from launch.run_view import runs_table

    print(runs_table(options.folder))
    return 0


def _show_run(options: argparse.Namespace) -> int:
    from launch.run_view import bars_for, run_page
    from launch.runs import open_run

    print("\n".join(run_page(open_run(options.run), bars=bars_for(sys.stdout))))
    return 0


def _watch_run(options: argparse.Namespace) -> int:
    from launch.runs import open_run
    from launch.watch import watch

    try:
        return 0 if watch(open_run(options.run)) else 1
    except KeyboardInterrupt:
        return 130  # the run goes on


def _sync_run(options: argparse.Namespace) -> int:
    from launch.runs import open_run, sync_run

    print(sync_run(open_run(options.run).folder))
    return 0


def _list_models(_: argparse.Namespace) -> int:
    from pretrain.registry import list_models
    from pretrain.report import table

    prefix = "relative_l2."
    rows = []
    for m in list_models(_uri()):
        errors = {k.removeprefix(prefix): value for k, value in m.metrics.items() if k.startswith(prefix)}
        shown = ", ".join(f"{dataset} {error:.3g}" for dataset, error in errors.items())
        row = {"name": m.name, "version": m.version, "aliases": ", ".join(m.aliases), "created": m.created}
        rows.append({**row, "relative L2 of roll-outs": shown})
    print(table(rows) if rows else f"no models in {_uri()}")
    return 0


def _show_model(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    import yaml

    from pretrain.registry import show

    record = asdict(show(options.model, _uri()))
    record["aliases"] = list(record["aliases"])
    print(yaml.safe_dump(record, sort_keys=False), end="")
    return 0


def _pull_model(options: argparse.Namespace) -> int:
    from pretrain.registry import pull

    print(pull(options.model, options.folder, uri=_uri()))
    return 0


def _import_model(options: argparse.Namespace) -> int:
    from data_pipeline.base.files import sha256_file
    from pretrain.model.official import import_official
    from pretrain.model.operator import WEIGHTS_FILE

    if options.register:
        from pretrain.registry import check_words, register
        from pretrain.tracking import check_reachable

        check_words(options.register, None)
        check_reachable(_uri())
    official = import_official(options.file, options.folder, options.size)
    print(f"{official.text()}\n{'sha256':11} {sha256_file(options.folder / WEIGHTS_FILE)}  {options.folder}")
    if options.register:
        source = {"file": options.file.name, "sha256": sha256_file(options.file), "size": official.size}
        name = options.register
        print(register(options.folder, name, uri=_uri(), experiment=name, lineage={"source": source}, metrics={}).uri)
    return 0


def _export_model(options: argparse.Namespace) -> int:
    from pretrain.registry import load_operator

    operator = load_operator(options.model, _uri())
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
    network = load_operator(options.model, _uri()).network
    return redrawn(network, options.init) if options.init else network


def _promote_model(options: argparse.Namespace) -> int:
    import getpass

    from pretrain.registry import promote

    promote(options.name, options.version, options.alias, uri=_uri(), by=getpass.getuser(), reason=options.reason)
    print(f"models:/{options.name}@{options.alias} is now version {options.version}")
    return 0


def _uri() -> str:
    from pretrain.tracking import default_uri

    return default_uri()


if __name__ == "__main__":
    sys.exit(main())
