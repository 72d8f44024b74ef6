"""The main job, from nothing to a registered and fine-tuned operator: `python -m launch.pipeline CONFIG [key=value]`.

Every stage looks at what is there and does the rest, so that the job can be killed anywhere and started again.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.base.config import load
from data_pipeline.base.errors import ConfigError
from data_pipeline.base.files import exclusive
from data_pipeline.base.remote import as_location
from data_pipeline.config import DatasetConfig
from finetune.config import FinetuneConfig
from launch.datasets import make_datasets
from launch.jobs import Outcome, finetune_job, pretrain_job
from launch.launcher import LOCAL, Launcher, add_launcher_flags, launcher_of
from launch.messages import exit_code
from launch.ranks import check_launch
from launch.results import show_results
from launch.slurm import must_submit, submit
from pretrain.config import PretrainConfig
from pretrain.tracking import check_reachable, default_uri

_SCRIPT = Path(__file__).with_name("pretrain.sh")


def run(config_path: Path, overrides: Sequence[str], launcher: Launcher = LOCAL) -> int:
    """Make the data, pretrain, evaluate, register, fine-tune, and write the report.

    Args:
        config_path: a pretraining configuration.
        overrides: `key=value` for it.
        launcher: what starts the training processes; all else is done here, or in the Slurm job that this submits,
            but for the data, which a Ray cluster makes.

    Returns:
        0, the exit code.

    Raises:
        PdepotError: what is wrong, and what to do about it.
    """
    config = load(PretrainConfig, config_path, overrides)
    folder = config_path.parent
    finetuning = load_finetuning(config, folder)
    for training in [config.training, *([finetuning[0].training] if finetuning else [])]:
        check_launch(training, launcher)
    if must_submit(launcher):
        words = [*launcher.words(), str(config_path), *overrides]
        submit(["bash", str(_SCRIPT), *words], Path(config.output), config.name, launcher)
        return 0
    uri = default_uri()
    check_reachable(uri)
    with exclusive(Path(config.output) / ".lock", wait=True, what=f"the job in {config.output}"):
        outcomes: list[Outcome] = []
        _say(f"data: stores and shards in {config.data.root}/")
        make_datasets(_all_datasets(config, folder, finetuning), as_location(config.data.root), launcher.cluster())
        _say(f"pretrain, evaluate, register: {config.name}")
        outcomes.append(pretrain_job(config, folder, uri, launcher))
        if finetuning is not None:
            finetune_config, finetune_folder = finetuning
            _say(f"fine-tune: {finetune_config.name} from {finetune_config.model}")
            outcomes.append(finetune_job(finetune_config, finetune_folder, uri, launcher))
        show_results(Path(config.output), config.name, config.model_dump(mode="json"), outcomes, uri)
    return 0


def load_finetuning(config: PretrainConfig, folder: Path) -> tuple[FinetuneConfig, Path] | None:
    """The fine-tuning job that follows, with its configuration's folder; it takes place beside the pretraining."""
    if config.finetune is None:
        return None
    path = folder / config.finetune
    if config.registry is None:
        raise ConfigError(
            "fine-tuning pulls the model from the registry, but it is not registered",
            key="registry", expected="a name, for example registry.name=pdepot-demo",
        )  # fmt: skip
    # Data, cache, output and model are those of the pretraining job, wherever it was told to go.
    overrides = [
        f"data.root={config.data.root}",
        f"data.cache={config.data.cache.model_dump_json()}",
        f"output={Path(config.output) / 'finetune'}",
        f"model=models:/{config.registry.name}@{config.registry.alias}",
    ]
    return load(FinetuneConfig, path, overrides), path.parent


def _all_datasets(
    config: PretrainConfig, folder: Path, finetuning: tuple[FinetuneConfig, Path] | None
) -> list[DatasetConfig]:
    datasets = config.data.load_datasets(folder)
    if finetuning is not None:
        datasets += finetuning[0].data.load_datasets(finetuning[1])
    return list({d.name: d for d in datasets}.values())


_STARTED = time.monotonic()


def _say(what: str) -> None:
    print(f"[{time.monotonic() - _STARTED:4.0f} s] {what}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the job; a user's error is one clear message and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m launch.pipeline", description="The main job.")
    parser.add_argument("config", type=Path, help="a pretraining configuration")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    add_launcher_flags(parser)
    options = parser.parse_intermixed_args(arguments)
    return exit_code(lambda: run(options.config, options.overrides, launcher_of(options)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
