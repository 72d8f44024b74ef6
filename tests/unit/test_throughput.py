"""FLOP and rates: the published counts, the makers' peaks, and figures that fit together."""

import time

import pytest
import torch

from data_pipeline.base.config import build
from pretrain import flop
from pretrain.config import ObjectiveConfig, RunConfig, TrainingConfig
from pretrain.flop import Cost, device_peak, network_cost, sample_cost
from pretrain.model import SIZES, DatasetScaling, NetworkConfig
from pretrain.model.baseline import BaselineConfig
from pretrain.throughput import Throughput, flop_per_sample
from tests.operator_fakes import operator_config
from tests.unit.test_baseline import FNO, UNO


@pytest.mark.parametrize(("size", "gflop"), [("Ti", 3.8), ("S", 15.0), ("M", 61.9)])
def test_published_counts(size: str, gflop: float) -> None:
    config = NetworkConfig(
        space=(128, 128), in_channels=4, out_channels=4, mode_truncation="symmetric", conditions=7,
        resize_position=True, **SIZES[size],
    )  # fmt: skip
    cost = network_cost(config, (128, 128))
    assert cost.forward / 1e9 == pytest.approx(gflop, rel=0.01)
    # No gradient goes to the data, so a little less than three times.
    assert 2.97 < cost.forward_backward / cost.forward < 3


def test_the_count_follows_the_grid() -> None:
    config = NetworkConfig(space=(32, 32), patch_size=4, in_channels=2, out_channels=2, **SIZES["nano"])
    small, large = network_cost(config, (16, 16)), network_cost(config, (64, 32))
    assert large.forward > 6 * small.forward


@pytest.mark.parametrize(("architecture", "arguments"), [("FNO", FNO), ("UNO", UNO)])
def test_baselines_are_counted(architecture: str, arguments: dict[str, object]) -> None:
    given = {"library": "neuraloperator", "architecture": architecture, "arguments": arguments}
    config = build(BaselineConfig, given | {"space": (16, 12), "in_channels": 2, "out_channels": 2})
    assert network_cost(config, (16, 12)).forward > 1e5


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({}, 30),
        ({"rollout_steps": 3}, 90),
        ({"rollout_steps": 3, "rollout_gradient": "truncated"}, 90),
        ({"rollout_steps": 3, "rollout_gradient": "push_forward"}, 50),
        ({"rollout_steps": 3, "rollout_random": True}, 60),
        ({"rollout_steps": 3, "rollout_gradient": "push_forward", "rollout_random": True}, 40),
    ],
)
def test_the_objective_decides_how_often_the_network_is_called(objective: dict[str, object], expected: float) -> None:
    assert sample_cost(Cost(10, 30), build(ObjectiveConfig, objective)) == expected


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", False, 989.5),
        ("NVIDIA H100 PCIe", "bfloat16", False, 756.5),
        ("NVIDIA H200", "float32", True, 494.5),
        ("NVIDIA GH200 480GB", "float32", False, 67),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", False, 312),
        ("Tesla V100-SXM2-16GB", "float32", False, 15.7),
        ("AMD Instinct MI300X", "bfloat16", False, 1307.4),
    ],
)
def test_peaks_of_data_sheets(
    name: str, precision: str, tf32: bool, tflops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    training = build(TrainingConfig, {"steps": 1, "precision": precision, "tf32": tf32})
    peak = device_peak(torch.device("cuda", 0), training)
    assert peak.rate == pytest.approx(tflops * 1e12)
    assert "data sheet" in peak.source


def test_a_device_without_a_data_sheet_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flop, "_SECONDS_TO_MEASURE", 0.0)
    peak = device_peak(torch.device("cpu"), build(TrainingConfig, {"steps": 1}))
    assert 1e8 < peak.rate < 1e14
    assert peak.source == "measured at the start on cpu: a square product in float32"


def run_config(**weights: int) -> RunConfig:
    data = [{"name": n, "path": n, "weight": w, "digest": n} for n, w in weights.items()]
    content = {"name": "run", "seed": 0, "data": data, "history": 3, "objective": {}, "tracking": {}}
    return build(RunConfig, content | {"training": {"steps": 10, "batch_size": 8}})


def test_figures_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flop, "_SECONDS_TO_MEASURE", 0.0)
    operator = operator_config()
    config = run_config(**{d.name: 1 for d in operator.datasets})
    throughput = Throughput(config, operator, torch.device("cpu"), 2)
    before = time.perf_counter()
    for _ in range(3):
        time.sleep(0.1)
        throughput.add(waited=0.05)
    figures = throughput.figures()
    seconds = time.perf_counter() - before
    assert figures["samples_per_second"] >= 3 * 8 / seconds
    assert 0 < figures["data_wait_fraction"] <= 0.5
    per_sample = flop_per_sample(config, operator)
    assert figures["flop_per_second"] == pytest.approx(figures["samples_per_second"] * per_sample)
    assert 0.01 < figures["memory_gib"] < 100
    assert "gpu_memory_gib" not in figures
    assert "measured" in throughput.note
    peak = figures["flop_per_second"] / figures["fraction_of_peak"]
    assert f"{peak / 2 / 1e12:.4g} TFLOP/s for each of 2 ranks" in throughput.note
    assert throughput.figures()["samples_per_second"] == 0  # since the call before


def test_datasets_count_by_their_weights() -> None:
    one = operator_config().datasets[0]
    datasets = tuple(
        DatasetScaling(**{**one.model_dump(), "name": name, "space": space})
        for name, space in (("small", (8, 8)), ("large", (16, 16)))
    )
    network = operator_config().network.model_copy(update={"space": (16, 16)})
    operator = operator_config().model_copy(update={"datasets": datasets, "network": network})
    alone = [flop_per_sample(run_config(**{name: 1}), operator) for name in ("small", "large")]
    assert flop_per_sample(run_config(small=3, large=1), operator) == (3 * alone[0] + alone[1]) / 4
    assert alone[1] > 3 * alone[0]
