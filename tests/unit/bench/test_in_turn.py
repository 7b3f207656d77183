"""The script that runs cells in turn: what it makes of the seconds that it took."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[3] / "benchmarks/peers/in_turn.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def test_a_ratio_is_the_median_of_the_pairs_without_the_warm_steps(script: dict[str, Any]) -> None:
    """A minute in which everything takes twice as long changes no pair."""
    first = {"wall_s": [9.0, 9.0, 1.0, 2.0, 1.0], "cpu_s": [9.0, 9.0, 1.0, 1.0, 1.0]}
    own = {"wall_s": [1.0, 1.0, 1.5, 3.0, 1.5], "cpu_s": [1.0, 1.0, 2.0, 2.0, 5.0]}
    assert script["_ratios"](first, own) == {"wall_s": 1.5, "cpu_s": 2.0}


def test_the_table_names_every_cell_with_its_loss(script: dict[str, Any]) -> None:
    own = {"wall_s": [9.0, 9.0, 1.0], "cpu_s": [9.0, 9.0, 0.5], "loss": [3.0, 2.0, 1.25]}
    row = {"model": "m", "sequence_length": 8, "world_size": 2, "cells": {"a": own, "b": own}}
    row["ratio_to_first"] = {"a": {"wall_s": 1.0, "cpu_s": 1.0}, "b": {"wall_s": 1.3, "cpu_s": 1.2}}
    text = script["_table"](row)
    assert text.count("loss 1.25000") == 2
    assert "1.000 s (1.300 x)    0.500 CPU s (1.200 x)" in text
