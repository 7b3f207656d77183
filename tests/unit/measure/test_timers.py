from __future__ import annotations

from collections.abc import Callable

import pytest

from ds_llama.measure.timers import StepTimer, synchronize_of


class Clock:
    """A clock that the test turns, and a device that takes 0.5 s to become idle."""

    def __init__(self) -> None:
        self.now, self.waits = 100.0, 0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> Callable[[], None]:
        self.now += seconds
        return lambda: None

    def synchronize(self) -> None:
        self.waits += 1
        self.now += 0.5


def test_a_window_holds_steps_and_parts() -> None:
    clock = Clock()
    timer = StepTimer(clock.synchronize, clock)
    timer.open()
    for _ in range(2):
        with timer.part("data_wait"):
            clock.work(1.0)
        for _ in range(2):  # two micro-batches
            with timer.part("forward"):
                clock.work(2.0)
            with timer.part("backward"):
                clock.work(4.0)
        timer.step()
    assert clock.waits == 1  # never inside the window
    window = timer.close()
    assert clock.waits == 2
    assert window.steps == 2
    assert window.total_s == pytest.approx(2 * (1 + 2 * 6) + 0.5)
    assert window.step_s == pytest.approx(13.25)
    assert window.part_s("data_wait") == pytest.approx(1.0)
    assert window.part_s("forward") == pytest.approx(4.0)
    assert window.part_s("backward") == pytest.approx(8.0)
    assert window.part_s("step") == 0.0


def test_windows_are_back_to_back_and_open_leaves_out() -> None:
    clock = Clock()
    timer = StepTimer(clock=clock)
    timer.open()
    clock.work(1.0)
    timer.step()
    assert timer.close().total_s == pytest.approx(1.0)
    clock.work(3.0)  # belongs to the next window
    timer.step()
    assert timer.close().total_s == pytest.approx(3.0)
    clock.work(50.0)  # an evaluation
    timer.open()
    clock.work(2.0)
    timer.step()
    assert timer.close().total_s == pytest.approx(2.0)


def test_a_part_that_fails_is_timed_too() -> None:
    clock = Clock()
    timer = StepTimer(clock=clock)
    timer.open()

    def fail() -> None:
        with timer.part("forward"):
            clock.work(1.0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    timer.step()
    assert timer.close().part_s("forward") == pytest.approx(1.0)


def test_an_empty_window_is_zero() -> None:
    timer = StepTimer()
    timer.open()
    window = timer.close()
    assert (window.step_s, window.part_s("forward")) == (0.0, 0.0)


def test_a_cpu_has_nothing_to_wait_for() -> None:
    assert synchronize_of("cpu")() is None
