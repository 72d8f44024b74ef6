"""The report: one self-contained HTML file that opens anywhere, without network and without scripts."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data_pipeline.base.files import write_bytes
from pretrain.evaluate import Evaluation
from pretrain.pictures import picture_error_over_time, picture_rollout

Row = Mapping[str, Any]
"""A line of a table: cells by the names of their columns."""

METRIC_NOTE = (
    "Relative L2 of the whole roll-out per channel, averaged over channels, then over trajectories; physical units, "
    "context frames not counted. Persistence repeats the last known frame."
)


@dataclass(frozen=True)
class Table:
    """Rows under a title."""

    title: str
    rows: Sequence[Row]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows; the caption is also what a screen reader says."""

    caption: str
    png: bytes


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


def write_report(
    path: Path,
    *,
    title: str,
    tables: Sequence[Table],
    sections: Sequence[Section],
    configuration: Mapping[str, Any],
    lineage: Mapping[str, str | Sequence[str]],
) -> None:
    """Write the report in one step.

    Args:
        path: the HTML file.
        title: its heading.
        tables: shown first, for example `summary(...)`.
        sections: shown after them, for example one `evaluation_section(...)` a dataset.
        configuration: JSON-able; shown as YAML.
        lineage: where the figures come from: git revision, digests of the data, commands.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    html = environment.get_template("report.html").render(
        title=title,
        tables=tables,
        sections=sections,
        configuration=yaml.safe_dump(dict(configuration), sort_keys=False, allow_unicode=True, width=100),
        lineage={key: [value] if isinstance(value, str) else value for key, value in lineage.items()},
        columns=_columns,
        cell=_cell,
        is_number=_is_number,
        base64=lambda content: b64encode(content).decode(),
    )
    write_bytes(path, html.encode())


def summary(evaluations: Mapping[str, Sequence[Evaluation]]) -> list[dict[str, Any]]:
    """One row a dataset: its relative L2 by persistence, then by every model that was evaluated on it.

    Args:
        evaluations: by the models' names ("pretrained", "scratch", "fine-tuned"). Evaluations over different
            splits, data or numbers of trajectories or frames get rows of their own, since they do not compare.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for model, results in evaluations.items():
        for e in results:
            key = (e.dataset, e.split, e.digest, e.trajectories, e.frames)
            shared = {
                "dataset": e.dataset,
                "split": e.split,
                "trajectories": e.trajectories,
                "frames": e.frames,
                "persistence": e.persistence,
            }
            rows.setdefault(key, shared)[model] = _score(e.relative_l2, e)
    return list(rows.values())


def evaluation_section(evaluations: Mapping[str, Evaluation]) -> Section:
    """Figures and pictures of one dataset; `evaluations` by the models' names, all of that dataset and split."""
    first = next(iter(evaluations.values()))
    rows: list[dict[str, Any]] = [
        {
            "model": "persistence",
            "roll-out": first.persistence,
            "one step": first.one_step_persistence,
            "VRMSE": first.persistence_vrmse,
            **first.persistence_per_channel,
        }
    ]
    for name, e in evaluations.items():
        errors = {"roll-out": e.relative_l2, "one step": e.one_step, "VRMSE": e.vrmse, **e.per_channel}
        rows.append({"model": name, **{column: _score(error, e) for column, error in errors.items()}})
    pictures = [Picture(f"{first.dataset}: relative L2 over time", picture_error_over_time(evaluations))]
    for name, e in evaluations.items():
        if e.example is not None:
            pictures.append(Picture(f"{first.dataset}: roll-out by {name}", picture_rollout(e.example)))
    text = f"{first.trajectories} trajectories of split {first.split}, {first.frames} predicted frames each."
    note = "Relative L2 of the roll-out and of one step from true histories; VRMSE; roll-out by channel."
    return Section(first.dataset, text, [Table("Errors", rows, note)], pictures)


def table(rows: Sequence[Row]) -> str:
    """The rows as plain text for a terminal: columns aligned, numbers to the right."""
    columns = _columns(rows)
    lines = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[j]) for line in lines) for j in range(len(columns))]
    right = [any(_is_number(row.get(column)) for row in rows) for column in columns]
    text = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right, strict=True))
        for line in lines
    ]
    text.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in text)


def _score(error: float | None, evaluation: Evaluation) -> float | str:
    if error is not None:
        return error
    return f"diverged ({evaluation.diverged} of {evaluation.trajectories})" if evaluation.diverged else "not finite"


def _columns(rows: Sequence[Row]) -> list[str]:
    """Every column that some row has, in the order of first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
