"""Exported files: they compute what the operator does, for any batch, say what they are, or do not come to be."""

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError, DataError, PdepotError
from data_pipeline.base.files import sha256_file
from launch.cli import main
from pretrain.export import Format, _relative_l2, export_operator
from pretrain.exported import SUFFIXES, describe, load_exported
from pretrain.model import DatasetScaling, Operator, save_operator
from pretrain.model.conditions import condition_count
from pretrain.model.operator import WEIGHTS_FILE
from tests.operators import make_operator
from tests.training import ROOT
from tests.unit.test_baseline import make_baseline_operator

NAN = float("nan")
BOTH = pytest.mark.parametrize("format", ["torch", "onnx"])


def histories(operator: Operator, samples: int, channels: int = 2) -> Tensor:
    torch.manual_seed(samples)
    network = operator.config.network
    return 2 + 1.5 * torch.randn(samples, *network.space, network.in_timesteps, channels)


def predict(operator: Operator, history: Tensor, row: int = 0, parameters: Tensor | None = None) -> Tensor:
    return operator(history, torch.full((len(history),), row), parameters).detach()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def named(tmp_path: Path, format: Format) -> Path:
    return tmp_path / f"operator{SUFFIXES[format]}"


def different_when_compiled(operator: Operator, channel: int, by: float) -> Operator:
    """An operator that a compiler takes for another one."""

    def change(_: Any, __: Any, y: Tensor) -> Tensor:
        wrong = torch.zeros(y.shape[-1])
        wrong[channel] = by
        return y + wrong if torch.compiler.is_compiling() else y

    operator.network.register_forward_hook(change)
    return operator


def conditioned_operator(slots: str, normalisation: str) -> Operator:
    """Knows `other`, and `mine`, which has two of the three channels, in another order, and one of two parameters."""

    def scaling(name: str, channels: Sequence[str], parameters: Sequence[str]) -> DatasetScaling:
        n = len(channels)
        return DatasetScaling(
            name=name, channels=tuple(channels), mean=(2.0, -1.0, 0.5)[:n], std=(1.5, 0.1, 3.0)[:n],
            change_rms=(0.5,) * n, dt=0.1, boundaries=("periodic", "wall"), parameters=tuple(parameters),
        )  # fmt: skip

    datasets = (scaling("other", "abc", ["nu", "mu"]), scaling("mine", "ca", ["mu"]))
    network = {"conditions": condition_count(2, 2), "mode_truncation": "symmetric", "normalize": True}
    operator = make_operator(
        "abc", network=network, datasets=datasets, slots=slots, normalisation=normalisation, predict="state",
        parameters=("nu", "mu"),
    )  # fmt: skip
    for name, weight in operator.named_parameters():
        if ".blocks." in name or "out_layer" in name:  # as they begin, conditions change next to nothing
            torch.nn.init.normal_(weight, std=0.3)
    return operator


@pytest.mark.parametrize(
    ("format", "space"),
    [("torch", (16, 12)), ("onnx", (16, 12)),
     *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("onnx", (16,)), ("onnx", (8, 8, 4)), ("onnx", (272,)), ("aoti", (16, 12))))],
)  # fmt: skip
def test_a_file_computes_what_the_operator_does_for_any_batch(
    format: Format, space: tuple[int, ...], tmp_path: Path
) -> None:
    operator = make_operator(space=space, network={"out_timesteps": 2})
    file = named(tmp_path, format)
    assert export_operator(operator, file, format) <= 1e-5
    exported = load_exported(file)
    for samples in (1, 2, 3, 5):
        x = histories(operator, samples)
        assert relative(exported(x), predict(operator, x)) < 1e-5
    strided = histories(operator, 3).transpose(0, 1).contiguous().transpose(0, 1)
    assert relative(exported(strided), predict(operator, strided)) < 1e-5
    assert list(tmp_path.iterdir()) == [file]
    assert describe(file).format == format
    assert operator.training
    assert all(weight.requires_grad for weight in operator.parameters())


