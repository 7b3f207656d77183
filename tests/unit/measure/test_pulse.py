"""Beats: what counts as one, in which thread, and what it costs."""

from __future__ import annotations

import threading

import pytest

from ds_llama.measure import accounting, pulse
from ds_llama.measure.pulse import Pulse


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "HERE", Pulse())
    pulse.HERE.of_this_thread()


def test_phases_nest() -> None:
    here = pulse.HERE
    assert (here.phase, here.slow) == ("start", True)
    for step, slow in ((1, True), (2, False)):  # the first step compiles
        here.at_step(step, first=step == 1)
        with accounting.phase("forward"):  # marked for accounting, with and without an account
            assert (here.step, here.phase, here.slow) == (step, "forward", slow)
            with pulse.within("evaluation"):
                assert here.slow
            assert (here.phase, here.slow) == ("forward", slow)
        assert here.phase == "loop"
    assert here.beats == 2 * 5


def test_another_threads_phases_do_not_count() -> None:
    before = pulse.HERE.beats
    with pulse.within("data"):
        thread = threading.Thread(target=pulse.within("save").__enter__)
        thread.start()
        thread.join()
        assert pulse.HERE.phase == "data"
    assert pulse.HERE.beats == before + 2


def test_a_phase_ends_with_an_error() -> None:
    with pytest.raises(ZeroDivisionError), pulse.within("data"):
        raise ZeroDivisionError
    assert pulse.HERE.phase == "start"
