"""Where a model comes from: code, configuration and data, by their digests."""

import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from data_pipeline.base.files import digest, read_json, write_json
from pretrain.config import RunConfig

_ROOT = Path(__file__).resolve().parents[1]


def git_revision() -> str:
    """The checkout's commit, with `-dirty` behind it when files differ; `unknown` outside a checkout."""
    try:
        # --git-dir: an installed copy must not take the revision of a repository that happens to lie around it.
        command = ["git", f"--git-dir={_ROOT / '.git'}", f"--work-tree={_ROOT}", "describe", "--always", "--dirty"]
        return subprocess.run(
            [*command, "--abbrev=40", "--exclude=*"], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def pdepot_version() -> str:
    """The installed version; `unknown` when run from a checkout that is not installed."""
    try:
        return version("pdepot")
    except PackageNotFoundError:
        return "unknown"


def lineage(folder: Path, config: RunConfig, parent: str | None = None) -> dict[str, str]:
    """What a registered model says of its origin; written down at the first call, so that it stays what it was. Only
    the data of new segments are added.

    Args:
        folder: the training run's.
        config: the training run.
        parent: the registered model that the run started from.
    """
    file = folder / "lineage.json"
    data = {f"data.{d.name}": d.digest for segment in config.segments for d in segment.data}
    if file.exists():
        known: dict[str, str] = dict(read_json(file))
        record = data | known
        if config.past:
            record["segments"] = str(len(config.past) + 1)
        if record != known:
            write_json(file, record)
        return record
    record = {
        "config_digest": digest(config.model_dump(mode="json")),
        "git_revision": git_revision(),
        "pdepot_version": pdepot_version(),
        **data,
    }
    record |= {"parent": parent} if parent else {}
    write_json(file, record)
    return record
