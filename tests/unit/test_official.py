"""Published checkpoints: nothing of them is executed, they compute what they did, and they come back bit for bit."""

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_pipeline.base.errors import ConfigError, DataError, RegistryError
from finetune.adapt import adapt
from launch.cli import main
from pretrain.evaluate import evaluate
from pretrain.model import NetworkConfig, Operator
from pretrain.model.baseline import BaselineConfig
from pretrain.model.official import DATASET, PUBLISHED, export_reference, import_official, read_official
from pretrain.model.operator import load_operator_files, save_operator
from pretrain.model.plain import PlainDpot
from pretrain.model.reference import reference_config
from pretrain.registry import load_operator, pull
from tests.operator_fakes import MemoryStore, travelling_waves
from tests.operators import make_operator
from tests.unit.test_model import GOLDEN, read, relative, state_of

PLAIN = next(p for p in GOLDEN if p.stem == "dpot2d_tiny")
TRUNCATED = next(p for p in GOLDEN if p.stem == "dpot2d_normalize_truncated")
golden = pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)


class Malicious:
    """A pickle of this creates a folder when it is loaded without care."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.victim),)


def published_arguments(config: dict[str, Any], **changes: Any) -> Namespace:
    """What the reference's command line has beside other things, from its constructor's arguments."""
    names = {
        "res": "img_size", "patch_size": "patch_size", "T_in": "in_timesteps", "T_bundle": "out_timesteps",
        "width": "embed_dim", "n_layers": "depth", "n_blocks": "n_blocks", "mlp_ratio": "mlp_ratio",
        "out_layer_dim": "out_layer_dim", "modes": "modes", "act": "act",
    }  # fmt: skip
    given = {ours: config[theirs] for ours, theirs in names.items()} | {"normalize": int(config["normalize"])}
    other = {"model": "DPOT", "train_paths": ["ns2d_fno_1e-5"], "lr": 1e-3, "gpu": "0", "resume_path": ""}
    return Namespace(**{**other, **given, **changes})


def write_checkpoint(
    file: Path, golden_file: Path = PLAIN, *, prefix: str = "", legacy: bool = False, args: Any = None, **changes: Any
) -> Path:
    """A file as the reference writes it, with Adam's moments; `changes` replace entries of the pickled dict."""
    config, tensors = read(golden_file)
    state = {f"{prefix}{name}": value for name, value in state_of(tensors).items()}
    moments = {i: {"step": 3, "exp_avg": v, "exp_avg_sq": v * v} for i, v in enumerate(state.values())}
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.9), "params": list(moments)}]}
    content = {"args": args or published_arguments(config), "model": state, "optimizer": optimizer} | changes
    torch.save({k: v for k, v in content.items() if v is not None}, file, _use_new_zipfile_serialization=not legacy)
    return file


def predict(operator: Operator, x: Tensor) -> Tensor:
    return operator(x, torch.zeros(len(x), dtype=torch.int64)).detach()


@golden
@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_imported_file_computes_what_the_reference_computes(path: Path, prefix: str, tmp_path: Path) -> None:
    config, tensors = read(path)
    import_official(write_checkpoint(tmp_path / "best.pth", path, prefix=prefix), tmp_path / "operator")
    operator = load_operator_files(tmp_path / "operator")
    assert operator.config.network == reference_config(config, tensors["input"].ndim - 3)
    assert relative(predict(operator, tensors["input"]), tensors["output"]) < 1e-5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "operator"]


@golden
@pytest.mark.parametrize("prefix", ["", "module."])
def test_out_and_in_again_keeps_every_bit(path: Path, prefix: str, tmp_path: Path) -> None:
    first = read_official(write_checkpoint(tmp_path / "first.pth", path, prefix=prefix))
    export_reference(first.operator, tmp_path / "back.pth")
    again = read_official(tmp_path / "back.pth")
    assert again.operator.config == first.operator.config
    assert not again.assumed

    with torch.serialization.safe_globals([Namespace]):
        written = torch.load(tmp_path / "back.pth", weights_only=True)
    original = state_of(read(path)[1])
    assert written["model"].keys() == original.keys()
    assert all(torch.equal(value, original[name]) for name, value in written["model"].items())
    expected = vars(published_arguments(read(path)[0]))
    assert {k: v for k, v in vars(written["args"]).items() if k in expected}.items() <= expected.items()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("careless", [False, True], ids=["", "with weights_only switched off outside"])
