"""Damaged checkpoints: the file is named, and all ranks go one checkpoint back together; never trained on."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch.distributed as dist

from data_pipeline.base.errors import CheckpointError, DataError
from data_pipeline.base.files import digest, read_json, write_json
from pretrain.checkpoint import Checkpoints, newest_step
from tests.checkpoints import IDENTITY, Trained, find, write_checkpoints
from tests.rank_group import run_in_ranks
from tests.small_jobs import tree

RANKS, STEPS = 2, (1, 2, 3)
FILES = ["manifest.json", "model.json", "model.safetensors", "rank-00000.safetensors", "rank-00001.safetensors"]
Damage = Callable[[Path], None]


def flip(place: float) -> Damage:
    """One bit, so far into the file."""

    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[int(place * (len(content) - 1))] ^= 1
        file.write_bytes(content)

    return damage


def cut(part: float) -> Damage:
    """All but the first part of the file."""
    return lambda file: os.truncate(file, int(part * file.stat().st_size))


DAMAGES: dict[str, Damage] = {
    "first byte": flip(0), "a byte within": flip(0.6), "last byte": flip(1), "half": cut(0.5), "empty": cut(0),
    "deleted": Path.unlink,
}  # fmt: skip
CASES = [(file, damage) for file in FILES for damage in DAMAGES]


class Outcome(NamedTuple):
    """What a rank found in a folder."""

    step: int | None
    printed: str
    error: str


def found_in(folders: list[Path]) -> list[Outcome]:
    outcomes = []
    for folder in folders:
        with redirect_stdout(StringIO()) as printed:
            try:
                found = find(folder)
                outcomes.append(Outcome(found.step if found else None, printed.getvalue(), ""))
            except CheckpointError as error:
                outcomes.append(Outcome(None, printed.getvalue(), str(error)))
    return outcomes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    run_in_ranks(write_checkpoints, RANKS, folder, STEPS)
    return folder


@pytest.fixture(scope="module")
def outcomes(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Outcome, ...]]:
    """What each rank found where one file of the newest checkpoint is damaged: all cases in one group of ranks."""
    folders = []
    for file, damage in CASES:
        folders.append(tmp_path_factory.mktemp("damaged") / "checkpoints")
        shutil.copytree(whole, folders[-1])
        DAMAGES[damage](folders[-1] / "step-00000003" / file)
    ranks = run_in_ranks(found_in, RANKS, folders)
    return dict(zip(CASES, zip(*ranks, strict=True), strict=True))


@pytest.mark.parametrize(("file", "damage"), CASES)
def test_a_damaged_file_is_named_and_all_ranks_go_back(
    outcomes: dict[tuple[str, str], tuple[Outcome, ...]], file: str, damage: str
) -> None:
    ranks = outcomes[file, damage]
    assert [each.step for each in ranks] == [2, 2]
    assert "step-00000003" in ranks[0].printed
    assert file in ranks[0].printed
    assert [each.printed for each in ranks[1:]] == [""]


def test_any_byte_of_the_manifest_counts(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    file = folder / "step-00000003" / "manifest.json"
    content = file.read_bytes()
    assert newest_step(folder) == 3
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 7  # stays text, which might still be JSON
        file.write_bytes(damaged)
        # White space is no part of what the manifest says.
        assert newest_step(folder) == 2 or json.loads(damaged) == json.loads(content), f"byte {place}"


def test_more_than_one_damaged_checkpoint(whole: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("two", "all", "gone", "later")]
    for folder, damaged in zip(folders, ((3, 2), STEPS, (), ()), strict=True):
        shutil.copytree(whole, folder)
        for step in damaged:
            DAMAGES["a byte within"](folder / f"step-{step:08d}" / FILES[step % len(FILES)])
    shutil.rmtree(folders[2] / "step-00000003")
    manifest = folders[3] / "step-00000003" / "manifest.json"
    content = read_json(manifest) | {"version": 4}
    del content["checksum"]
    write_json(manifest, content | {"checksum": digest(content)})
    before = tree(folders[1])
    for rank in run_in_ranks(found_in, RANKS, [*folders, tmp_path / "nothing here"]):
        two, every, gone, later, none = rank
        assert two.step == 1
        assert "every checkpoint of the run is damaged" in every.error
        assert all(f"step-{step:08d}" in every.error for step in STEPS)
        assert "delete the damaged ones to start over" in every.error
        assert gone == Outcome(2, "", "")
        assert "use the version of pdepot that wrote it" in later.error
        assert none == Outcome(None, "", "")
    assert tree(folders[1]) == before


def go_on_before_damage(folder: Path) -> list[int]:
    found = find(folder)
    assert found is not None
    trained, checkpoints = Trained(), Checkpoints(folder, IDENTITY, keep=2)
    trained.go_on(found)
    steps = [found.step]
    for step in (2, 4):
        trained.steps_to(step)
        trained.save(checkpoints)
        again = find(folder)
        assert again is not None
        steps.append(again.step)
    return steps


@contextmanager
def unreadable(what: str) -> Iterator[None]:
    """Within the block the disk gives no answer about the newest checkpoint, or about all of them."""
    true: dict[tuple[Any, str], Any] = {}

    def fail(where: Any, name: str, hit: Callable[[str], bool]) -> None:
        true[where, name] = getattr(where, name)

        def call(path: Any = ".", *arguments: Any, **options: Any) -> Any:
            if hit(str(path)):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
            return true[where, name](path, *arguments, **options)

        setattr(where, name, call)

    if what == "manifest":
        fail(Path, "read_bytes", lambda path: path.endswith("step-00000003/manifest.json"))
    elif what == "last manifest":  # after the digests were found right
        reads = []
        fail(Path, "read_bytes", lambda path: dist.get_rank() == 1 and (reads.append(path), len(reads) == 2)[1])
    elif what == "size":
        fail(Path, "stat", lambda path: path.endswith("step-00000003/model.safetensors"))
    else:
        fail(os, "scandir", lambda path: path.endswith("checkpoints"))
    try:
        yield
    finally:
        for (where, name), function in true.items():
            setattr(where, name, function)


UNREADABLE = ("manifest", "last manifest", "size", "folder")


def find_what_cannot_be_read(folder: Path) -> list[tuple[str, int]]:
    """What all ranks say, case by case, and from which step they go on as soon as the disk answers."""
    outcomes = []
    for what in UNREADABLE:
        message = ""
        with unreadable(what):
            try:
                find(folder)
            except CheckpointError as error:
                message = str(error)
        dist.barrier()
        found = find(folder)
        outcomes.append((message, found.step if found else 0))
    return outcomes


def test_a_checkpoint_that_cannot_be_read_is_not_damaged(whole: Path, tmp_path: Path) -> None:
    """Or the run would go back, and its next save delete a checkpoint that is whole."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole, folder)
    before = (folder / "step-00000003").stat().st_ino
    first, second = run_in_ranks(find_what_cannot_be_read, RANKS, folder)
    assert first == second
    for message, step in first:
        assert os.strerror(errno.ESTALE) in message
        assert "see to the disk or the folder and start the same command again" in message
        assert step == 3
    assert (folder / "step-00000003").stat().st_ino == before
    for what in ("manifest", "size", "folder"):
        with unreadable(what), pytest.raises(DataError, match=os.strerror(errno.ESTALE)):
            newest_step(folder)
    assert newest_step(folder) == 3


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(tmp_path: Path) -> None:
    """Or one that is just written would be the first to go."""
    folder = tmp_path / "checkpoints"
    run_in_ranks(write_checkpoints, RANKS, folder, (1, 5, 6))
    for step in (5, 6):
        DAMAGES["a byte within"](folder / f"step-{step:08d}" / "model.safetensors")
    assert run_in_ranks(go_on_before_damage, RANKS, folder) == [[1, 2, 4]] * RANKS
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000002", "step-00000004"]


def go_on_from_files_that_change(folder: Path) -> str:
    found = find(folder)
    assert found is not None
    dist.barrier()
    if dist.get_rank() == 1:
        DAMAGES["half"](found.path / "rank-00001.safetensors")
    dist.barrier()
    with pytest.raises(CheckpointError) as caught:
        Trained().go_on(found)
    return str(caught.value)


def test_a_file_that_is_damaged_after_it_was_verified_stops_all_ranks(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "checkpoints")
    messages = run_in_ranks(go_on_from_files_that_change, RANKS, tmp_path / "checkpoints")
    assert messages[0] == messages[1]
    assert "could not load a checkpoint" in messages[0]
    assert "rank-00001.safetensors" in messages[0]
