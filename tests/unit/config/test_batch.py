from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.config.batch import Batch, nearest, solve

SIZE = st.integers(1, 300)


@given(SIZE, SIZE, SIZE)
def test_any_two_of_a_valid_triple_give_the_third(micro, steps, ranks):
    batch = Batch(micro * steps * ranks, micro, steps)
    total = batch.global_size
    assert solve(total, micro, steps, ranks) == batch
    assert solve(total, micro, None, ranks) == batch
    assert solve(total, None, steps, ranks) == batch
    assert solve(None, micro, steps, ranks) == batch


@given(SIZE, st.none() | SIZE, st.none() | SIZE, SIZE)
def test_a_solution_keeps_what_was_given_and_multiplies_out(total, micro, steps, ranks):
    batch = solve(total, micro, steps, ranks)
    if batch is not None:
        assert batch.micro_size * batch.accumulation_steps * ranks == batch.global_size == total
        assert micro in (None, batch.micro_size)
        assert steps in (None, batch.accumulation_steps)
    else:
        unit = (micro or 1) * (steps or 1) * ranks
        assert total % unit or (micro and steps and total != unit)


@given(SIZE, st.none() | SIZE, st.none() | SIZE, SIZE)
def test_the_nearest_choices_are_valid_and_different(total, micro, steps, ranks):
    found = nearest(total, micro, steps, ranks)
    assert 1 <= len(found) == len(set(found)) <= 3
    for batch in found:
        sizes = (batch.global_size, batch.micro_size, batch.accumulation_steps)
        assert solve(*sizes, ranks) == batch


@given(SIZE, SIZE, SIZE)
def test_a_choice_that_keeps_two_values_is_offered(micro, steps, ranks):
    found = nearest(micro * steps * ranks + 1, micro, steps, ranks)
    assert Batch(micro * steps * ranks, micro, steps) == found[0] or (
        found[0].global_size == micro * steps * ranks + 1
    )


def test_one_value_alone():
    assert solve(8, None, None, 2) == Batch(8, 4, 1)
    assert solve(None, 4, None, 2) == Batch(8, 4, 1)
    assert solve(None, None, 3, 2) == Batch(6, 1, 3)
    assert solve(None, None, None, 2) == Batch(2, 1, 1)
    assert solve(1, None, None, 2) is None


def test_the_words():
    words = Batch(24, 2, 3).says(4)
    assert words == "train_batch_size 24 = 2 micro x 3 accumulation x 4 ranks"


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ((7, 2, 3, 1), Batch(6, 2, 3)),
        ((12, 5, None, 2), Batch(10, 5, 1)),
        ((16, 4, 3, 2), Batch(24, 4, 3)),
    ],
)
def test_examples_of_the_nearest(given, first):
    assert first in nearest(*given)