def test_nothing_in_the_file_is_executed(
    legacy: bool, careless: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if careless:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    victim = tmp_path / "victim"
    file = write_checkpoint(tmp_path / "evil.pth", legacy=legacy, optimizer=Malicious(victim))
    with pytest.raises(DataError, match=r"found: \w+\.mkdir"):
        import_official(file, tmp_path / "operator")
    assert not victim.exists()
    assert not (tmp_path / "operator").exists()
    # The same file does harm where it is loaded without care.
    torch.load(file, weights_only=False)
    assert victim.exists()


def test_a_file_in_the_first_format_is_read(tmp_path: Path) -> None:
    operator = load_operator(write_checkpoint(tmp_path / "old.pth", legacy=True))
    tensors = read(PLAIN)[1]
    assert relative(predict(operator, tensors["input"]), tensors["output"]) < 1e-5


def test_where_a_folder_is_needed_the_way_to_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="pdepot models import"):
        pull(str(write_checkpoint(tmp_path / "best.pth")), uri="sqlite://")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("left", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(left: float, legacy: bool, tmp_path: Path) -> None:
    content = write_checkpoint(tmp_path / "whole.pth", legacy=legacy).read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: int(left * len(content))])
    with pytest.raises(DataError, match=r"(?s)not a checkpoint, or a damaged one.*cut\.pth"):
        read_official(tmp_path / "cut.pth")


def test_a_flipped_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "best.pth")
    content = bytearray(file.read_bytes())
    weight = state_of(read(PLAIN)[1])["time_agg_layer.w"].numpy().tobytes()
    content[bytes(content).index(weight[:64]) + 1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_official(file)


def test_files_that_are_no_checkpoints_are_named(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights here")
    torch.save(read(PLAIN)[1]["input"], tmp_path / "tensor.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    for name, message in {
        "missing": "no such file",
        "text": "not a checkpoint",
        "tensor": "found: Tensor",
        "module": "found: torch.nn.modules.linear.Linear",
    }.items():
        with pytest.raises(DataError, match=message):
            read_official(tmp_path / f"{name}.pth")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, r"(?s)key: model.*found: args, optimizer"),
        ({"model": [1]}, "not a state dict"),
        ({"model": {"pos_embed": 3}}, r"(?s)model\.pos_embed.*found: int"),
        ({"model": {"pos_embed": torch.zeros(1, 8, 2, 2).half()}}, r"torch\.float16"),
        ({"model": {"pos_embed": torch.zeros(1, 8, 2)}}, "1 spatial axes"),
        ({"model": {"head.weight": torch.zeros(3)}}, r"(?s)model\.pos_embed.*no such weight"),
        ({"model": {"a": torch.zeros(3), "module.a": torch.zeros(3)}}, "the same weight twice"),
        ({"args": "python train.py"}, "not arguments"),
    ],
)
def test_checkpoints_of_something_else_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_official(write_checkpoint(tmp_path / "best.pth", **changes))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blocks.1.mlp.0.weight", None, r"blocks\.1\.mlp\.0\.weight: missing"),
        ("blocks.0.attention", (3,), r"blocks\.0\.attention: not in the network"),
        ("patch_embed.proj.0.weight", (36, 7, 8, 8), r"proj\.0\.weight: found \(36, 7, 8, 8\), expected \(35,"),
        ("patch_embed.proj.0.weight", (35, 6, 8, 8), "4 out, 3 in"),
        ("patch_embed.proj.0.weight", (35, 7, 0, 0), r"found: \(35, 7, 0, 0\)"),
        ("out_layer.4.weight", (5, 32, 1, 1), r"out_layer\.4\.weight: found \(5,"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_together_are_named(
    name: str, shape: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    state = state_of(read(PLAIN)[1])
    state.pop(name, None)
    if shape is not None:
        state[name] = torch.zeros(shape)
    with pytest.raises((ConfigError, DataError), match=rf"(?s)best\.pth.*{message}"):
        read_official(write_checkpoint(tmp_path / "best.pth", model=state))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("res", 64), ("patch_size", 4), ("T_in", 9), ("T_bundle", 2), ("width", 512), ("n_layers", 3), ("n_blocks", 8),
        ("mlp_ratio", 4), ("out_layer_dim", 128), ("normalize", 1), ("mixing_type", "attention"), ("time_agg", "mlp"),
        ("width", "64"), ("width", None), ("width", [64]), ("width", torch.ones(2)), ("modes", 0), ("modes", "32"),
        ("modes", True), ("act", "gulu"), ("act", None),
    ],
)  # fmt: skip
def test_arguments_that_contradict_the_weights_are_refused(name: str, value: Any, tmp_path: Path) -> None:
    arguments = published_arguments(read(PLAIN)[0], **{name: value})
    message = {"modes": "modes", "act": "act"}.get(name, rf"args\.{name}: found")
    with pytest.raises((ConfigError, DataError), match=message):
        read_official(write_checkpoint(tmp_path / "best.pth", args=arguments))


