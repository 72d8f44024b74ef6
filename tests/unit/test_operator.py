"""The operator speaks physical units, and is saved and loaded without pickle."""

from pathlib import Path

import pytest
import torch

from data_pipeline.base.errors import ConfigError, DataError
from pretrain.model import load_operator_files, save_operator
from tests.operators import make_operator


def test_what_the_networks_output_means() -> None:
    x, row = torch.randn(2, 16, 16, 3, 2), torch.zeros(2, dtype=torch.int64)
    change, state = make_operator(), make_operator(predict="state")
    raw = change.network((x - 2.0) / 1.5)
    assert torch.allclose(change(x, row), x[..., -1:, :] + 0.1 * 1.5 * raw, atol=1e-6)
    assert torch.allclose(state(x, row), 2.0 + 1.5 * raw, atol=1e-6)
    plain = make_operator(normalisation="none")
    assert torch.allclose(plain(x, row), x[..., -1:, :] + 0.1 * plain.network(x), atol=1e-6)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    operator = make_operator(seed=5)
    save_operator(operator, tmp_path)
    loaded = load_operator_files(tmp_path)
    x, row = torch.randn(2, 16, 16, 3, 2), torch.zeros(2, dtype=torch.int64)
    assert torch.equal(loaded(x, row), operator(x, row))
    assert loaded.config == operator.config


def test_damage_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a saved operator"):
        load_operator_files(tmp_path)
    save_operator(make_operator(), tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:100])
    with pytest.raises(DataError, match=r"model\.safetensors"):
        load_operator_files(tmp_path)


def test_an_unknown_dataset_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'toy'"):
        make_operator().dataset_index("toi")
