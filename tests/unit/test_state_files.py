"""Files of tensors: written as the library reads them, and read a stretch at a time from however they were cut."""

import hashlib
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from data_pipeline.base.errors import CheckpointError
from pretrain import state_files
from pretrain.state_files import Stretches, write_tensors


def test_the_library_reads_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_files, "_CHUNK", 64)  # so that tensors are written in several parts
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "float": torch.randn(5, 7, 3, generator=generator),
        "double|with|bars": torch.randn(9, generator=generator, dtype=torch.float64),
        "half ü": torch.randn(3, 3, generator=generator).bfloat16(),
        "whole": torch.arange(-3, 40),
        "truth": torch.tensor([True, False, True]),
        "none": torch.empty(0),
        "one": torch.tensor(2.5),
    }
    written = write_tensors(tmp_path / "file", tensors)
    content = (tmp_path / "file").read_bytes()
    assert written == (len(content), hashlib.sha256(content).hexdigest())
    found = load_file(tmp_path / "file")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "file", {"a": torch.zeros(1)})
    assert (tmp_path / "file").read_text() == "mine"


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, list[int], list[int], tuple[int, int]]:
    """Size of a tensor; where it is cut; which file each piece is in; the first and last element that are wanted."""
    size = draw(st.integers(1, 40))
    inner = draw(st.sets(st.integers(1, size), max_size=6)) - {size}
    edges = [0, *sorted(inner), size]
    files = [draw(st.integers(0, 3)) for _ in edges[1:]]
    first = draw(st.integers(0, size - 1))
    return size, edges, files, (first, draw(st.integers(first + 1, size)))


@settings(deadline=None)
@given(cuts(), st.randoms(use_true_random=False))
def test_any_stretch_is_read_from_any_pieces(cut: tuple[int, list[int], list[int], tuple[int, int]], random) -> None:  # type: ignore[no-untyped-def]
    size, edges, files, (first, last) = cut
    whole = torch.arange(size, dtype=torch.float32)
    pieces: list[dict[str, torch.Tensor]] = [{"other|w|0": torch.full((size,), -1.0)} for _ in range(4)]
    for (start, end), file in zip(pairwise(edges), files, strict=True):
        pieces[file][Stretches.name("moment", "a|w", start)] = whole[start:end].clone()
    with TemporaryDirectory() as folder:
        paths = [Path(folder, str(number)) for number in range(4)]
        for path, content in zip(paths, pieces, strict=True):
            save_file(content, path)
        random.shuffle(paths)
        stretches = Stretches(paths)
        assert torch.equal(stretches.read("moment", "a|w", first, last - first), whole[first:last])
        assert torch.equal(stretches.read("moment", "a|w", 0, size), whole)
        with pytest.raises(CheckpointError, match=r"lacks 1 of \d+ elements.*\n.*moment of a\|w"):
            stretches.read("moment", "a|w", first, size - first + 1)


def test_what_a_tensor_has_is_told_by_the_first_file_that_has_any_of_it(tmp_path: Path) -> None:
    contents = [["x|other|0"], ["x|w|0", "y|w|0"], ["x|w|1", "y|w|1", "z|v|0"]]
    paths = [tmp_path / str(number) for number in range(4)]
    for path, names in zip(paths, contents, strict=False):
        save_file({name: torch.zeros(1) for name in names}, path)
    stretches = Stretches(paths)  # the last file does not exist
    assert stretches.keys("w") == {"x", "y"}
    assert stretches.keys("other") == {"x"}
    assert stretches.keys("v") == {"z"}
    with pytest.raises(CheckpointError, match=f"(?s)cannot be read.*{paths[3]}"):
        stretches.keys("nothing")


@pytest.mark.parametrize("length", [0, 7, 40, -1])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, length: int) -> None:
    save_file({"x|w|0": torch.zeros(100)}, tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    (tmp_path / "file").write_bytes(content[:length])
    with pytest.raises(CheckpointError, match=f"(?s)cannot be read.*{tmp_path / 'file'}"):
        Stretches([tmp_path / "file"]).read("x", "w", 0, 100)
