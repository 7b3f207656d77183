"""Every cell of every world size, as a test of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.cells import WORLDS, cells_of

# Whichever test comes first waits for all launches.
pytestmark = pytest.mark.timeout(2400)
ALL = [(size, name) for size in WORLDS for name in cells_of(size)]


@pytest.mark.parametrize(("size", "name"), ALL, ids=[f"{size}-{name}" for size, name in ALL])
def test_cell(outcomes: dict, size: int, name: str, worlds: Path) -> None:
    rows = outcomes[size].get(name, [])
    log = worlds / str(size) / "log.txt"
    assert len(rows) == size, f"only {len(rows)} of {size} ranks came to an end: {_tail(log)}"
    errors = [row["error"] for row in rows if row["error"]]
    assert not errors, "\n".join(errors)


def _tail(path: Path) -> str:
    return path.read_text()[-4000:] if path.exists() else "no log"
