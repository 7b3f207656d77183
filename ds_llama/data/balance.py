"""Which rank takes which samples, so that ranks that wait for each other work equally long.

The samples of a global batch are the sampler's; only who takes which is decided here, so that the
gradient of the step is the same up to the order of its sums.

    documents   9 2 3 8 2 1 7 2      2 ranks, 2 micro-batches each of at most 18 tokens
    in order    rank 0   9 2 | 2 1       padded to  18 |  4      over after 18 + 14
                rank 1   3 8 | 7 2                  16 | 14
    balanced    rank 0   3 7 | 2 2 1 2              14 |  8      over after 14 + 8
                rank 1   9   | 8                     9 |  8

A micro-batch is padded to its longest row, so rows of like length go together; and micro-batches of
like work go into one micro-step, at whose end the ranks meet.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ds_llama.config.model import LlamaConfig

Bin = list[int]
"""Places in the global batch of the samples of one micro-batch of one rank, ascending."""

_HALVINGS = 16


@dataclass(frozen=True)
class Row:
    """One sample: its place in the global batch, its tokens, its documents' squares summed."""

    place: int
    tokens: int
    squares: int


@dataclass(frozen=True)
class Cost:
    """FLOPs that a micro-batch takes in training, by `LlamaConfig.flops_per_token`.

    Every token, those that fill a row too, in the matrix products; each document with itself in
    causal attention, as one of which what fills a row counts (`collate`).
    """

    per_token: int
    per_square: int

    @classmethod
    def of(cls, model: LlamaConfig) -> Cost:
        """Of a document of n tokens `flops_per_token(n) * n`."""
        alone = model.flops_per_token(0)
        return cls(alone, model.flops_per_token(1) - alone)

    def work(self, rows: Sequence[Row]) -> int:
        """Of one micro-batch, 0 of an empty one."""
        longest = max((row.tokens for row in rows), default=0)
        squares = sum(row.squares + (longest - row.tokens) ** 2 for row in rows)
        return self.per_token * len(rows) * longest + self.per_square * squares


@dataclass(frozen=True)
class Shape:
    """How a global batch is cut.

    A micro-batch holds at most `rows` x `sequence_length` tokens with its padding, and so more than
    `rows` rows where they are short.
    """

    ranks: int
    micro_batches: int
    rows: int
    sequence_length: int

    @property
    def bins(self) -> int:
        """Micro-batches of all ranks together."""
        return self.ranks * self.micro_batches

    def has_room(self, rows: int, longest: int) -> bool:
        """Whether so many rows, padded to `longest` tokens, are a micro-batch."""
        return rows * longest <= self.rows * self.sequence_length


@dataclass(frozen=True)
class Assignment:
    """`bins[micro-batch][rank]`, and how far the ranks are from working alike.

    imbalance: the work of the longest rank of each micro-step, over the mean of all ranks; 1 is
    perfect.
    """

    bins: list[list[Bin]]
    imbalance: float


def assign(documents: Sequence[Sequence[int]], cost: Cost, shape: Shape) -> Assignment:
    """The assignment of a global batch, of at most `shape.bins` x `shape.rows` samples.

    documents: of each sample the lengths of the documents inside, at most `sequence_length` in all.
    A pure function of its arguments: every rank finds the same one. Of three ways the one whose
    micro-steps are over first is taken: rows of like length together; the heaviest first, each to
    whom has least (rows of equal length whose documents differ); and the order in which they came.
    """
    rows = [
        Row(place, sum(lengths), sum(n * n for n in lengths))
        for place, lengths in enumerate(documents)
    ]
    ways: tuple[Callable[..., list[list[Row]]], ...] = (_alike, _dealt, _in_order)
    found = [_in_steps(way(rows, cost, shape), cost, shape) for way in ways]
    best = min(range(len(found)), key=lambda way: (found[way][1], way))
    steps, longest = found[best]
    mean = sum(cost.work(own) for step in steps for own in step) / shape.ranks
    bins = [[sorted(row.place for row in own) for own in step] for step in steps]
    return Assignment(bins, longest / mean if mean else 1.0)


