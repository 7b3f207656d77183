"""Every cell of every world size, as a test of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed import world
from tests.distributed.cells import WORLDS, cells_of

ALL = [(size, name) for size in WORLDS for name in cells_of(size)]


@pytest.fixture(scope="session")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[dict]]]:
    folder = tmp_path_factory.mktemp("worlds")
    return {size: world.launch(size, folder / str(size)) for size in WORLDS}


@pytest.mark.parametrize(("size", "name"), ALL, ids=[f"{size}-{name}" for size, name in ALL])
def test_cell(
    outcomes: dict, size: int, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = outcomes[size].get(name, [])
    log = Path(tmp_path_factory.getbasetemp()) / "worlds0" / str(size) / "log.txt"
    assert len(rows) == size, f"only {len(rows)} of {size} ranks came to an end: {_tail(log)}"
    errors = [row["error"] for row in rows if row["error"]]
    assert not errors, "\n".join(errors)


def _tail(path: Path) -> str:
    return path.read_text()[-4000:] if path.exists() else "no log"
