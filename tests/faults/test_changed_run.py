"""Configuration or data changed under a run that has begun: refused with what differs, or a new segment on request."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.base.config import build, load
from data_pipeline.base.errors import ConfigError, DataError, PdepotError
from data_pipeline.base.files import exclusive, read_json, write_json
from data_pipeline.config import DatasetConfig
from data_pipeline.stores.cache import CacheConfig
from launch.datasets import make_datasets
from pretrain import schedule
from pretrain.comparison import differences, read_run
from pretrain.config import RunConfig
from pretrain.lineage import lineage
from pretrain.model.operator import load_operator_files
from pretrain.run import write_status
from pretrain.schedule import open_needed, run_identity, run_mixture
from tests.training import make_data, prepare, write_dataset

FIRST, SECOND, THIRD, FOURTH = ({"config": f"{n}.yaml", "weight": 2} for n in ("first", "second", "third", "fourth"))
BARRED = [{"dataset": "first", "trajectories": [1, 4], "reason": "damaged on disk"}]
FRAMES = 5


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two datasets, and two to come: one whose field the second has, too, and one of a field that none has."""
    folder = tmp_path_factory.mktemp("data")
    data = make_data(folder)
    others = [write_dataset(folder, "third", ("pressure",)), write_dataset(folder, "fourth", ("humidity",))]
    make_datasets([load(DatasetConfig, path) for path in others], folder / "data")
    return data | {"datasets": [FIRST, SECOND]}


@pytest.fixture
def begun(data: dict[str, Any], tmp_path: Path) -> Path:
    """A run of the first two datasets that was stopped after three steps, as far as its folder tells."""
    folder = prepare(data, tmp_path)
    save(folder, 3)
    write_status(folder, "preempted")
    return folder


def save(folder: Path, step: int) -> None:
    """A checkpoint without any state."""
    path = folder / "checkpoints" / f"step-{step:08d}"
    path.mkdir(parents=True)
    write_json(path / "manifest.json", {"version": 2, "step": step, "files": {}})


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.json")}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"datasets": [FIRST | {"weight": 5}, SECOND]}, "data.first.weight: 2 in the folder, 5 asked for"),
        ({"datasets": [FIRST, SECOND, THIRD]}, "data.third: asked for only"),
        ({"datasets": [SECOND]}, "data.first: in the folder, not asked for"),
        ({"datasets": [SECOND, FIRST]}, "data: in the order ['first', 'second'] in the folder"),
        ({"quarantine": BARRED}, "quarantine: [] in the folder, [{'dataset': 'first', 'trajectories': [1, 4]"),
    ],
)
def test_other_data_are_refused_with_the_difference_and_the_way_on(
    data: dict[str, Any], begun: Path, changes: dict[str, Any], line: str
) -> None:
    before = content(begun)
    with pytest.raises(ConfigError) as caught:
        prepare(data | changes, begun.parent)
    assert line in str(caught.value)
    assert "pdepot pretrain CONFIG --new-segment" in str(caught.value)
    assert content(begun) == before
    # That way does work, and the run is then the one that is asked for.
    prepare(data | changes, begun.parent, new_segment=True)
    prepare(data | changes, begun.parent)


def test_a_new_segment_changes_data_only(data: dict[str, Any], begun: Path) -> None:
    before = content(begun)
    for changes in ({"steps": 99}, {"model": {"size": "nano"}}):
        with pytest.raises(
            ConfigError, match=r"training\.steps: 12 in the folder, 99|model\.network\.depth"
        ) as caught:
            prepare(data | {"quarantine": BARRED}, begun.parent, new_segment=True, **changes)
        assert "--new-segment" not in str(caught.value)
    assert content(begun) == before


def test_a_dataset_joins_from_the_last_checkpoint_on_and_the_past_stays(data: dict[str, Any], begun: Path) -> None:
    old, weights = read_run(begun), (begun / "initial" / "model.safetensors").read_bytes()
    origin = lineage(begun, old)
    prepare(data | {"datasets": [THIRD, FIRST], "quarantine": BARRED}, begun.parent, new_segment=True)
    new = read_run(begun)
    assert (new.first_step, new.past) == (3, old.segments)
    assert run_identity(new.model_dump(mode="json")) == run_identity(old.model_dump(mode="json"))

    operator = load_operator_files(begun / "initial")
    drawn, before = run_mixture(new, FRAMES), run_mixture(old, FRAMES)
    assert (
        [d.name for d in operator.config.datasets] == [d.name for d in drawn.datasets] == ["first", "second", "third"]
    )
    assert (begun / "initial" / "model.safetensors").read_bytes() == weights
    assert before.digest() in drawn.digests_at(3)
    ks = np.arange(12 * 8)
    assert drawn.draw_many(ks[:24]).tolist() == before.draw_many(ks[:24]).tolist()
    later = drawn.draw_many(ks[24:])
    assert set(later["dataset"].tolist()) == {0, 2}
    assert not np.isin(later["trajectory"][later["dataset"] == 0], [1, 4]).any()
    assert lineage(begun, new) == origin | {"data.third": new.data[0].digest, "segments": "2"}


def test_a_second_new_segment_leaves_the_first_as_it_is(data: dict[str, Any], begun: Path) -> None:
    prepare(data | {"datasets": [FIRST, SECOND, THIRD]}, begun.parent, new_segment=True)
    one = read_run(begun)
    prepare(data | {"datasets": [FIRST, SECOND, THIRD]}, begun.parent, new_segment=True)  # the same again
    assert read_run(begun) == one
    save(begun, 6)
    prepare(data | {"datasets": [FIRST, THIRD]}, begun.parent, new_segment=True)
    two = read_run(begun)
    assert [s.first_step for s in two.segments] == [0, 3, 6]
    assert two.segments[:2] == one.segments


