from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.measure import accounting
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


Tree = list[Any]  # seconds of work, or (part's name, Tree), one after the other


def trees() -> st.SearchStrategy[Tree]:
    work = st.integers(0, 5).map(float)

    def within(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
        part = st.tuples(st.sampled_from(["forward", "gather", "other"]), inner)
        return st.lists(work | part, max_size=4)

    return st.recursive(st.lists(work, max_size=3), within, max_leaves=12)


def alone(tree: Tree, name: str | None = None) -> Iterator[tuple[str | None, float]]:
    """What each part does itself, and not a part within it."""
    for each in tree:
        if isinstance(each, tuple):
            yield from alone(each[1], each[0])
        else:
            yield name, each


@given(st.lists(trees(), max_size=3), st.booleans())
def test_time_belongs_to_the_innermost_part(steps: list[Tree], waits: bool) -> None:
    clock = Clock()
    timer = StepTimer(clock=clock, wait_at_parts=waits)
    timer.open()

    def do(tree: Tree) -> None:
        for each in tree:
            if isinstance(each, tuple):
                with timer.part(each[0]):
                    do(each[1])
            else:
                clock.work(each)

    for tree in steps:
        do(tree)
        timer.step()
    window = timer.close()
    spent = [found for tree in steps for found in alone(tree)]
    expected: dict[str | None, float] = {}
    for name, seconds in spent:
        expected[name] = expected.get(name, 0.0) + seconds
    assert window.total_s == sum(expected.values())
    assert expected.pop(None, 0.0) == window.total_s - sum(window.parts_s.values())
    for name in expected.keys() | window.parts_s.keys():
        assert window.parts_s.get(str(name), 0.0) == expected.get(name, 0.0)


def test_a_device_is_waited_for_at_the_edges_of_parts() -> None:
    clock = Clock()
    timer = StepTimer(clock.synchronize, clock, wait_at_parts=True)
    timer.open()
    with timer.part("forward"):
        clock.work(1.0)
        with timer.part("gather"):
            clock.work(2.0)
    timer.step()
    window = timer.close()
    # Each edge waits half a second, which is the device's time in the part that was open.
    assert window.parts_s == {"forward": 1.0 + 2 * 0.5, "gather": 2.0 + 0.5}


def test_phases_are_parts_of_the_timer_that_is_entered() -> None:
    timer = StepTimer()
    timer.open()
    with accounting.phase("forward"):
        pass
    with timer, accounting.phase("backward"):
        pass
    assert timer.close().parts_s.keys() == {"backward"}


def test_an_empty_window_is_zero() -> None:
    timer = StepTimer()
    timer.open()
    window = timer.close()
    assert (window.step_s, window.part_s("forward")) == (0.0, 0.0)


def test_a_cpu_has_nothing_to_wait_for() -> None:
    assert synchronize_of("cpu")() is None
