"""Fixtures of the tests that train."""

from typing import Any

import pytest

from tests.training import make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `data` group of a configuration, its two datasets built."""
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
