"""How runs are shown in a terminal: a table of them, and a page about one."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from launch.runs import Run, find_runs
from pretrain.watchdog import hangs

_BARS = " ▁▂▃▄▅▆▇█"
_PLAIN_BARS = " .:-=+*#@"
_WIDTH = 40
# Figures that have a line of their own; what else a run notes is listed behind them.
_SHOWN = {
    "loss", "learning_rate", "gradient_norm", "samples_per_second", "flop_per_second", "fraction_of_peak",
    "data_wait_fraction", "memory_gib", "gpu_memory_gib", "skipped_steps",
}  # fmt: skip


def runs_table(folder: Path) -> str:
    """The runs in and below a folder, a line each."""
    rows = [["run", "status", "step", "loss", "samples/s", "last sign"]]
    for path in find_runs(folder):
        run = Run(path)
        figures, silent = run.history.latest(), run.silent_for()
        rows.append([
            str(path), run.status, f"{run.step}/{run.total}", number(figures.get("loss")),
            number(figures.get("samples_per_second")), "" if silent is None else f"{duration(silent)} ago",
        ])  # fmt: skip
    if len(rows) == 1:
        return f"no runs in {folder}"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def run_page(run: Run, *, bars: str = _BARS) -> list[str]:
    """All that is known of a run, as lines."""
    figures = run.history.latest()
    lines = [f"{run.name}   {run.folder}", _line("status", _status(run))]
    lines += [_line("", text) for text in run.message.splitlines()]
    lines += [_line("progress", _progress(run, bars))]
    if "loss" in figures:
        curve = [value for _, value in run.history.series("loss")]
        lines.append(_line("loss", f"{number(figures['loss']):8} {sparkline(curve, bars)}"))
        by_dataset = {k.removeprefix("loss/"): v for k, v in figures.items() if k.startswith("loss/")}
        lines += [_line("", f"{number(value):8} {name}") for name, value in by_dataset.items()]
    groups: dict[str, list[tuple[str, str]]] = {
        "optimizer": [("learning rate", "learning_rate"), ("gradient norm", "gradient_norm")],
        "speed": [("samples/s", "samples_per_second"), ("TFLOP/s", "flop_per_second"),
                  ("of peak", "fraction_of_peak"), ("waiting for data", "data_wait_fraction")],
        "memory": [("GiB", "memory_gib"), ("GiB on the GPU", "gpu_memory_gib")],
        "skipped": [("steps", "skipped_steps")],
    }  # fmt: skip
    for label, parts in groups.items():
        text = ", ".join(_figure(figures[key], key, word) for word, key in parts if key in figures)
        lines += [_line(label, text)] if text else []
    lines += [_line("checkpoints", ", ".join(map(str, run.checkpoints())) or "none yet")]
    if delivered := run.delivered():
        lines.append(_line("MLflow", f"has step {delivered[1]}, at {delivered[0]}"))
    lines += _troubles(run)
    others = {k: v for k, v in figures.items() if k not in _SHOWN and not k.startswith("loss/")}
    for label, wanted in (("validation", True), ("others", False)):
        found = [f"{number(v)} {k}" for k, v in others.items() if ("/" in k) == wanted]
        lines += [_line(label if i == 0 else "", text) for i, text in enumerate(found)]
    return lines


def _troubles(run: Run) -> list[str]:
    lines = []
    for i, incident in enumerate(run.incidents()[-3:]):
        count = len(incident.get("positions") or incident.get("samples") or ())
        lines.append(_line("" if i else "incidents", f"step {incident.get('step')}: {incident.get('reason')}, "
                                                     f"{count} samples"))  # fmt: skip
        if incident.get("command"):
            lines.append(_line("", f"again: {incident['command']}"))
    for back in run.rollbacks():
        lines.append(_line("roll-back", f"from step {back.get('from_step')} to {back.get('to_step')}"))
    lines += [_line("hang", message) for message in hangs(run.folder)[-3:]]
    return lines


def _line(label: str, text: str) -> str:
    return f"{label:12} {text}".rstrip()


def _status(run: Run) -> str:
    parts = [run.status, f"started {run.history.starts} times" if run.history.starts > 1 else ""]
    silent = run.silent_for()
    if run.status == "running" and silent is not None:
        parts.append(f"last sign {duration(silent)} ago")
    return ", ".join(filter(None, parts))


def _progress(run: Run, bars: str) -> str:
    share = min(1.0, run.step / run.total)
    bar = (bars[-1] * round(share * _WIDTH)).ljust(_WIDTH, bars[1])
    text = f"{bar} {run.step}/{run.total} steps ({100 * share:.0f} %)"
    left = run.seconds_left()
    return text if left is None else f"{text}, {number(run.steps_per_second())} steps/s, {duration(left)} left"


def _figure(value: float, key: str, word: str) -> str:
    if key.endswith("fraction") or key.startswith("fraction"):
        return f"{100 * value:.3g} % {word}"
    if key == "flop_per_second":
        return f"{number(value / 1e12)} {word}"
    if key == "skipped_steps":
        return f"{value:.0f} {word}"
    return f"{word} {number(value)}" if key in ("learning_rate", "gradient_norm") else f"{number(value)} {word}"


def number(value: float | None) -> str:
    """Four digits; nothing for None."""
    return "" if value is None else f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds in the two largest units that they fill."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(i for i, (_, size) in enumerate(units) if seconds >= size)
    whole, rest = divmod(int(seconds), units[first][1])
    smaller, size = units[first + 1]
    return f"{whole} {units[first][0]} {rest // size} {smaller}"


def sparkline(values: Sequence[float], bars: str = _BARS, width: int = _WIDTH) -> str:
    """A curve in one line; on a logarithmic scale where all values are positive. What is not finite is left blank."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    scale: Callable[[float], float] = math.log if min(finite) > 0 else float
    low, high = scale(min(finite)), scale(max(finite))
    line = ""
    for i in range(min(width, len(values))):
        part = values[i * len(values) // min(width, len(values)) : (i + 1) * len(values) // min(width, len(values))]
        known = [scale(value) for value in part if math.isfinite(value)]
        level = (sum(known) / len(known) - low) / (high - low) if known and high > low else 0.0
        line += bars[1 + round(level * (len(bars) - 2))] if known else bars[0]
    return line


def bars_for(out: TextIO) -> str:
    """Blocks, or letters where the terminal's encoding has no blocks."""
    try:
        _BARS.encode(out.encoding or "ascii")
    except UnicodeEncodeError:
        return _PLAIN_BARS
    return _BARS
