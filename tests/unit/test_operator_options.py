"""The options beyond the reference together: all of them on, and all of them off."""

from pathlib import Path

import pytest
import torch

from data_pipeline.base.config import load
from data_pipeline.loader import Batch
from pretrain.config import ModelConfig, ObjectiveConfig, PretrainConfig
from pretrain.job import network_config, new_operator
from pretrain.model import NetworkConfig, Operator, load_operator_files, save_operator
from pretrain.objective import DenoisingObjective
from pretrain.registry import _signature
from pretrain.rollout import rollout_block
from tests.operator_fakes import WAVE, MemoryStore, travelling_waves

CONFIGS = Path(__file__).parents[2] / "configs"
ALL_ON = {
    "mode_truncation": "symmetric", "resize_position": True, "initialisation": "edge_of_chaos", "condition": True,
}  # fmt: skip
T_IN = 3


class Waves(MemoryStore):
    """Waves that carry their speed."""

    def __init__(self) -> None:
        super().__init__(travelling_waves())
        self.info = self.info.model_copy(update={"parameters": ("speed",)})


def job(model: dict[str, object], objective: dict[str, object]) -> PretrainConfig:
    return PretrainConfig.model_validate(
        {
            "name": "options",
            "output": "unused",
            "data": {"datasets": ({"config": "unused"},), "history": T_IN},
            "model": {"size": "nano", "patch_size": 2, "modes": 2} | model,
            "objective": objective,
            "training": {"steps": 1},
        }
    )


def train(operator: Operator, objective: ObjectiveConfig, steps: int = 2) -> list[float]:
    module = DenoisingObjective(operator, objective, seed=0)
    optimizer = torch.optim.AdamW(operator.parameters(), lr=1e-3)
    fields = torch.from_numpy(travelling_waves()).movedim(1, -2)
    batch = Batch.of(
        history=fields[..., :T_IN, :], target=fields[..., T_IN : T_IN + 1, :],
        channel_mask=torch.ones(3, 2, dtype=torch.bool), dataset=torch.zeros(3, dtype=torch.int64), dt=torch.ones(3),
        parameters=torch.tensor([[1.0], [2.0], [3.0]])[:, : len(operator.config.parameters)],
        position=torch.arange(3),
    )  # fmt: skip
    losses = []
    for _ in range(steps):
        loss, _ = module(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("slots", ["named", "anonymous"])
@pytest.mark.parametrize("normalisation", ["none", "mean_std", "rms", "sample"])
def test_all_on_it_trains_and_what_is_saved_rolls_out_the_same(slots: str, normalisation: str, tmp_path: Path) -> None:
    config = job(ALL_ON | {"slots": slots}, {"normalisation": normalisation, "predict": "change"})
    operator = new_operator(config, [Waves()])
    assert operator.config.parameters == ("speed",)
    assert operator.config.channels == (WAVE if slots == "named" else ("channel_1", "channel_2"))
    before = {name: value.clone() for name, value in operator.state_dict().items()}
    losses = train(operator, config.objective)
    assert losses[1] < losses[0]
    after = operator.state_dict()
    trained = [k for k in before if not k.startswith("network.cls_head") and not k.endswith("condition.0.bias")]
    assert all(not torch.equal(before[k], after[k]) for k in trained)

    save_operator(operator, tmp_path)
    loaded = load_operator_files(tmp_path)
    assert loaded.config == operator.config
    row, values = torch.zeros(2, dtype=torch.int64), torch.tensor([[1.0], [float("nan")]])
    for space in ((8, 8), (12, 6)):  # the table of positions is resized
        x = torch.randn(2, *space, T_IN, 2)
        block = rollout_block(operator, x, row, 3, values)
        assert block.isfinite().all()
        assert torch.equal(rollout_block(loaded, x, row, 3, values), block)


@pytest.mark.parametrize("flag", [*ALL_ON, "slots"])
def test_one_flag_alone_trains(flag: str) -> None:
    config = job({flag: (ALL_ON | {"slots": "anonymous"})[flag]}, {})
    losses = train(new_operator(config, [Waves()]), config.objective)
    assert losses[1] < losses[0]


def test_flags_reach_the_network() -> None:
    shape = {"width": 16, "depth": 1, "mlp_ratio": 1, "heads": 2, "head_width": 8}
    config = network_config(ModelConfig.model_validate(shape | ALL_ON), (16, 16), 2, 10, conditions=7)
    assert isinstance(config, NetworkConfig)
    for name in ("mode_truncation", "resize_position", "initialisation"):
        assert getattr(config, name) == ALL_ON[name]
    assert config.conditions == 7


def test_a_served_operator_takes_the_grids_that_it_can() -> None:
    for flag, space in ((True, (-1, -1)), (False, (8, 8))):
        config = new_operator(job({"resize_position": flag}, {}), [Waves()]).config
        assert _signature(config).inputs.inputs[0].shape == (-1, *space, T_IN, 2)


def test_in_the_reference_configuration_every_option_is_off() -> None:
    config = load(PretrainConfig, CONFIGS / "pretrain" / "reference.yaml")
    operator = new_operator(config.model_copy(update={"data": job({}, {}).data}), [Waves()])
    network = operator.config.network
    published = NetworkConfig(
        space=(8, 8), patch_size=8, in_channels=2, out_channels=2, in_timesteps=T_IN, width=512, depth=4, heads=4,
        mlp_ratio=1, head_width=32,
    )  # fmt: skip
    assert network == published
    found = (operator.config.predict, operator.config.normalisation, operator.config.slots, operator.config.parameters)
    assert found == ("state", "none", "anonymous", ())
    assert (config.objective.noise_unit, config.objective.shift, config.objective.rollout_steps) == ("norm", False, 1)
