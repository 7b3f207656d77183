"""`train.reproducible` across launches: what each world size came to is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.cells import WORLDS
from tests.distributed.cells.reproducible import BITS

# Whichever test comes first waits for all launches.
pytestmark = pytest.mark.timeout(2400)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("outcomes")
def test_the_same_bits_at_every_world_size(worlds: Path, precision: str) -> None:
    one, *others = (
        json.loads((worlds / str(size) / f"reproducible.bits-{precision}" / BITS).read_text())
        for size in WORLDS
    )
    assert len(one["held"]) > 10
    assert {"weight", "master", "exp_avg", "exp_avg_sq"} <= next(iter(one["held"].values())).keys()
    for other in others:
        assert other["steps"] == one["steps"]
        assert other["held"] == one["held"]
