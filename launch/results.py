"""The end of a job: one table on the terminal, one HTML report, and where to look further."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.jobs import Outcome
from pretrain.report import METRIC_NOTE, Section, Table, evaluation_section, summary, table, write_report
from pretrain.tracking import ui_command


def show_results(
    output: Path, title: str, configuration: Mapping[str, Any], outcomes: Sequence[Outcome], uri: str
) -> None:
    """Write `report.html` into the output folder and print the table and the paths."""
    rows = [row for outcome in outcomes for row in summary(outcome.evaluations)]
    lineage = {key: value for outcome in outcomes for key, value in outcome.lineage.items()}
    registered = {name: reference for outcome in outcomes for name, reference in outcome.registered.items()}
    report = output / "report.html"
    write_report(
        report,
        title=title,
        tables=[Table("Relative L2 of the roll-out", rows, METRIC_NOTE)],
        sections=[section for outcome in outcomes for section in _sections(outcome)],
        configuration=configuration,
        lineage=lineage | registered,
    )
    print("\nRelative L2 of the roll-out on held-out trajectories:\n")
    print(table(rows))
    for reference in registered.values():
        print(f"\nregistered: {reference}", end="")
    print(f"\nreport:     {report.resolve()}\nMLflow:     {ui_command(uri, output)}", flush=True)


def _sections(outcome: Outcome) -> list[Section]:
    datasets = [e.dataset for e in next(iter(outcome.evaluations.values()))]
    return [
        evaluation_section({model: results[i] for model, results in outcome.evaluations.items()})
        for i, _ in enumerate(datasets)
    ]
