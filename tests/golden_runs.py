"""Runs that are kept in `tests/data` as an earlier or the present version wrote them, to go on from.

`checkpoint_v2` was written by the code of version 0.1, whose checkpoints DeepSpeed made. `checkpoint_v3` is written by

    python -m tests.golden_runs

on the data of `checkpoint_v2`, and once for this format: it shows what later code must be able to read.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from data_pipeline.base.files import read_json, write_json
from pretrain.comparison import read_run
from pretrain.model.operator import Operator, load_operator_files, save_operator
from tests.training import Watched, train_in_ranks

DATA = Path(__file__).parent / "data"
SHARDS = DATA / "stores_v1" / "burgers_2d.shards"
RECIPE = {"ema": 0.9, "clip_quantile": 0.5, "clip_window": 4}


def copy_run(name: str, folder: Path, **training: Any) -> Path:
    """A run to go on with, with changed settings."""
    shutil.copytree(DATA / name, folder)
    content = read_json(folder / "config.json")
    content["data"][0]["path"] = str(SHARDS)
    content["training"] |= training
    write_json(folder / "config.json", content)
    return folder


def go_on(folder: Path, ranks: int) -> list[Watched]:
    """Train the run to its end; what each rank saw."""
    return train_in_ranks(folder, ranks)


def _smaller(initial: Path) -> None:
    """A narrower operator, since these files stay in the repository."""
    config = load_operator_files(initial).config
    network = config.network.model_copy(update={"width": 8, "heads": 1})
    torch.manual_seed(0)
    save_operator(Operator(config.model_copy(update={"network": network})), initial)


def main() -> None:
    """Write `checkpoint_v3`."""
    kept = DATA / "checkpoint_v3"
    with tempfile.TemporaryDirectory() as name:
        folder = copy_run("checkpoint_v2", Path(name) / "run", **RECIPE)
        shutil.rmtree(folder / "checkpoints")
        shutil.rmtree(folder / "final")
        _smaller(folder / "initial")
        write_json(folder / "config.json", read_run(folder).model_dump(mode="json"))
        losses = go_on(folder, 2)[0].losses
        shutil.rmtree(kept, ignore_errors=True)
        for part in ("initial", "final", "checkpoints/step-00000003"):
            shutil.copytree(folder / part, kept / part)
        content = read_json(folder / "config.json")
        content["data"][0]["path"] = SHARDS.name
        write_json(kept / "config.json", content)
        write_json(kept / "losses.json", losses)


if __name__ == "__main__":
    main()
