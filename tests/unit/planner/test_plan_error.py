"""Predicted memory against what was simulated and measured, and against a simulation of now."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ds_llama.planner import activations
from ds_llama.planner.autocast import Autocast
from ds_llama.planner.flat import FlatReducer
from ds_llama.planner.sharded import ShardedReducer
from ds_llama.planner.walk import Walk

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "benchmarks" / "plan_error.py"
    spec = importlib.util.spec_from_file_location("plan_error", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["plan_error"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script: ModuleType) -> list[dict[str, Any]]:
    """What was simulated, with what is predicted now."""
    kept = json.loads(script.RESULT.read_text())["rows"]
    return [script.row_of(script.Cell(**row["cell"]), row["simulated"]) for row in kept]


def test_what_was_simulated_is_predicted(script: ModuleType, rows: list[dict[str, Any]]) -> None:
    assert len(rows) >= 40
    assert len({row["cell"]["strategy"] for row in rows}) >= 14
    wrong = [row for row in rows if script.worst(row) > script.BOUND]
    assert not wrong, wrong


def test_what_was_measured_is_predicted(script: ModuleType) -> None:
    found = script.matrix_rows()
    assert len(found) >= 56
    wrong = [row for row in found if abs(row["error"]) > script.MATRIX_BOUND]
    assert not wrong, wrong


def test_what_was_simulated_at_random_is_predicted(script: ModuleType) -> None:
    """None of it was chosen: the same seed draws the same cells again."""
    found = json.loads(script.RANDOM.read_text())
    rows = [script.row_of(script.Cell(**row["cell"]), row["simulated"]) for row in found["rows"]]
    drawn = itertools.islice(script.drawn(3), len(rows) + len(found["refused"]))
    known = {script.Cell(**row["cell"]) for row in rows}
    assert all(cell in known or str(cell) in found["refused"] for cell in drawn)
    wrong = [row for row in rows if script.worst(row) > script.BOUND]
    assert not wrong, wrong


def test_a_simulation_of_now_is_predicted(script: ModuleType) -> None:
    for cell, peaks in script.simulated(script.QUICK[1::2]):
        assert isinstance(peaks, dict), peaks
        row = script.row_of(cell, peaks)
        assert script.worst(row) <= script.BOUND, row


def test_gradients_that_wait_to_be_swapped_are_seen(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardedReducer, "_written", lambda *_: True)
    assert any(abs(row["error"]) > script.MATRIX_BOUND for row in script.matrix_rows())


def _nothing(*_: Any) -> None:
    pass


SABOTAGE: dict[str, tuple[object, str, Callable[..., Any]]] = {
    "the head's gradients": (Walk, "_head", _nothing),
    "the bucket's copies": (FlatReducer, "_average", _nothing),
    "autocast's copies of the weights": (Autocast, "_copy", lambda *_: 0),
    "the fp32 of what is recomputed": (Autocast, "_again", lambda *_: False),
    "the chunk of logits": (activations, "_CHUNK", (2**22, 2**22)),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_dropped_term_is_seen(
    script: ModuleType, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(*SABOTAGE[what])
    again = [script.row_of(script.Cell(**row["cell"]), row["simulated"]) for row in rows]
    assert any(script.worst(row) > script.BOUND for row in again), what


def test_readme_says_what_the_table_says(script: ModuleType, rows: list[dict[str, Any]]) -> None:
    found = script.summary(rows, script.matrix_rows())
    kept = json.loads(script.RANDOM.read_text())["rows"]
    drawn = [script.row_of(script.Cell(**row["cell"]), row["simulated"]) for row in kept]
    found["drawn"] = script.summary(drawn, [])["all"]
    said_of = {"all": "simulated", "measured on CPU": "measured", "drawn": "drawn"}
    for name, words in said_of.items():
        [said] = re.findall(rf"^\| {words} [^|]*\| (\d+) \| (\S+) % \| (\S+) % \|", README, re.M)
        assert said == (
            str(found[name]["cells"]),
            f"{100 * found[name]['worst']:.2f}",
            f"{100 * found[name]['median']:.2f}",
        )