@pytest.mark.parametrize(
    ("format", "slots", "normalisation"), [("torch", "named", "sample"), ("onnx", "anonymous", "mean_std")]
)
def test_a_file_takes_its_datasets_own_channels_and_parameters(
    format: Format, slots: str, normalisation: str, tmp_path: Path
) -> None:
    operator = conditioned_operator(slots, normalisation)
    file = named(tmp_path, format)
    export_operator(operator, file, format, "mine")
    exported = load_exported(file)
    assert (exported.description.channels, exported.description.parameters) == (("c", "a"), ("mu",))

    x, mu = histories(operator, 2), torch.tensor([[0.3], [NAN]])
    places = [2, 0] if slots == "named" else [0, 1]
    padded = torch.full((*x.shape[:-1], 3), 7.0)
    padded[..., places] = x
    told = torch.cat([torch.full_like(mu, NAN), mu], dim=-1)
    expected = predict(operator, padded, 1, told)[..., places]
    assert relative(exported(x, mu), expected) < 1e-5
    untold = predict(operator, padded, 1)[..., places]
    assert relative(exported(x), untold) < 1e-5
    assert relative(expected, untold) > 1e-3  # else nothing would have been shown


@BOTH
def test_a_file_says_what_it_is(format: Format, tmp_path: Path) -> None:
    operator = make_operator(space=(16, 12))
    file = named(tmp_path, format)
    export_operator(operator, file, format)
    save_operator(operator, tmp_path)
    told = describe(file)
    assert (told.dataset, told.channels, told.units, told.dt) == ("toy", ("a", "b"), "physical", 0.1)
    assert (told.grid, told.frames_in, told.frames_out, told.dtype) == ((16, 12), 3, 1, "float32")
    assert told.weights_sha256 == sha256_file(tmp_path / WEIGHTS_FILE)
    assert str(ROOT).encode() not in file.read_bytes()


@pytest.mark.slow
def test_an_onnx_graph_has_readable_inputs_and_outputs(tmp_path: Path) -> None:
    file = tmp_path / "operator.onnx"
    export_operator(conditioned_operator("named", "mean_std"), file, "onnx", "other")
    graph = onnx.load(file).graph

    def axes(value: Any) -> list[str | int]:
        return [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]

    shapes = {value.name: axes(value) for value in (*graph.input, *graph.output)}
    assert shapes == {
        "history": ["batch", 16, 16, 3, 3], "parameters": ["batch", 2], "frames": ["batch", 16, 16, 1, 3],
    }  # fmt: skip


def test_of_the_weights_only_what_is_used_is_stored(tmp_path: Path) -> None:
    file = tmp_path / "operator.pt2"
    export_operator(make_operator(), file, "torch")
    program = torch.export.load(file)
    assert not [node.name for node in program.graph.nodes if node.op == "placeholder" and not node.users]
    kept = {name for name in program.state_dict if "network" in name}
    # Of the stem, the temporal aggregation, the positions, the spectral layers and the head only products enter.
    assert {name.split(".")[2] for name in kept} == {"blocks", "out_layer"}
    assert not [name for name in kept if "filter" in name or "out_layer.0" in name]