def test_what_the_file_does_not_say_is_as_published_and_said(tmp_path: Path) -> None:
    config = read(TRUNCATED)[0]
    told = read_official(write_checkpoint(tmp_path / "told.pth", TRUNCATED))
    assert (told.operator.config.network.modes, told.assumed) == (config["modes"], ())
    silent = read_official(write_checkpoint(tmp_path / "silent.pth", TRUNCATED, args=Namespace()))
    assert (silent.operator.config.network.modes, silent.assumed) == (32, ("modes", "act"))
    assert "the file does not say" in silent.text()


def published_state(size: str) -> dict[str, Tensor]:
    """Weights of a published shape."""
    return dict(PlainDpot(PUBLISHED[size]).state_dict())


def test_a_published_size_is_recognised_and_its_count_shown(tmp_path: Path) -> None:
    state = published_state("Ti")
    for name in ("model_Ti.pth", "epoch_999.pth"):
        official = read_official(write_checkpoint(tmp_path / name, args=Namespace(), model=state))
        assert (official.size, official.parameters) == ("Ti", 7_534_643)
        assert "7,534,643" in official.text()


def test_a_file_that_is_not_of_its_size_is_refused_with_both_counts(tmp_path: Path) -> None:
    count = f"{sum(v.numel() for v in state_of(read(PLAIN)[1]).values()):,}"
    named, unnamed = write_checkpoint(tmp_path / "model_Ti.pth"), write_checkpoint(tmp_path / "best.pth")
    expected = rf"(?s)found: {count} parameters.*width 64.*expected: 7,534,643 parameters.*width 512"
    with pytest.raises(DataError, match=expected):
        read_official(named)
    with pytest.raises(DataError, match="30,801,459"):
        read_official(unnamed, "S")
    with pytest.raises(ConfigError, match="one of: H, L, M, S, Ti"):
        read_official(unnamed, "nano")
    assert read_official(unnamed).size is None


def test_other_classes_than_the_published_are_another_size(tmp_path: Path) -> None:
    state = published_state("Ti")
    state["cls_head.4.weight"], state["cls_head.4.bias"] = torch.zeros(11, 512), torch.zeros(11)
    with pytest.raises(DataError, match=r"(?s)7,534,130 parameters; classes 11.*7,534,643 parameters; classes 12"):
        read_official(write_checkpoint(tmp_path / "model_Ti.pth", args=Namespace(), model=state))


def test_the_imported_operator_is_evaluated_and_adapted_as_any_other(tmp_path: Path) -> None:
    import_official(write_checkpoint(tmp_path / "best.pth"), tmp_path / "operator")
    operator = load_operator(tmp_path / "operator")
    known = operator.config.datasets[0]
    assert operator.config.slots == "anonymous"
    waves = travelling_waves(1, 12, (32, 32))
    store = MemoryStore(waves.repeat(2, axis=-1), name=DATASET, channels=known.channels, dt=known.dt)
    assert evaluate(operator, store).relative_l2 is not None

    data = known.model_copy(update={"name": "flow", "channels": ("u", "v"), "mean": (0.0,) * 2, "std": (1.0,) * 2,
                                    "change_rms": (1.0,) * 2})  # fmt: skip
    new = adapt(operator, [data], ("u", "v"), (64, 32), {"u": "channel_3"})
    stem = operator.network.state_dict()["patch_embed.proj.0.weight"]
    assert torch.equal(new.network.state_dict()["patch_embed.proj.0.weight"][:, 0], stem[:, 2])
    assert predict(new, torch.randn(1, 64, 32, 10, 2)).shape == (1, 64, 32, 1, 2)


