"""Intervals: beside scipy, and what they find and do not find in made-up launches."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ds_llama.bench.report.compare import SAME, SLOWER, UNSURE, Comparison, compare
from ds_llama.bench.report.folder import Folder
from ds_llama.bench.report.row import parse
from ds_llama.bench.report.student import probability_beyond, quantile
from tests.unit.bench.report.conftest import Row, changed, measured_rows, timed

# Copied thousands of times: without what no interval is made of.
_LONG = ("repeats", "losses", "grad_norms", "traffic", "flops", "provenance", "parts_s")
ROW = {key: value for key, value in measured_rows()[0].items() if key not in _LONG}
del ROW["memory"]["measured"]["phases"]


@given(st.floats(1e-3, 50), st.floats(1, 500))
def test_the_distribution_is_scipys(t: float, df: float) -> None:
    assert probability_beyond(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-9, abs=1e-14)


@given(st.floats(1e-6, 0.9), st.floats(1, 500))
def test_quantiles_are_scipys(beyond: float, df: float) -> None:
    assert quantile(beyond, df) == pytest.approx(stats.t.isf(beyond / 2, df), rel=1e-8)


def compared(before: list[Row], after: list[Row]) -> Comparison:
    folders = [Folder(Path(n), tuple(map(parse, r))) for n, r in (("old", before), ("new", after))]
    return compare(folders[1], folders[0])


def launches(medians: list[list[float]]) -> list[Row]:
    return [timed(ROW, each, f"cell{number}") for number, each in enumerate(medians)]


@given(
    st.lists(st.floats(0.5, 2), min_size=2, max_size=5),
    st.lists(st.floats(0.5, 2), min_size=2, max_size=5),
)
def test_one_cells_interval_is_scipys(before: list[float], after: list[float]) -> None:
    logs = [-np.log(each) for each in (after, before)]
    if min(map(np.std, logs)) < 1e-6:
        return  # scipy warns of launches that are all equal
    (change,) = compared(launches([before]), launches([after])).changes
    interval = stats.ttest_ind(*logs, equal_var=True).confidence_interval(0.95)
    assert change.low is not None
    assert change.high is not None
    assert math.log1p(change.low) == pytest.approx(interval.low, abs=1e-6)
    assert math.log1p(change.high) == pytest.approx(interval.high, abs=1e-6)


def trial(
    random: np.random.Generator, slower: float, noise: float, cells: int = 10, repeats: int = 3
) -> Comparison:
    """Cells of launches that differ by `noise`; the first became slower."""
    before = np.exp(noise * random.standard_normal((cells, repeats)))
    after = np.exp(noise * random.standard_normal((cells, repeats)))
    after[0] *= 1 + slower
    return compared(launches(before.tolist()), launches(after.tolist()))


def test_no_change_is_rarely_called_one() -> None:
    random = np.random.default_rng(0)
    alarms = [
        any(change.verdict != SAME for change in trial(random, 0.0, 0.03, repeats=2).changes)
        for _ in range(120)
    ]
    assert np.mean(alarms) < 0.08  # 5% of all trials, any of ten cells


@pytest.mark.parametrize(("noise", "seen"), [(0.01, True), (0.2, False)])
def test_a_slowdown_is_seen_beyond_the_noise_only(noise: float, seen: bool) -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        found = trial(random, 0.15, noise)
        assert (found.changes[0].verdict == SLOWER) == seen
        assert bool(found.failures(0.05)) == seen
        assert found.changes[0].speed == pytest.approx(1 / 1.15 - 1, abs=3 * noise)


def test_a_slowdown_within_the_limit_is_no_failure() -> None:
    found = trial(np.random.default_rng(2), 0.03, 0.001)
    assert found.changes[0].verdict == SLOWER
    assert found.failures(0.05) == []
    assert "slower" in found.failures(0.01)[0]


def test_one_launch_has_no_confidence() -> None:
    found = compared(launches([[1.0], [1.0, 1.1]]), launches([[3.0], [1.0, 1.1]]))
    assert [change.verdict for change in found.changes] == [UNSURE, SAME]
    assert found.changes[0].speed == pytest.approx(-2 / 3)
    assert found.failures(0.05) == []


def test_a_cell_of_its_own_noise_is_judged_by_it() -> None:
    calm = [[1.0, 1.001, 0.999]] * 9
    found = compared(launches([[1.0, 1.5, 0.7], *calm]), launches([[1.3, 2.0, 0.9], *calm]))
    assert found.changes[0].verdict == SAME


def test_memory_has_no_noise_and_what_is_lost_is_named() -> None:
    before = launches([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    after = launches([[1.0, 1.0], [1.0, 1.0]])
    peak = ROW["memory"]["measured"]["device_peak_bytes"]
    after[0] = changed(after[0], memory__measured__device_peak_bytes=int(peak * 1.1))
    refused = {"status": "oom", "reason": "out of memory"}
    found = compared(before, [*after, changed(before[2], **refused), changed(ROW, "new")])
    assert found.changes[0].memory == pytest.approx(0.1, abs=1e-6)
    assert found.changes[1].memory == 0
    assert len(found.only_here) == 1
    assert found.only_there == ()
    words = found.failures(0.05)
    assert "10.0% more memory" in words[0]
    assert "no longer measured (oom: out of memory)" in words[1]
    gone = compared(before, after[:1])
    assert len(gone.only_there) == 2
    assert gone.failures(0.05) == words[:1]
