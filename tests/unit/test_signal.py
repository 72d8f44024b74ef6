"""Gradients through spectral layers scale as mean field says; at the edge of chaos they keep their size."""

from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from data_pipeline.base.config import build
from data_pipeline.base.errors import ConfigError
from launch.cli import main
from pretrain.diagnose import Propagation, StackConfig, diagnose, diagnose_stack, propagate, redrawn
from pretrain.model import Dpot, NetworkConfig
from pretrain.model.config import ACTIVATIONS
from pretrain.model.operator import save_operator
from pretrain.model.plain import PlainDpot, SpectralMixer
from pretrain.model.signal import SpectralLayer, SpectralStack, critical_variance, edge_of_chaos_
from tests.operators import make_operator

DEMO = str(Path(__file__).parents[2] / "configs" / "pretrain" / "demo.yaml")
SMALL = ["model.width=32", "model.heads=2", "model.depth=3", "model.patch_size=4"]


def shape(**options: object) -> NetworkConfig:
    fixed = {"space": (32, 32), "patch_size": 2, "in_channels": 1, "out_channels": 1, "width": 128, "heads": 2}
    return NetworkConfig(**(fixed | {"in_timesteps": 2, "depth": 3, "activation": "relu"} | options))  # type: ignore[arg-type]


def network(**options: object) -> Dpot:
    torch.manual_seed(0)
    return Dpot(shape(**options))


@pytest.mark.parametrize("sigma2", [1.0, 2.0, 4.0])
def test_relu_slope_is_that_of_mean_field(sigma2: float) -> None:
    config = StackConfig(width=192, depth=24, modes=64, points=128, sigma2=sigma2, signal="white")
    assert diagnose_stack(config).slope == pytest.approx(sqrt(sigma2 / 2), abs=0.03)


@pytest.mark.parametrize(("points", "modes"), [(128, 16), (128, 32), (128, 65), (63, 32)])
def test_the_number_of_modes_has_no_part_in_the_slope(points: int, modes: int) -> None:
    found = diagnose_stack(StackConfig(points=points, modes=modes, sigma2=2.0))
    assert found.slope == pytest.approx(1, abs=0.03)
    # The zero mode carries all of a constant signal: with a complex weight of the same variance it would lose half.
    assert (found.forward[-1] / found.forward[0]) ** (1 / 23) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(("points", "own_conjugate"), [(8, {0, 4}), (9, {0})])
def test_every_mode_has_the_same_variance_and_is_real_where_it_is_its_own_conjugate(
    points: int, own_conjugate: set[int]
) -> None:
    torch.manual_seed(0)
    weight = SpectralLayer(64, points, 5, "relu", 3.0).weight
    assert weight.square().sum(-1).mean((1, 2)).tolist() == pytest.approx([3 / 64] * 5, rel=0.1)
    assert {mode for mode in range(5) if not weight[mode, ..., 1].any()} == own_conjugate


def test_truncation_costs_gradient_while_signals_vary_in_space() -> None:
    constant, white = (
        diagnose_stack(StackConfig(depth=8, modes=16, sigma2=2.0, signal=signal)).slope
        for signal in ("constant", "white")
    )
    assert white < constant - 0.02


@pytest.mark.parametrize(("sigma2", "slope"), [(0.8, sqrt(0.8)), (1.0, 1.0), (1.2, sqrt(1.2))])
def test_tanh_edge_is_one_without_bias(sigma2: float, slope: float) -> None:
    config = StackConfig(depth=12, modes=16, activation="tanh", sigma2=sigma2, amplitude=1e-3)
    assert diagnose_stack(config).slope == pytest.approx(slope, abs=0.03)


def test_a_stack_without_a_variance_is_at_the_edge() -> None:
    assert StackConfig(activation="leaky_relu").variance == pytest.approx(2 / 1.01)
    assert StackConfig(activation="leaky_relu", sigma2=3.0).variance == 3


def test_modes_that_the_grid_does_not_have() -> None:
    with pytest.raises(ConfigError, match="128 points have 65 modes, not 66"):
        build(StackConfig, {"modes": 66})