def plain_operator(**network: Any) -> Operator:
    """An operator that the reference could compute, unless these settings of its network are beyond it."""
    config = make_operator(predict="state", normalisation="none").config
    shape = NetworkConfig.model_validate(config.network.model_dump() | network)
    return Operator(config.model_copy(update={"network": shape}))


@pytest.mark.parametrize(
    ("network", "operator", "message"),
    [
        ({}, {"predict": "change"}, "predict: change, the reference has only state"),
        ({}, {"normalisation": "rms"}, "normalisation: rms"),
        ({}, {"channels": ("a", "b", "c")}, "slots: named"),
        ({"mode_truncation": "symmetric"}, {}, "mode_truncation: symmetric"),
        ({"resize_position": True}, {}, "resize_position: True"),
        ({"conditions": 2}, {}, "conditions: 2"),
        ({"stem_width": 7}, {}, "stem_width: 7, the reference has only 11"),
        ({"space": (16, 24)}, {}, r"space: \(16, 24\)"),
        ({"space": (16,)}, {}, r"space: \(16,\)"),
        ({}, {"network": BaselineConfig.model_construct(architecture="FNO")}, "(?s)not the reference's.*found: FNO"),
    ],
)
def test_what_the_reference_cannot_compute_is_not_exported(
    network: dict[str, Any], operator: dict[str, Any], message: str, tmp_path: Path
) -> None:
    refused = plain_operator(**network)
    refused.config = refused.config.model_copy(update=operator)
    with pytest.raises(ConfigError, match=message):
        export_reference(refused, tmp_path / "out.pth")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", [{}, {"mlp_ratio": 1.3}, {"stem_width": 11}, {"normalize": True}])
def test_our_own_operators_come_back_as_the_same_function(network: dict[str, Any], tmp_path: Path) -> None:
    operator = plain_operator(**network)  # 11 is the published width for two channels and patches of four.
    # How the weights were drawn is no part of the function.
    drawn = operator.config.network.model_copy(update={"initialisation": "edge_of_chaos"})
    operator.config = operator.config.model_copy(update={"network": drawn})
    export_reference(operator, tmp_path / "out.pth")
    x = torch.randn(2, 16, 16, 3, 2)
    assert torch.equal(predict(load_operator(tmp_path / "out.pth"), x), predict(operator, x))


def test_a_shape_whose_ratio_floats_cannot_hold_comes_back(tmp_path: Path) -> None:
    operator = plain_operator(width=56, mlp_ratio=61.5 / 56)
    assert int(56 * (61 / 56)) == 60
    export_reference(operator, tmp_path / "out.pth")
    assert read_official(tmp_path / "out.pth").operator.network.state_dict()["blocks.0.mlp.0.bias"].shape == (61,)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "best.pth")
    (tmp_path / "operator").mkdir()
    operator = import_official(file, tmp_path / "operator").operator  # an empty folder will do
    with pytest.raises(ConfigError, match="the folder holds something else"):
        import_official(file, tmp_path / "operator")
    with pytest.raises(ConfigError, match="the file exists already"):
        export_reference(operator, file)


def test_from_the_command_line_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder, back = write_checkpoint(tmp_path / "best.pth"), tmp_path / "operator", tmp_path / "back.pth"
    assert main(["models", "import", str(file), str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "none of the published ones" in shown
    assert "32 x 32, patches of 8" in shown
    assert main(["models", "export", str(folder), str(back), "--format", "reference"]) == 0
    x = read(PLAIN)[1]["input"]
    assert torch.equal(predict(load_operator(back), x), predict(load_operator(folder), x))
    assert main(["models", "import", str(file), str(tmp_path / "other"), "--size", "Ti"]) == 1
    assert "7,534,643" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    save_operator(make_operator(), folder)
    assert main(["models", "export", str(folder), str(tmp_path / "no.pth"), "--format", "reference"]) == 1
    assert "predict: change" in capsys.readouterr().err
