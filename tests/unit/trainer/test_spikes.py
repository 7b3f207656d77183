"""Deviations of a loss from those before it, beside numpy's, and what must not depend on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ds_llama.trainer.spikes import LossWindow

losses = st.floats(0.01, 20)
several = st.lists(losses, min_size=2, max_size=40)


@given(several, losses, st.integers(2, 40))
def test_it_is_numpys(known: list[float], loss: float, window: int) -> None:
    found = LossWindow(known).deviations(loss, window)
    if len(known) < window:
        assert found is None
        return
    last = np.array(known[-window:])
    assume(last.std() > 1e-6)
    assert found == pytest.approx((loss - last.mean()) / last.std(), rel=1e-6, abs=1e-6)


@given(losses, st.integers(2, 200))
def test_equal_losses_are_no_spike(loss: float, window: int) -> None:
    known = LossWindow([loss] * window)
    assert known.deviations(loss, window) == 0
    assert known.deviations(math.nextafter(loss, math.inf), window) == math.inf
    assert known.deviations(loss / 2, window) == -math.inf


@given(several, losses, st.floats(-5, 5), st.sampled_from([0.5, 2.0, 4.0]))
def test_it_does_not_depend_on_the_unit(
    known: list[float], loss: float, shift: float, unit: float
) -> None:
    assume(np.std(known) > 1e-3)
    window = len(known)
    moved = LossWindow([unit * each + shift for each in known])
    expected = LossWindow(known).deviations(loss, window)
    assert moved.deviations(unit * loss + shift, window) == pytest.approx(
        expected, rel=1e-6, abs=1e-6
    )


@given(st.lists(st.floats(), max_size=60), st.integers(2, 20))
def test_the_last_finite_ones_are_kept(seen: list[float], window: int) -> None:
    kept = LossWindow()
    for loss in seen:
        kept.add(loss, window)
    assert kept.losses == [loss for loss in seen if math.isfinite(loss)][-window:]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_no_spike(loss: float) -> None:
    assert LossWindow([1.0, 2.0]).deviations(loss, 2) is None
