"""Temporal bundling: a network that predicts several frames at once, from its configuration to what is made of it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.loader import Loader
from finetune.adapt import adapt
from pretrain.config import PretrainConfig
from pretrain.evaluate import evaluate
from pretrain.export import export_operator
from pretrain.exported import load_exported
from pretrain.job import new_operator, run_config, scaling
from pretrain.metrics import relative_l2
from pretrain.model import Operator, load_operator_files, save_operator
from pretrain.objective import DenoisingObjective
from pretrain.rollout import rollout_block
from pretrain.schedule import run_mixture
from pretrain.setup import frames_out
from tests.operator_fakes import MemoryStore, travelling_waves
from tests.unit.test_objective_config import FNO

T_IN, BUNDLE = 4, 2


def job(model: dict[str, Any], **objective: Any) -> PretrainConfig:
    content = {
        "name": "bundle", "output": "unused", "data": {"datasets": ({"config": "unused"},), "history": T_IN},
        "model": model, "objective": objective, "training": {"steps": 20, "batch_size": 4, "micro_batch": 4},
    }  # fmt: skip
    return PretrainConfig.model_validate(content)


def trained(config: PretrainConfig, store: MemoryStore) -> tuple[Operator, list[float]]:
    """As `pretrain.train` does it, in this process and without DeepSpeed."""
    operator = new_operator(config, [store])
    run = run_config(config, "bundle", [store])
    frames = frames_out(run, operator)
    objective = DenoisingObjective(operator, config.objective, seed=0)
    optimizer, losses = torch.optim.AdamW(operator.parameters(), lr=3e-3), []
    with Loader(
        [store], run_mixture(run, T_IN + frames), slots=[[0, 1]], num_channels=2, history=T_IN, target=frames, rank=0,
        world_size=1, first_step=0, shift=False, seed=0,
    ) as loader:  # fmt: skip
        for _ in range(config.training.steps):
            batch = next(loader)
            assert batch.target.shape[-2] == frames
            loss, _ = objective(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return operator, losses


def test_a_bundling_network_from_its_configuration_to_an_exported_file(tmp_path: Path) -> None:
    store = MemoryStore(travelling_waves(frames=13))
    config = job(
        {"size": "nano", "patch_size": 4, "bundle": BUNDLE},
        noise=0.1,
        rollout_steps=2,
        rollout_gradient="push_forward",
    )
    operator, losses = trained(config, store)
    assert operator.config.network.out_timesteps == BUNDLE
    assert frames_out(run_config(config, "bundle", [store]), operator) == 2 * BUNDLE
    assert sum(losses[-5:]) < sum(losses[:5])

    # Roll-outs call the network once for two frames, also to an odd end; an evaluation is that of the roll-out.
    calls: list[int] = []
    hook = operator.network.register_forward_hook(lambda *_: calls.append(1))
    waves = torch.from_numpy(travelling_waves(frames=13))
    x, rows = waves[:, :T_IN].movedim(1, -2).contiguous(), torch.zeros(3, dtype=torch.int64)
    block = rollout_block(operator, x, rows, 9)
    assert len(calls) == 5
    hook.remove()
    expected = relative_l2(block.double(), waves[:, T_IN:].double())
    assert evaluate(operator, store).relative_l2 == pytest.approx(float(expected), rel=1e-5)

    save_operator(operator, tmp_path)
    assert torch.equal(rollout_block(load_operator_files(tmp_path), x, rows, 9), block)

    # The same channels in another order: the head's rows go together by frame.
    turned = adapt(operator, [scaling(store, (8, 8))], operator.config.channels[::-1], (8, 8), {})
    again = rollout_block(turned, x.flip(-1), rows, 9).flip(-1)
    torch.testing.assert_close(again, block, rtol=1e-4, atol=1e-4)

    file = tmp_path / "operator.pt2"
    export_operator(operator, file, "torch")
    exported = load_exported(file)
    assert exported.description.frames_out == BUNDLE
    with torch.no_grad():
        torch.testing.assert_close(exported(x), operator(x, rows), rtol=1e-4, atol=1e-4)


def test_a_baseline_bundles_too() -> None:
    operator = new_operator(job(FNO | {"bundle": BUNDLE}), [MemoryStore(travelling_waves())])
    block = operator(torch.randn(1, 8, 8, T_IN, 2), torch.zeros(1, dtype=torch.int64))
    assert block.shape == (1, 8, 8, BUNDLE, 2)
