"""The launches that the tests of this folder read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import world
from tests.distributed.cells import WORLDS


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each launch writes, in a folder named by its world size; a cell in one of its own."""
    return tmp_path_factory.mktemp("worlds")


@pytest.fixture(scope="session")
def outcomes(worlds: Path) -> dict[int, dict[str, list[dict]]]:
    """By world size and cell, a row for each rank."""
    return {size: world.launch(size, worlds / str(size)) for size in WORLDS}
