"""The script that switches optimisations off and on: what it makes of a pair's figures."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).parents[3] / "benchmarks"
KEYS = {"name", "what", "predicted", "predicted_from", "unit", "before", "after", "ratio"}


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "optimisations.py"))


def test_the_ratio_is_the_median_of_the_pairs(script: dict[str, Any]) -> None:
    """A minute in which everything takes twice as long changes no pair."""
    compared = script["Compared"]("a", "what", 0.5, "why")
    row = compared.row([1.0, 2.0, 1.0], [0.6, 1.2, 0.6])
    assert row.keys() >= KEYS
    assert (row["before"], row["after"], row["ratio"]) == (1.0, 0.6, 0.6)
    assert "a   " in script["line"](row)


def test_a_row_replaces_that_of_its_name(script: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for name, ratio in (("a", 1), ("b", 2), ("a", 3)):
        script["write"](path, [{"name": name, "ratio": ratio}])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"name": "a", "ratio": 3}, {"name": "b", "ratio": 2}]


def test_what_is_kept_for_the_backward_pass(script: dict[str, Any]) -> None:
    x = torch.ones(8, requires_grad=True)
    kept = script["kept_bytes"]
    assert kept(lambda: x * 2.0, x) == 0
    assert kept(lambda: x.exp(), x) == 32
    assert kept(lambda: x.exp().exp(), x) == 64


def test_a_part_that_takes_a_moment(script: dict[str, Any]) -> None:
    [row] = script["attention"](1)
    assert row.keys() >= KEYS
    assert row["before"] > 0 < row["after"]
    assert row["name"] == "attention halves"


def test_those_of_two_processes_are_read() -> None:
    ranks = runpy.run_path(str(SCRIPTS / "optimisations_ranks.py"))
    assert callable(ranks["main"])


def test_results_are_rows_and_the_table_of_the_documentation(script: dict[str, Any]) -> None:
    for line in script["RESULT"].read_text().splitlines():
        row = json.loads(line)
        assert row.keys() >= KEYS | {"pairs", "repeats", "provenance"}, row["name"]
    [shown] = script["TABLE"].findall(script["DOCS"].read_text())
    assert shown == script["markdown"](script["RESULT"])
