"""`pdepot runs`: training runs and how far they are."""

import argparse
import sys
from pathlib import Path

from launch.commands.parser import Commands, add_command


def add_run_commands(commands: Commands) -> None:
    """Add them to their group."""
    add = add_command(commands, "list", _list_runs, "list the runs below a folder", "runs list runs")
    add.add_argument("folder", type=Path, nargs="?", default=Path("runs"), help="default: runs")
    for name, handler, text in (
        ("show", _show_run, "show how far a run is, and what has happened to it"),
        ("watch", _watch_run, "show a run live until it ends; exit code 1 unless it has finished"),
        ("sync", _sync_run, "send MLflow what its server has missed of a run"),
    ):
        add = add_command(commands, name, handler, text, f"runs {name} runs/demo/pretrain")
        add.add_argument("run", type=Path, metavar="RUN", help="a run's folder, or one with a single run below it")


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