def test_a_file_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    operator = different_when_compiled(make_operator(), channel=1, by=1e-3)
    with pytest.raises(PdepotError, match=r"(?s)does not compute what the operator does.*found: relative L2"):
        export_operator(operator, tmp_path / "operator.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_nothing_that_is_not_a_number_passes(tmp_path: Path) -> None:
    operator = make_operator()
    torch.nn.init.constant_(operator.network.get_parameter("out_layer.4.bias"), NAN)
    with pytest.raises(PdepotError, match="relative L2 nan"):
        export_operator(operator, tmp_path / "operator.pt2", "torch")
    assert not list(tmp_path.iterdir())


def test_what_is_too_large_for_one_onnx_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pretrain.export._ONNX_LIMIT", 10_000)  # bytes; the toy takes 23,000
    with pytest.raises(ConfigError, match=r"(?s)too large for one ONNX file.*as torch or aoti"):
        export_operator(make_operator(), tmp_path / "operator.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_the_difference_is_that_of_the_worst_channel_about_its_mean() -> None:
    torch.manual_seed(0)
    mean = torch.tensor([1e3, 0.0, 0.0])
    expected = mean + torch.tensor([20.0, 1e-3, 0.0]) * torch.randn(4, 8, 8, 1, 3)
    assert _relative_l2(expected, expected, mean) == 0
    for channel, error in ((0, 20.0), (1, 1e-3)):
        found = expected.clone()
        found[..., channel] += 0.01 * error
        assert _relative_l2(found, expected, mean).item() == pytest.approx(0.01, rel=0.1)


@BOTH
def test_inputs_of_another_shape_are_refused(format: Format, tmp_path: Path) -> None:
    operator = make_operator()
    export_operator(operator, named(tmp_path, format), format)
    exported, x = load_exported(named(tmp_path, format)), histories(operator, 2)
    for wrong in (x[..., :1], x[:, :8], x[..., 1:, :], x.double()):
        with pytest.raises(ConfigError, match=r"(?s)key: history.*float32 \(2, 16, 16, 3, 2\)"):
            exported(wrong)
    with pytest.raises(ConfigError, match=r"(?s)key: parameters.*\(2, 0\)"):
        exported(x, torch.zeros(2, 1))


def test_what_cannot_be_exported_is_said_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operator, several = make_operator(), conditioned_operator("named", "mean_std")
    (tmp_path / "there.pt2").touch()
    cases: list[tuple[Operator, str, Format, str | None, str]] = [
        (operator, "x.onnx", "torch", None, r"(?s)format torch.*found: \.onnx.*expected: \.pt2"),
        (operator, "x", "onnx", None, r"expected: \.onnx"),
        (operator, "there.pt2", "torch", None, "exists already"),
        (several, "x.pt2", "torch", None, "one of: other, mine"),
        (several, "x.pt2", "torch", "mime", r"(?s)key: mime.*did you mean 'mine'"),
        (make_baseline_operator("FNO"), "x.pt2", "torch", None, r"(?s)baseline cannot be exported.*found: FNO"),
    ]
    for refused, name, format, dataset, message in cases:
        with pytest.raises(ConfigError, match=message):
            export_operator(refused, tmp_path / name, format, dataset)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(ConfigError, match="CXX="):
        export_operator(operator, tmp_path / "x.pt2", "aoti")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ConfigError, match=r"(?s)need onnxscript.*pip install -e '\.\[export\]'"):
        export_operator(operator, tmp_path / "x.onnx", "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["there.pt2"]


def test_other_files_are_named_as_such(tmp_path: Path) -> None:
    export_operator(make_operator(), tmp_path / "whole.pt2", "torch")
    (tmp_path / "cut.pt2").write_bytes((tmp_path / "whole.pt2").read_bytes()[:-100])
    (tmp_path / "text.pt2").write_text("no program")
    (tmp_path / "text.onnx").write_text("no graph")
    onnx.save(onnx.ModelProto(), tmp_path / "foreign.onnx")
    with zipfile.ZipFile(tmp_path / "foreign.pt2", "w") as archive:
        archive.writestr("model/data.pkl", b"")
    for name in ("cut.pt2", "text.pt2", "text.onnx", "foreign.onnx", "foreign.pt2"):
        with pytest.raises(DataError, match=rf"(?s)not a file that pdepot exported.*{name}"):
            load_exported(tmp_path / name)
    with pytest.raises(DataError, match="no such file"):
        load_exported(tmp_path / "none.pt2")


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = tmp_path / "operator", tmp_path / "toy.onnx"
    folder.mkdir()
    save_operator(make_operator(), folder)
    command = ["models", "export", str(folder), str(file), "--format"]
    assert main([*command, "onnx", "--dataset", "toy"]) == 0
    assert "relative L2 to the operator" in capsys.readouterr().out
    assert describe(file).dataset == "toy"
    assert main([*command, "reference", "--dataset", "toy"]) == 1
    assert "a reference file is for no dataset" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "torhc"])
    assert "unknown value of --format 'torhc'; did you mean 'torch'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["models", "exprot"])
    assert "unknown command 'exprot'; did you mean 'export'?" in capsys.readouterr().err
