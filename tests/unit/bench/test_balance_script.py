"""benchmarks/balance.py: what it makes of its steps, and that its row is of its own making."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks/balance.py"))


def test_a_ratio_is_of_steps_that_followed_each_other(script: dict[str, Any]) -> None:
    """A minute in which everything takes ten times as long changes no pair."""
    rows = [
        {"kind": kind, "step": step, **dict.fromkeys(script["COLUMNS"], seconds)}
        for step, slow in enumerate((99, 99, 1, 10, 1))
        for kind, seconds in (("in order", 3.0 * slow), ("balanced", 2.0 * slow))
    ]
    found = script["summary"](rows)
    assert found["ratio"] == {"wall_s": 1.5, "busiest_cpu_s": 1.5, "all_cpu_s": 1.5}
    assert (found["in order"]["wall_s"], found["steps"]) == (3.0, 3)
    assert script["table"](found).splitlines()[-1].split()[-3:] == ["1.500"] * 3


def test_the_row_says_what_its_steps_say(script: dict[str, Any]) -> None:
    row = json.loads((ROOT / "benchmarks/results/balance.json").read_text())
    again = script["summary"](row["rows"])
    assert {key: row[key] for key in again} == again
    assert again["ratio"]["busiest_cpu_s"] > 1.5
    assert again["balanced"]["imbalance"] < 1.1 < 1.3 < again["in order"]["imbalance"]
