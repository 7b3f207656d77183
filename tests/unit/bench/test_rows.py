"""What launches come to: medians, rates, shares."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.bench.rows import quantile
from ds_llama.bench.runs import run_json
from ds_llama.config import preset
from tests.unit.bench.conftest import Launches, case_of, run


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    assert quantile(values, share) == pytest.approx(np.quantile(values, share), abs=1e-6)


def test_a_row_is_made_of_its_launches(tmp_path: Path, launches: Launches) -> None:
    row, _ = run(case_of(), tmp_path, launches)
    tokens = 63  # of 64, one has nothing before it
    assert row["tokens_per_step"] == tokens
    assert row["step_s"]["median"] == statistics.median([1.0, 2.0, 3.0] * 2)
    assert row["step_s"]["steps"] == 6
    assert row["step_s"]["spread"] == 0
    assert row["tokens_per_s"] == row["tokens_per_s_per_device"] == tokens / 2
    flops = preset("tiny").flops_per_token(64)
    assert row["mfu"] == pytest.approx(tokens / 2 * flops / 1e11)
    assert row["hfu"] == pytest.approx(row["mfu"] * 1.25)
    assert row["data_wait_share"] == pytest.approx(0.01)
    assert row["memory"]["measured"]["device_peak_bytes"] == 1000
    assert row["memory"]["predicted"]["device_peak_bytes"] > 1000
    assert row["joules_per_token"] is None


def test_the_case_is_laid_under_each_run(tmp_path: Path) -> None:
    case = case_of(run={"optimizer": {"type": "Lion"}, "train": {"seed": 7, "steps": 9}})
    found = run_json(case, case.expanded[0], tmp_path)
    assert found["optimizer"]["type"] == "Lion"
    assert found["train"]["steps"] == case.warmup_steps + case.steps  # the case's own
