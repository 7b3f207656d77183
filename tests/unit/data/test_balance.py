from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.config.model import LlamaConfig
from ds_llama.data.balance import Assignment, Cost, Row, Shape, assign, in_order

COST = Cost(per_token=6_000, per_square=10)
Documents = list[tuple[int, ...]]


def rows_of(documents: Sequence[Sequence[int]]) -> list[Row]:
    return [Row(i, sum(d), sum(n * n for n in d)) for i, d in enumerate(documents)]


def longest(bins: list[list[list[int]]], documents: Documents, cost: Cost = COST) -> int:
    """Work until the last micro-step is over, ranks waiting for each other in each."""
    rows = rows_of(documents)
    return sum(max(cost.work([rows[i] for i in own]) for own in step) for step in bins)


def skewed(samples: int, longest: int, seed: int) -> Documents:
    """Log-normal lengths, median 90 tokens, one in six above 244."""
    draw = random.Random(seed)
    lengths = (draw.lognormvariate(4.5, 1.0) for _ in range(samples))
    return [(min(longest, max(2, int(length))),) for length in lengths]


def packed(samples: int, tokens: int, seed: int) -> Documents:
    """Rows that are full of documents, few or many."""
    draw = random.Random(seed)
    found: Documents = []
    for _ in range(samples):
        sizes: list[int] = []
        while (left := tokens - sum(sizes)) > 0:
            sizes.append(min(left, max(2, int(draw.lognormvariate(4.5, 1.5)))))
        found.append(tuple(sizes))
    return found


@st.composite
def batches(draw: st.DrawFn) -> tuple[Documents, Shape]:
    shape = Shape(*(draw(st.integers(1, most)) for most in (4, 4, 4)), sequence_length=64)
    sizes = st.lists(st.integers(1, 64), min_size=1, max_size=5)
    rows = sizes.map(lambda found: tuple(found) if sum(found) <= 64 else (min(found[0], 64),))
    most = shape.bins * shape.rows
    return draw(st.lists(rows, min_size=1, max_size=most)), shape


@settings(max_examples=150, deadline=None)
@given(batch=batches())
def test_every_sample_is_somewhere_once_and_has_room(batch: tuple[Documents, Shape]) -> None:
    documents, shape = batch
    found = assign(documents, COST, shape)
    assert [len(step) for step in found.bins] == [shape.ranks] * shape.micro_batches
    places = [place for step in found.bins for own in step for place in own]
    assert sorted(places) == list(range(len(documents)))
    for own in (own for step in found.bins for own in step if own):
        longest_row = max(sum(documents[place]) for place in own)
        assert len(own) * longest_row <= shape.rows * shape.sequence_length
    assert found.imbalance >= 1 - 1e-12
    assert found == assign(documents, COST, shape)
    assert longest(found.bins, documents) <= longest(in_order(len(documents), shape), documents)


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(0, 40), ranks=st.integers(1, 4), rows=st.integers(1, 4))
def test_samples_that_are_alike_stand_in_order(samples: int, ranks: int, rows: int) -> None:
    shape = Shape(ranks, -(-40 // (ranks * rows)), rows, 64)
    bins = in_order(samples, shape)
    assert [p for step in bins for own in step for p in own] == list(range(samples))
    assert all(len(own) <= rows for step in bins for own in step)
    assert len(bins) == shape.micro_batches


def test_work_is_what_the_model_computes_of_a_document() -> None:
    model = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=4,
    )  # fmt: skip
    cost = Cost.of(model)
    for tokens in (1, 7, 1000):
        assert cost.work([Row(0, tokens, tokens**2)]) == tokens * model.flops_per_token(tokens)
    assert cost.work([]) == 0
    short, long = Row(0, 3, 9), Row(1, 5, 5**2)
    filled = Row(0, 5, 3**2 + 2**2)  # what fills a row is a document of its own
    assert cost.work([short, long]) == cost.work([filled, long])


SHAPES = [
    pytest.param(Shape(2, 4, 2, 512), 1.35, 1.15, id="2x4x2"),
    pytest.param(Shape(2, 8, 1, 512), 1.40, 1.15, id="2x8x1"),
    pytest.param(Shape(8, 16, 8, 2048), 2.0, 1.10, id="8x16x8"),
]


@pytest.mark.parametrize(("shape", "naive_above", "below"), SHAPES)
def test_skewed_lengths_are_balanced(shape: Shape, naive_above: float, below: float) -> None:
    """Longest over mean of 4 global batches; and the time until all are done, in FLOPs."""
    naive, found = [], []
    for seed in range(4):
        documents = skewed(shape.bins * shape.rows, shape.sequence_length, seed)
        rows, bins = rows_of(documents), in_order(len(documents), shape)
        work = [[COST.work([rows[i] for i in own]) for own in step] for step in bins]
        naive.append(sum(map(max, work)) * shape.ranks / sum(map(sum, work)))
        balanced = assign(documents, COST, shape)
        found.append(balanced.imbalance)
        assert longest(balanced.bins, documents) < 0.9 * longest(bins, documents)
    assert sum(naive) / 4 > naive_above
    assert sum(found) / 4 < below


def test_full_rows_are_balanced_by_what_their_documents_attend_to() -> None:
    """All rows are 2048 tokens: what differs is the squares, which are most of the work here."""
    shape, cost = Shape(4, 2, 4, 2048), Cost(per_token=10, per_square=10)
    for seed in range(5):
        documents = packed(shape.bins * shape.rows, 2048, seed)
        assert {sum(sizes) for sizes in documents} == {2048}
        found = assign(documents, cost, shape)
        assert {len(own) for step in found.bins for own in step} == {shape.rows}
        assert found.imbalance < 1.1
        naive = longest(in_order(len(documents), shape), documents, cost)
        assert longest(found.bins, documents, cost) < naive


def test_one_giant_does_not_leave_the_rest_to_itself() -> None:
    """Whoever has it does nothing else in that micro-step, and the others are busy."""
    documents = [(500,), *[(50,)] * 31]
    shape = Shape(2, 4, 4, 512)
    found = assign(documents, COST, shape)
    [giant] = [step for step in found.bins if [0] in step]
    other = next(own for own in giant if own != [0])
    assert len(other) >= 8
    assert found.imbalance < 1.1


def test_nothing_to_do_is_balanced() -> None:
    shape = Shape(2, 1, 1, 8)
    assert assign([], COST, shape) == Assignment([[[], []]], 1.0)
    assert assign([(8,)], COST, shape).imbalance == 2.0
