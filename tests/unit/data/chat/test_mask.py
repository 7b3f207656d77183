"""Tokens that have a character of an answer, beside the definition written out."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from ds_llama.data.chat.encoder import _mask

# How far a token begins behind the one before, and how long it is: those of one character share it.
PLACES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), max_size=12).map(
    lambda steps: _in_order(list(accumulate(step for step, _ in steps)), [n for _, n in steps])
)
SPANS = st.lists(st.integers(0, 30), max_size=6, unique=True).map(
    lambda cuts: list(zip(sorted(cuts)[::2], sorted(cuts)[1::2], strict=False))
)


def _in_order(starts: list[int], lengths: list[int]) -> list[tuple[int, int]]:
    ends = accumulate((a + n for a, n in zip(starts, lengths, strict=True)), max)
    return list(zip(starts, ends, strict=True))


@given(PLACES, SPANS)
def test_a_token_is_learnt_if_any_of_it_is_an_answers(
    places: list[tuple[int, int]], spans: list[tuple[int, int]]
) -> None:
    expected = [
        any((a < end and b > start) or (a == b and start <= a < end) for start, end in spans)
        for a, b in places
    ]
    assert _mask(places, spans) == [int(learnt) for learnt in expected]
