"""Every cell of every world size, as a test of its own, and what the worlds have in common.

One file, so that one worker of pytest-xdist has all that reads the launches.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.cells import WORLDS, cells_of
from tests.distributed.cells.reproducible import BITS

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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("outcomes")
def test_the_same_bits_at_every_world_size(worlds: Path, precision: str) -> None:
    """`train.reproducible`: what each world size came to is the same."""
    one, *others = (
        json.loads((worlds / str(size) / f"reproducible.bits-{precision}" / BITS).read_text())
        for size in WORLDS
    )
    assert len(one["held"]) > 10
    assert {"weight", "master", "exp_avg", "exp_avg_sq"} <= next(iter(one["held"].values())).keys()
    for other in others:
        assert other["steps"] == one["steps"]
        assert other["held"] == one["held"]


def _tail(path: Path) -> str:
    return path.read_text()[-4000:] if path.exists() else "no log"
