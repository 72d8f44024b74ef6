"""`pdepot data`: make, convert and check datasets."""

import argparse
import re
from pathlib import Path

from data_pipeline.base.config import apply_overrides, build, load, parse_overrides
from data_pipeline.base.errors import ConfigError
from data_pipeline.base.remote import as_location
from data_pipeline.config import DatasetConfig, ExportConfig
from launch.commands.parser import Commands, Parser, add_command, add_overrides


def add_data_commands(commands: Commands) -> None:
    """Add them to their group."""
    add = add_command(
        commands,
        "generate",
        _generate,
        "solve a PDE family into a Zarr store",
        "data generate configs/data/navier_stokes_2d.yaml generate.splits.train=1000",
    )
    add.add_argument("config", type=Path, nargs="?", help="configuration of the dataset")
    add.add_argument(
        "--list",
        nargs="?",
        const="",
        metavar="FAMILY",
        help="list the families that can be solved, or all about one of them, and end",
    )
    add_overrides(add)
    _add_place(add)

    add = add_command(
        commands,
        "convert",
        _convert,
        "read a published dataset into a Zarr store",
        "data convert 2D_diff-react_NA_NA.h5 --name diff_react convert.splits='{test: 0.1}'",
    )
    add.add_argument("source", type=Path, help="configuration of the dataset, or its files in a published layout")
    add.add_argument("--name", help="the dataset's name, when the source is a path; the path's last part if not given")
    add_overrides(add)
    _add_place(add)

    add = add_command(
        commands,
        "export",
        _export,
        "export a Zarr store as WebDataset shards with an offset index",
        "data export data/navier_stokes_2d.zarr dtype=float16",
    )
    add.add_argument("store", type=as_location, help="a Zarr store made by generate or convert, or its URL")
    add.add_argument(
        "--root", type=as_location, help="folder or URL that gets NAME.shards or NAME (default: the store's own)"
    )
    add.add_argument("--format", choices=["shards", "the_well"], default="shards",
                     help="shards: WebDataset tars for training; the_well: HDF5 in The Well's layout")  # fmt: skip
    add_overrides(add)
    _add_ray_address(add)

    add = add_command(
        commands,
        "validate",
        _validate,
        "say what a dataset is, and what is wrong with it",
        "data validate data/navier_stokes_2d.shards",
    )
    add.add_argument(
        "path", type=as_location, help="a store, shards (or their URL), files in a published layout, a configuration"
    )

    add = add_command(
        commands,
        "info",
        _info,
        "summarise a dataset and draw one trajectory",
        "data info data/navier_stokes_2d.zarr --picture ns.png",
    )
    add.add_argument(
        "path", type=as_location, help="a store, shards (or their URL), files in a published layout, a configuration"
    )
    add.add_argument("--picture", type=Path, help="draw one trajectory into this PNG file")


def _add_place(parser: Parser) -> None:
    parser.add_argument("--root", type=as_location, default=Path("data"),
                        help="folder of the stores, or its URL, s3://bucket/prefix (default: data)")  # fmt: skip
    _add_ray_address(parser)


def _add_ray_address(parser: Parser) -> None:
    parser.add_argument("--ray-address", metavar="HOST:PORT", help="an existing Ray cluster, whose nodes reach the "
                        "same files (default: a local session, for the time of the command)")  # fmt: skip


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
    try:
        print(build_store(config, options.root, ray_address=options.ray_address))
    except ConfigError as error:  # a family knows its parameters, and not the file that they stand in
        raise error.within(options.config) from None
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
