from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.data.sampler import Sampler, permute

seeds = st.integers(-(2**70), 2**70)


@settings(max_examples=80)
@given(n=st.integers(1, 600), seed=seeds, epoch=st.integers(0, 2**40))
def test_an_epoch_holds_every_sample_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(permute(i, n, seed, epoch) for i in range(n)) == list(range(n))


@given(n=st.integers(1, 2**60), seed=seeds, data=st.data())
def test_any_size_needs_no_memory(n: int, seed: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, n - 1))
    assert 0 <= permute(index, n, seed, 0) < n


@given(seed=seeds, epoch=st.integers(0, 1000))
def test_epochs_and_seeds_differ(seed: int, epoch: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [permute(i, 100, seed, epoch) for i in range(100)]

    orders = [order(seed, epoch), order(seed, epoch + 1), order(seed + 1, epoch)]
    assert len({tuple(o) for o in orders}) == 3
    assert all(o != list(range(100)) for o in orders)


@pytest.mark.parametrize("n", [2, 3, 5, 97, 1000])
def test_every_place_is_equally_likely(n: int) -> None:
    """Chi-squared over where sample 0 goes; its mean is n-1 and its deviation sqrt(2 (n-1))."""
    epochs = 40 * n
    places = Counter(permute(0, n, 7, epoch) for epoch in range(epochs))
    chi_squared = sum((places[i] - 40) ** 2 / 40 for i in range(n))
    assert abs(chi_squared - (n - 1)) < 5 * (2 * (n - 1)) ** 0.5


def test_neighbours_are_torn_apart() -> None:
    """The mean distance between successive values of a random order of range(n) is n/3."""
    order = [permute(i, 3000, 3, 0) for i in range(3000)]
    distance = sum(abs(a - b) for a, b in pairwise(order)) / 2999
    assert 0.95 < distance / 1000 < 1.05


def test_the_order_is_part_of_the_format() -> None:
    """A resumed run relies on it: these numbers never change."""
    assert [permute(i, 10, 0, 0) for i in range(10)] == [0, 4, 2, 8, 6, 7, 9, 1, 3, 5]
    assert permute(123456789, 10**12, 42, 7) == 275729386251


def test_sampler_walks_epoch_after_epoch() -> None:
    sampler = Sampler(7, seed=5)
    drawn = [sampler.index(k) for k in range(21)]
    assert [drawn[7 * e : 7 * e + 7] for e in range(3)] == [
        [permute(i, 7, 5, e) for i in range(7)] for e in range(3)
    ]


def test_an_index_outside_is_refused() -> None:
    with pytest.raises(IndexError, match="sample 5 of 5"):
        permute(5, 5, 0, 0)


def test_a_sample_takes_microseconds() -> None:
    start = time.perf_counter()
    for i in range(10_000):
        permute(i, 10**9, 1, 0)
    assert (time.perf_counter() - start) / 10_000 < 100e-6
