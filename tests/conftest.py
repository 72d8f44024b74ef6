"""Fixtures that all tests share."""

from pathlib import Path

import pytest


@pytest.fixture
def shared() -> Path:
    """The folder of data that lies beside the repository; the test is skipped where there is none."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared folder beside the repository")
    return folder