@pytest.mark.parametrize(("activation", "edge"), [("relu", 2), ("leaky_relu", 2 / 1.01), ("tanh", 1), ("ELU", 1)])
def test_known_edges(activation: str, edge: float) -> None:
    assert critical_variance(activation) == pytest.approx(edge, rel=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_at_the_edge_no_signal_up_to_unit_variance_is_amplified(activation: str) -> None:
    edge = critical_variance(activation)
    z = torch.special.ndtri((torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000)
    chi = []
    for q in edge * torch.logspace(-6, 0, 40, dtype=torch.float64):
        x = (q.sqrt() * z).requires_grad_()
        (slope,) = torch.autograd.grad(ACTIVATIONS[activation]()(x).sum(), x)
        chi.append(edge * slope.square().mean().item())
    assert max(chi) == pytest.approx(1, abs=0.005)
    assert max(chi) < 1 + 1e-3


@pytest.mark.parametrize(("activation", "first"), [("relu", 2.0), ("tanh", 1.0)])
@pytest.mark.parametrize("kind", [Dpot, PlainDpot])
def test_edge_of_chaos_draws_the_spectral_weights_and_nothing_else(
    kind: type[nn.Module], activation: str, first: float
) -> None:
    made = kind(shape(depth=2, activation=activation))
    before = {name: value.clone() for name, value in made.state_dict().items()}
    edge_of_chaos_(made)
    after = made.state_dict()
    spectral = {name for name in before if ".filter." in name}
    assert {name for name in before if not torch.equal(before[name], after[name])} == spectral
    for block in made.blocks:
        layer, inputs = block.filter, 2 * 64
        assert inputs * layer.w1.var().item() == pytest.approx(first, rel=0.05)
        assert inputs * layer.w2.var().item() == pytest.approx(1, rel=0.05)
        assert abs(layer.w1.mean().item()) < 0.1 * layer.w1.std().item()
        assert not layer.b1.any()
        assert not layer.b2.any()


def test_edge_of_chaos_of_a_spectral_stack() -> None:
    stack = SpectralStack(width=64, depth=2, points=8, modes=5, activation="tanh", variance=9.0)
    edge_of_chaos_(stack)
    for block in stack.blocks:
        assert 64 * block.weight.square().sum(-1).mean().item() == pytest.approx(1, rel=0.1)


def test_edge_of_chaos_without_memory() -> None:
    with torch.device("meta"):
        assert Dpot(shape(initialisation="edge_of_chaos")).blocks[0].filter.w1.is_meta


def test_a_branch_passes_gradients_on_at_the_edge_and_hardly_any_as_published() -> None:
    edge, published = diagnose(network(initialisation="edge_of_chaos")), diagnose(network())
    assert edge.branch == pytest.approx([1] * 3, abs=0.15)
    assert max(published.branch) < 1e-3
    # The skips carry the gradient either way.
    assert published.slope == pytest.approx(edge.slope, rel=0.2)


class Branch(nn.Module):
    """An AFNO layer without its skip."""

    def __init__(self, layer: SpectralMixer) -> None:
        super().__init__()
        self.filter = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.filter(x) - x


def chain(*modules: nn.Module) -> nn.Module:
    """Modules one after another, in a list named `blocks`."""
    network = nn.Module()
    network.blocks = nn.ModuleList(modules)
    network.forward = nn.Sequential(*modules).forward  # type: ignore[method-assign]
    return network


def branches(depth: int) -> nn.Module:
    torch.manual_seed(0)
    return chain(*(Branch(SpectralMixer(shape())) for _ in range(depth))).double()


def test_branches_in_a_row_keep_the_gradient_at_the_edge() -> None:
    x = torch.randn(2, 128, 16, 16, dtype=torch.float64)
    network = branches(16)
    edge_of_chaos_(network)
    assert propagate(network, x).slope == pytest.approx(1, abs=0.05)
    assert propagate(branches(3), x).slope < 1e-3


def test_the_measurement_itself() -> None:
    torch.manual_seed(0)
    linear = [nn.Linear(4, 4, bias=False) for _ in range(3)]
    for layer, factor in zip(linear, (7.0, 0.5, 0.5), strict=True):
        layer.weight.data = factor * torch.eye(4)
    found = propagate(chain(*linear), torch.ones(1, 4))
    assert found.forward == pytest.approx([1, 7, 3.5])
    assert found.gradient[1] / found.gradient[2] == pytest.approx(0.5)
    assert found.gradient[0] / found.gradient[1] == pytest.approx(7)
    assert found.slope == pytest.approx(sqrt(3.5))
    assert found.branch == ()
    assert [row["block"] for row in found.rows()] == [0, 1, 2]


@pytest.mark.parametrize(("last", "word"), [(1.0, "stable"), (100.0, "vanishing"), (0.01, "exploding")])
def test_the_verdict(last: float, word: str) -> None:
    assert word in Propagation(forward=(1.0, 1.0), gradient=(1.0, last), branch=()).verdict


def test_a_gradient_that_is_not_finite_is_said() -> None:
    assert "not finite" in Propagation(forward=(1.0, 1.0), gradient=(float("nan"), 1.0), branch=()).verdict


def test_the_fast_network_is_measured_as_the_plain_one() -> None:
    fast, plain = network(initialisation="edge_of_chaos"), PlainDpot(shape())
    plain.load_state_dict(fast.state_dict())
    ours, theirs = diagnose(fast), diagnose(plain)  # type: ignore[arg-type]
    for name in ("forward", "gradient", "branch"):
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-3), name


def test_networks_without_a_depth_are_refused() -> None:
    with pytest.raises(ConfigError, match="two blocks"):
        diagnose(network(depth=1))
    with pytest.raises(ConfigError, match="two blocks"):
        propagate(nn.Linear(2, 2), torch.ones(1, 2))


def test_a_conditioned_network_and_fresh_weights_for_it() -> None:
    published = network(conditions=5)
    edge = redrawn(published, "edge_of_chaos")
    assert edge.config.conditions == 5
    assert min(diagnose(edge).branch) > 100 * max(diagnose(published).branch)


def test_a_baseline_of_the_field() -> None:
    pytest.importorskip("neuralop")
    from pretrain.model.baseline import Baseline, BaselineConfig

    fno = BaselineConfig(
        library="neuraloperator", architecture="FNO",
        arguments={"n_modes": [4, 4], "hidden_channels": 8, "n_layers": 3},
        space=(16, 16), in_channels=1, out_channels=1, in_timesteps=2,
    )  # fmt: skip
    assert len(diagnose(Baseline(fno)).gradient) == 3
    with pytest.raises(ConfigError, match="initialised by its library"):
        redrawn(Baseline(fno), "edge_of_chaos")


def gains(printed: str) -> list[float]:
    """The last column of the table."""
    return [float(line.split()[-1]) for line in printed.splitlines()[2:-1]]


def test_the_command_on_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["models", "diagnose", DEMO, *SMALL, "--space", "16", "24", "--channels", "2"]
    assert main(command) == 0
    published = capsys.readouterr().out
    assert main([*command, "--init", "edge_of_chaos"]) == 0
    edge = capsys.readouterr().out
    assert "log-slope" in published.splitlines()[-1]
    assert len(gains(published)) == 3
    assert max(gains(published)) < 0.01
    assert min(gains(edge)) > 0.3


def test_the_command_on_a_stack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "diagnose", "--stack", "width=16", "depth=4", "points=16", "modes=4", "sigma2=0.01"]) == 0
    printed = capsys.readouterr().out
    assert "relu: sigma^2 0.01, edge of chaos at 2" in printed
    assert "vanishing" in printed


