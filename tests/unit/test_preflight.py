"""The checks before a run, on real ranks: what one of them sees is an error on all of them."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from data_pipeline.base.errors import CheckpointError, ConfigError, DataError, PdepotError
from pretrain import preflight as checks
from pretrain.config import TrainedDataset
from pretrain.preflight import checkpoint_size, manifest_digests, preflight
from pretrain.together import agreed, by_ranks, spans, together
from tests.rank_group import run_in_ranks

STORES = Path(__file__).resolve().parents[1] / "data" / "stores_v1"
SAME = {"the configuration": "c0ffee", "the samples": "abc"}
CPU = torch.device("cpu")


def flight(folder: Path, **changes: Any) -> checks.Preflight:
    """The checks of a run in which nothing is wrong but for the changes."""
    arguments: dict[str, Any] = {"same": SAME, "data": lambda: {"first": "d1"}, "checkpoint_bytes": 2**20, "keep": 2}
    return preflight(folder, **(arguments | changes), device=CPU)


def words(error: PdepotError) -> tuple[str, str]:
    return type(error).__name__, str(error)


def same_on_all(function: Callable[..., Any], ranks: int, *args: Any) -> tuple[str, str]:
    """The error that all ranks have alike."""
    first, *others = run_in_ranks(function, ranks, *args)
    assert others == [first] * len(others)
    return tuple(first)


def all_is_well(folder: Path) -> tuple[str, checks.Preflight]:
    found = flight(folder)
    return str(found), flight(folder)


def test_what_is_found_is_told_in_a_line(tmp_path: Path) -> None:
    told, again = run_in_ranks(all_is_well, 3, tmp_path)[0]
    line = r"3 ranks on 1 host \(gloo\): all-reduce \d+\.\d\d GB/s; \d+\.\d GiB free, checkpoints need 0\.0 GiB"
    assert re.fullmatch(line, told)
    assert (again.ranks, again.hosts, again.needed) == (3, 1, 3 * 2**20)
    assert list(tmp_path.iterdir()) == []


def test_a_single_rank_has_nobody_to_talk_to(tmp_path: Path) -> None:
    assert run_in_ranks(all_is_well, 1, tmp_path)[0][0].startswith("1 rank on 1 host (gloo); ")


def one_is_different(folder: Path, what: str) -> tuple[str, str]:
    odd = dist.get_rank() in (1, 2)
    changes: dict[str, Any] = {}
    if what in SAME and odd:
        changes["same"] = SAME | {what: "other"}
    if what == "torch" and odd:
        torch.__version__ = "1.0"
    if what == "first" and odd:
        changes["data"] = lambda: {"first": "d2"}
    if what == "second" and odd:
        changes["data"] = lambda: {"first": "d1", "second": "d3"}
    with pytest.raises(ConfigError) as caught:
        flight(folder, **changes)
    return words(caught.value)


@pytest.mark.parametrize(
    ("what", "problem", "values"),
    [
        ("the configuration", "different configurations", "other on H, c0ffee on H"),
        ("the samples", "different configurations", "other on H, abc on H"),
        ("torch", "different software", "1.0 on H, "),
        ("first", "do not see the same data", "d2 on H, d1 on H"),
        ("second", "do not see the same data", "d3 on H, None on H"),
    ],
)
def test_ranks_that_differ_are_named_with_what_differs(what: str, problem: str, values: str, tmp_path: Path) -> None:
    text = same_on_all(one_is_different, 4, tmp_path, what)[1]
    assert problem in text
    host = re.search(r" on ([^,]+), ", text)
    assert host
    assert f"ranks [1-2] differ from rank 0 in {what}: {values.replace('H', host[1])}" in text


def data_out_of_reach(folder: Path) -> tuple[str, str]:
    there = STORES / "burgers_2d.zarr" if dist.get_rank() != 1 else folder / "nowhere.zarr"
    dataset = TrainedDataset(name="first", path=str(there), weight=1, digest="")
    with pytest.raises(DataError) as caught:
        flight(folder, data=lambda: manifest_digests([dataset]))
    return words(caught.value)


def test_data_that_one_rank_cannot_reach_stop_all(tmp_path: Path) -> None:
    kind, text = same_on_all(data_out_of_reach, 2, tmp_path)
    assert kind == "DataError"
    assert "could not reach the data" in text
    assert "rank 1: no such dataset folder" in text
    assert "nowhere.zarr" in text
    assert "rank 0" not in text


def folder_of_its_own(folder: Path) -> tuple[str, str]:
    checks._VISIBLE = 0.3
    checks.socket.gethostname = lambda: f"node{dist.get_rank() // 2}"  # type: ignore[assignment]
    with pytest.raises(ConfigError) as caught:
        flight(folder / f"{dist.get_rank() // 2}")
    return type(caught.value).__name__, str(caught.value).replace(f"{folder}/1", f"{folder}/0")


def test_a_folder_that_is_not_shared_is_found_out(tmp_path: Path) -> None:
    for host in "01":
        (tmp_path / host).mkdir()
    text = same_on_all(folder_of_its_own, 4, tmp_path)[1]
    assert "not the same for all ranks" in text
    assert "ranks [2-3] on node1 do not see what rank 0 on node0 wrote" in text


def vanished_or_full(folder: Path, size: int) -> tuple[str, str]:
    with pytest.raises((CheckpointError, PdepotError)) as caught:
        flight(folder, checkpoint_bytes=size)
    return words(caught.value)


def test_a_folder_that_has_vanished_stops_all_and_stays_away(tmp_path: Path) -> None:
    assert "rank 0: FileNotFoundError" in same_on_all(vanished_or_full, 2, tmp_path / "gone", 1)[1]
    assert not (tmp_path / "gone").exists()


def test_a_disk_that_is_too_small_is_told_with_its_numbers(tmp_path: Path) -> None:
    text = same_on_all(vanished_or_full, 2, tmp_path, 2**60)[1]
    assert re.search(r"found: \d+\.\d\d GiB free", text)
    assert f"expected: {3 * 2**30:.2f} GiB: 2 that are kept and one that is being written" in text


def needed(folder: Path, size: int) -> int:
    return flight(folder, checkpoint_bytes=size).needed


def test_checkpoints_that_are_there_already_need_no_room(tmp_path: Path) -> None:
    for step in (1, 2):
        path = tmp_path / "checkpoints" / f"step-{step:08d}"
        path.mkdir(parents=True)
        (path / "part").write_bytes(bytes(1000))
    assert run_in_ranks(needed, 1, tmp_path, 1000) == [1000]
    assert run_in_ranks(needed, 1, tmp_path, 1500) == [2500]


def adds_wrongly(folder: Path) -> tuple[str, str]:
    right = dist.all_reduce

    def wrong(tensor: torch.Tensor, **more: Any) -> None:
        right(tensor, **more)
        if dist.get_rank() == 1:
            tensor[5] += 1

    dist.all_reduce = wrong
    with pytest.raises(PdepotError) as caught:
        flight(folder)
    return words(caught.value)


def test_sums_that_are_wrong_stop_all(tmp_path: Path) -> None:
    assert "another sum on ranks [1]" in same_on_all(adds_wrongly, 2, tmp_path)[1]


def one_does_not_come(folder: Path) -> str:
    if dist.get_rank() == 1:
        time.sleep(4)
        return ""
    with pytest.raises(ConnectionError) as caught:
        flight(folder, seconds=2)
    return str(caught.value)


@pytest.mark.slow
def test_ranks_do_not_wait_for_long_for_one_that_does_not_come(tmp_path: Path) -> None:
    assert "do not reach one another" in run_in_ranks(one_does_not_come, 2, tmp_path)[0]


def some_fail() -> tuple[list[Any], tuple[str, str], int]:
    def work() -> int:
        if dist.get_rank() in (0, 2):
            raise OSError("no space")
        if dist.get_rank() == 3:
            raise DataError("torn", key="k")
        return 1

    with pytest.raises(CheckpointError) as caught:
        together(work, "write", Path("/a/file"))
    first = together(lambda: dist.get_rank() + 7, "count", Path("/a"), only_first=True)
    return first, words(caught.value), agreed(dist.get_rank, "count", Path("/a"))


def test_work_that_fails_on_some_ranks_fails_on_all() -> None:
    results = run_in_ranks(some_fail, 4)
    first, (_, text), _ = results[0]
    assert [each[2] for each in results] == [0, 1, 2, 3]
    assert all(each[1][1] == text for each in results)
    assert first == [7, None, None, None]
    assert "could not write\n  file: /a/file\n  found: ranks 0, 2: OSError: no space; rank 3: torn" in text


def test_ranks_are_told_in_few_words() -> None:
    assert spans([5, 0, 1, 2, 9, 10]) == "0-2, 5, 9-10"
    assert by_ranks({3: "a", 1: "b", 2: "a"}) == "rank 1: b; ranks 2-3: a"


def test_the_size_of_a_checkpoint() -> None:
    module = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 5, bias=False))
    module[1].weight.requires_grad_(False)
    assert checkpoint_size(module, averaged=False) == 4 * (150 + 2 * 100)
    assert checkpoint_size(module, averaged=True) == 4 * (150 + 3 * 100)


def test_the_software_is_known_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = checks.software()
    assert set(found) == {"pdepot", "torch", "deepspeed"}
    assert found == checks.software()
    for package in ("data_pipeline", "pretrain"):
        (tmp_path / package).mkdir()
    monkeypatch.setattr(checks, "__file__", str(tmp_path / "pretrain" / "preflight.py"))
    digests = {checks.software()["pdepot"]}
    for content in ("a = 1", "a = 2"):
        (tmp_path / "data_pipeline" / "some.py").write_text(content)
        digests.add(checks.software()["pdepot"])
    assert len(digests) == 3