def in_order(samples: int, shape: Shape) -> list[list[Bin]]:
    """`bins[micro-batch][rank]` of samples that are all alike: micro-batch after micro-batch."""
    starts = [
        [(micro * shape.ranks + rank) * shape.rows for rank in range(shape.ranks)]
        for micro in range(shape.micro_batches)
    ]
    return [
        [[*range(start, min(start + shape.rows, samples))] for start in step] for step in starts
    ]


def _longest_first(row: Row) -> tuple[int, int, int]:
    return -row.tokens, -row.squares, row.place


def _in_order(rows: Sequence[Row], cost: Cost, shape: Shape) -> list[list[Row]]:
    return [[rows[i] for i in own] for step in in_order(len(rows), shape) for own in step]


def _alike(rows: Sequence[Row], cost: Cost, shape: Shape) -> list[list[Row]]:
    """Cut from the longest row to the shortest where the work of a micro-batch reaches a bound.

    It is the least with which the micro-batches suffice. Where it leaves whole micro-steps without
    a row, since one row alone is as much work as that, the first micro-step is made with it, and
    the rest anew.
    """
    rows, left = sorted(rows, key=_longest_first), shape.bins
    bins: list[list[Row]] = []
    while rows:
        found = _cut_evenly(rows, cost, shape, left)
        if len(found) > left - shape.ranks:
            return bins + found
        bins += found[: shape.ranks]
        rows = [row for own in found[shape.ranks :] for row in own]
        left -= shape.ranks
    return bins


def _cut_evenly(rows: Sequence[Row], cost: Cost, shape: Shape, most: int) -> list[list[Row]]:
    """At most `most` micro-batches, the longest of which is as short as can be, to 2^-16 of it.

    Without a bound they suffice for a global batch: each then holds `shape.rows` rows at least.
    """
    found = _cut(rows, cost, shape, None)
    high = max(cost.work(own) for own in found)
    low = max(cost.work([row]) for row in rows) - 1
    for _ in range(_HALVINGS):
        bound = (low + high) // 2
        tried = _cut(rows, cost, shape, bound)
        if len(tried) <= most:
            found, high = tried, bound
        else:
            low = bound
    return found


def _cut(rows: Iterable[Row], cost: Cost, shape: Shape, bound: int | None) -> list[list[Row]]:
    """Rows, longest first, in as few micro-batches as the bound on their work allows."""
    bins: list[list[Row]] = []
    longest = work = 0
    for row in rows:
        more = cost.per_token * longest
        more += cost.per_square * (row.squares + (longest - row.tokens) ** 2)
        small = bound is None or work + more <= bound
        if bins and small and shape.has_room(len(bins[-1]) + 1, longest):
            bins[-1].append(row)
            work += more
        else:
            bins.append([row])
            longest, work = row.tokens, cost.work([row])
    return bins


def _dealt(rows: Sequence[Row], cost: Cost, shape: Shape) -> list[list[Row]]:
    """The heaviest row first, each to the micro-batch that has least and has room (Graham 1969).

    Room is left: one that has none holds `shape.rows` rows at least, and the longest came first.
    """
    bins: list[list[Row]] = [[] for _ in range(shape.bins)]
    open_bins = [(0, number) for number in range(shape.bins)]
    for row in sorted(rows, key=_longest_first):
        while True:
            _, number = heapq.heappop(open_bins)
            own = bins[number]
            if not own or shape.has_room(len(own) + 1, own[0].tokens):
                break
        own.append(row)
        heapq.heappush(open_bins, (cost.work(own), number))
    return bins


def _in_steps(bins: list[list[Row]], cost: Cost, shape: Shape) -> tuple[list[list[list[Row]]], int]:
    """Micro-batches of like work side by side, and how long that takes: the longest of each step.

    In a micro-step the rank that has worked least so far takes the longest.
    """
    bins = bins + [[] for _ in range(shape.bins - len(bins))]
    work = [cost.work(own) for own in bins]
    order = sorted(range(shape.bins), key=lambda number: (-work[number], number))
    done = [0] * shape.ranks
    steps, longest = [], 0
    for start in range(0, shape.bins, shape.ranks):
        step: list[list[Row]] = [[] for _ in range(shape.ranks)]
        least = sorted(range(shape.ranks), key=lambda rank: (done[rank], rank))
        for rank, number in zip(least, order[start : start + shape.ranks], strict=True):
            step[rank] = bins[number]
            done[rank] += work[number]
        steps.append(step)
        longest += work[order[start]]
    return steps, longest