def test_the_command_on_a_saved_operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    operator = make_operator()
    operator.network = Dpot(operator.config.network.model_copy(update={"depth": 2}))
    operator.config = operator.config.model_copy(update={"network": operator.network.config})
    for block in operator.network.blocks:
        block.filter.w1.data.zero_()
    save_operator(operator, tmp_path)
    assert main(["models", "diagnose", str(tmp_path)]) == 0
    assert gains(capsys.readouterr().out) == [0, 0]
    assert main(["models", "diagnose", str(tmp_path), "--init", "edge_of_chaos"]) == 0
    assert min(gains(capsys.readouterr().out)) > 0.1


def test_the_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["models", "diagnose", "--help"])
    assert "example: pdepot models diagnose" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to diagnose"),
        ([DEMO, "--space", "60", "60"], "patches do not cover"),
        ([DEMO, "--channels", "0"], "no such grid"),
        (["--stack", "sigm2=1"], "did you mean 'sigma2'"),
        (["--stack", "activation=rellu"], "did you mean 'relu'"),
        (["--stack", "--init", "published"], "settings only"),
        (["no/such/operator"], "no/such/operator"),
        (["some/operator", "--space", "8"], "shape of an operator is fixed"),
    ],
)
def test_what_cannot_be_diagnosed(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "diagnose", *words]) == 1
    assert said in capsys.readouterr().err
