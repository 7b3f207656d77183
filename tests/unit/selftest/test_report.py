"""Outcomes of ranks, rows, the table at any width, the sentence at the end."""

from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ds_llama.cli import selftest_table
from ds_llama.selftest.cells import Cell
from ds_llama.selftest.outcome import BEYOND, ERROR, NOT_RUN, OK, Gaps, Outcome, merge
from ds_llama.selftest.report import Report

CELL = Cell("bf16", 3, "parameters", True, 4)
numbers = st.floats(0, 1, allow_nan=False) | st.just(math.nan)


def report(*outcomes: Outcome, sabotage: str | None = None) -> Report:
    about = {"world_size": 2, "device": "cpu", "versions": {"torch": "2"}}
    return Report([(CELL, outcome) for outcome in outcomes], about, sabotage)


@given(st.lists(numbers, min_size=1, max_size=5))
def test_the_largest_difference_is_kept_and_a_nan_is_the_largest(values: list[float]) -> None:
    gaps = Gaps()
    for value in values:
        gaps.see(Gaps(loss=value))
    if any(math.isnan(value) for value in values):
        assert math.isnan(gaps.loss)
        assert not gaps.within(CELL.limits)
    else:
        assert gaps.loss == max(values)


@given(st.tuples(numbers, numbers, numbers, numbers))
def test_an_outcome_survives_json(values: tuple[float, ...]) -> None:
    outcome = Outcome.judge(Gaps(*values), CELL.limits, 1.5)
    text = json.dumps(outcome.to_dict(), allow_nan=False)
    again = Outcome.from_dict(json.loads(text))
    assert repr(again) == repr(outcome)  # repr, since nan differs from itself
    assert (outcome.verdict == OK) == outcome.gaps.within(CELL.limits)


def test_the_worst_of_all_ranks_counts() -> None:
    good = Outcome.judge(Gaps(loss=1e-7), CELL.limits, 1.0)
    bad = Outcome.judge(Gaps(parameters=1.0), CELL.limits, 2.0)
    assert merge([good, bad]) == Outcome(BEYOND, Gaps(1e-7, 0.0, 0.0, 1.0), None, 2.0)
    assert merge([good, Outcome(ERROR, reason="why")]) == Outcome(ERROR, None, "why", 1.0)


def test_the_sentence_says_how_many_how_far_and_the_verdict() -> None:
    good = Outcome.judge(Gaps(loss=5e-7), CELL.limits, 1.0)
    assert report(good, Outcome(NOT_RUN, reason="no")).sentence() == (
        "1 of 2 cells ran to the end, the largest difference is 0.5 of its limit "
        f"(loss of {CELL.name}); every cell is within."
    )
    bad = report(good, Outcome.judge(Gaps(loss=math.nan), CELL.limits, 1.0), Outcome(ERROR))
    assert bad.sentence().endswith("1 cell beyond; 1 cell failed.")
    assert not bad.passed
    assert report(Outcome(NOT_RUN)).sentence() == "0 of 1 cell ran to the end."
    assert report(Outcome(NOT_RUN)).passed


def test_the_document_has_rows_versions_and_limits() -> None:
    found = report(Outcome.judge(Gaps(), CELL.limits, 1.0), sabotage="what").to_dict()
    assert found["sabotage"] == "what"
    assert found["versions"] == {"torch": "2"}
    assert found["cells"][0] == {
        **{"cell": CELL.name, "precision": "bf16", "stage": 3, "offload": "parameters"},
        **{"recompute": True, "accumulation": 4, "verdict": "ok", "reason": None, "seconds": 1.0},
        "gaps": {"loss": 0.0, "grad_norm": 0.0, "clip_coef": 0.0, "parameters": 0.0},
        "limits": CELL.limits.to_dict(),
    }


@pytest.mark.parametrize("width", [24, 40, 79, 80, 99, 100, 140])
def test_the_table_fits_any_width(width: int) -> None:
    outcomes = [
        Outcome.judge(Gaps(1e-7, 2e-7, 1e-8, 3e-8), CELL.limits, 12.5),
        Outcome.judge(Gaps(parameters=1.0), CELL.limits, 1.0),
        Outcome(NOT_RUN, reason="this device has no fast fp16"),
    ]
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    console.print(selftest_table.table(report(*outcomes), width))
    lines = stream.getvalue().splitlines()
    assert max(len(line) for line in lines) <= width
    text = " ".join(stream.getvalue().split())
    for verdict in ("ok", "beyond", "not run"):
        assert verdict in text
    assert ("limits of bf16" in text) == (width >= 100)
    assert (CELL.name in text) == (width >= 79)


def test_reasons_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    no = Outcome(NOT_RUN, reason="no [fast] fp16")
    selftest_table.show(report(no, no, no, sabotage="the data"))
    out = capsys.readouterr().out
    assert out.startswith("2 x cpu; torch 2; sabotaged: the data\n")
    assert out.count("not run: no [fast] fp16") == 1
    assert "and 1 more" in " ".join(out.split())
    assert out.rstrip().endswith("0 of 3 cells ran to the end.")
