"""What a run remembers of its evaluations, and when they end it."""

from __future__ import annotations

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from ds_llama.config.run import EarlyStoppingConfig
from ds_llama.trainer.state import TrainState

SETTINGS = EarlyStoppingConfig(patience=2, min_delta=0.1)


def state_after(*losses: float, settings: EarlyStoppingConfig | None = SETTINGS) -> TrainState:
    state = TrainState(100, early_stopping=settings)
    for step, loss in enumerate(losses, start=1):
        state.step = step
        state.patience.see(loss, step, SETTINGS)
    return state


def test_it_ends_after_so_many_evaluations_without_improvement() -> None:
    assert not state_after(3.0, 2.0, 1.95).finished
    state = state_after(3.0, 2.0, 1.95, 1.91)
    assert state.finished
    assert state.ended_early == "no better validation loss in 2 evaluations, best 2.0000 at step 2"
    assert not state_after(3.0, 2.0, 1.95, 1.89).finished
    lost = state_after(math.nan, math.nan)
    assert lost.ended_early == "no better validation loss in 2 evaluations, it never was a number"


def test_the_end_depends_on_the_present_settings() -> None:
    saved = json.loads(json.dumps(state_after(2.0, 2.0, 2.0).to_dict(), allow_nan=False))
    for settings, finished in (
        (SETTINGS, True),
        (None, False),
        (EarlyStoppingConfig(patience=3), False),
    ):
        state = TrainState(100, early_stopping=settings)
        state.restore(saved)
        assert (state.step, state.finished) == (3, finished)


def test_a_run_that_made_every_step_did_not_end_early() -> None:
    state = state_after(2.0, 2.0, 2.0)
    state.total_steps = 3
    assert state.finished
    assert state.ended_early is None


def test_a_checkpoint_of_before_has_neither() -> None:
    state = TrainState(9)
    state.restore({"step": 4, "tokens_seen": 5, "samples_seen": 6})
    assert (state.step, state.plateau.scale, state.patience.best) == (4, 1.0, None)


@given(
    losses=st.lists(st.floats(0, 9), min_size=1, max_size=30),
    patience=st.integers(1, 5),
    delta=st.floats(0, 1),
)
def test_it_ends_where_the_definition_says(
    losses: list[float], patience: int, delta: float
) -> None:
    """No loss of the last `patience` is more than `min_delta` below the best of before."""
    settings = EarlyStoppingConfig(patience=patience, min_delta=delta)
    state = TrainState(1000, early_stopping=settings)
    best, end = math.inf, None
    for step, loss in enumerate(losses, start=1):
        state.patience.see(loss, step, settings)
        if loss < best - delta:
            best, improved = loss, step
        if step - improved >= patience:
            end = step
            break
        assert not state.finished
    assert state.finished == (end is not None)