def test_the_data_of_a_dataset_that_has_left_are_not_needed_any_more(data: dict[str, Any], begun: Path) -> None:
    prepare(data | {"datasets": [SECOND]}, begun.parent, new_segment=True)
    run = read_run(begun)
    opened = open_needed(run, 3, CacheConfig())
    assert [store and store.info.name for store in opened] == [None, "second"]
    # A checkpoint from before the change would need them.
    assert [store and store.info.name for store in open_needed(run, 2, CacheConfig())] == ["first", "second"]


def test_a_dataset_of_unknown_fields_cannot_join(data: dict[str, Any], begun: Path) -> None:
    before = content(begun)
    with pytest.raises(ConfigError, match=r"(?s)'fourth'.*key: humidity.*density, pressure.*fine-tune"):
        prepare(data | {"datasets": [FIRST, FOURTH]}, begun.parent, new_segment=True)
    assert content(begun) == before


def test_there_must_be_a_checkpoint_to_go_on_from(data: dict[str, Any], begun: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run to go on with"):
        prepare(data, tmp_path / "empty", new_segment=True)
    shutil.rmtree(begun / "checkpoints")
    with pytest.raises(ConfigError, match=r"(?s)no checkpoint.*start over"):
        prepare(data | {"quarantine": BARRED}, begun.parent, new_segment=True)
    save(begun, 12)
    write_status(begun, "finished")
    with pytest.raises(ConfigError, match=r"(?s)a finished run.*fine-tune"):
        prepare(data | {"quarantine": BARRED}, begun.parent, new_segment=True)


def test_a_run_that_is_being_trained_is_left_alone(data: dict[str, Any], begun: Path) -> None:
    with (
        exclusive(begun / ".lock", wait=False, what="training"),
        pytest.raises(PdepotError, match="another process is busy"),
    ):
        prepare(data | {"quarantine": BARRED}, begun.parent, new_segment=True)


def test_other_data_under_an_old_name_are_refused(data: dict[str, Any], begun: Path) -> None:
    config = read_json(begun / "config.json")
    config["data"][0]["digest"] = "0" * 64
    write_json(begun / "config.json", config)
    with pytest.raises(ConfigError, match=r"data\.first\.digest: '0000"):
        prepare(data, begun.parent)
    with pytest.raises(ConfigError, match=r"(?s)'first' holds other data than before.*name of their own"):
        prepare(data, begun.parent, new_segment=True)
    with pytest.raises(DataError, match="'first' holds other data than the run began with"):
        open_needed(read_run(begun), 3, CacheConfig())


def test_a_new_segment_that_is_cut_short_leaves_the_run_as_it_was(
    data: dict[str, Any], begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between its two writes: the old run goes on, and so does another new segment."""

    def full(path: Path, value: Any) -> None:
        if path.name == "config.json":
            raise OSError("no space left on device")
        write_json(path, value)

    monkeypatch.setattr(schedule, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        prepare(data | {"datasets": [FIRST, SECOND, THIRD]}, begun.parent, new_segment=True)
    monkeypatch.undo()
    assert len(load_operator_files(begun / "initial").config.datasets) == 3
    prepare(data, begun.parent)
    prepare(data | {"datasets": [SECOND]}, begun.parent, new_segment=True)
    assert [d.name for d in load_operator_files(begun / "initial").config.datasets] == ["first", "second"]


def test_a_quarantine_of_what_is_not_there_is_refused_before_anything_is_written(
    data: dict[str, Any], tmp_path: Path
) -> None:
    for entry, words in (
        ({"dataset": "frist", "trajectories": [0], "reason": "x"}, "did you mean 'first'"),
        ({"dataset": "first", "trajectories": [6], "reason": "x"}, "no such trajectories"),
        ({"dataset": "first", "trajectories": list(range(6)), "reason": "x"}, "all trajectories"),
    ):
        with pytest.raises(ConfigError, match=words):
            prepare(data | {"quarantine": [entry]}, tmp_path)
    assert not (tmp_path / "pretrain").exists()


def test_a_run_of_an_older_version_goes_on_if_it_is_the_same(data: dict[str, Any], tmp_path: Path) -> None:
    folder = prepare(data, tmp_path)
    config = whole = read_json(folder / "config.json")
    config = {k: v for k, v in whole.items() if k not in ("quarantine", "first_step", "past")}
    config["data"] = [{k: d[k] for k in ("name", "path", "weight", "digest")} for d in whole["data"]]
    write_json(folder / "config.json", config)
    prepare(data, tmp_path)
    assert read_run(folder) == build(RunConfig, whole)


def test_differences_are_told_by_name() -> None:
    old = {"a": [{"name": "x", "w": 1}, {"name": "y", "w": 2}], "b": [1, 2], "c": [1]}
    new = {"a": [{"name": "y", "w": 3}], "b": [1, 3], "c": [1, 2], "d": 0}
    assert differences(old, new) == [
        "a.x: in the folder, not asked for", "a.y.w: 2 in the folder, 3 asked for",
        "b.1: 2 in the folder, 3 asked for", "c: [1] in the folder, [1, 2] asked for", "d: asked for only",
    ]  # fmt: skip
    assert differences(old, old) == []
