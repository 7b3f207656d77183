"""Pieces of text into rows of so many tokens, none of them cut, as few rows as can be had fast.

Best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): the longest
piece first, each into the row that has the least room which is enough. Rows of equal room are alike
and so are pieces of equal length, so that both go by in groups: with T tokens a row there are never
more than T groups of either, and a million pieces take seconds, not minutes.

    room 8 | 7 7 | 5 5 5 | 3          pieces of 3 tokens, five of them
                               the row with room 3 takes one, the three with room 5 one each,
                               the first with room 7 one; it would take a second: 7 - 3 >= 3
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """Row r is the pieces `order[starts[r] : starts[r + 1]]`, by their index and in its order."""

    order: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.starts) - 1


def pack(sizes: Ints, room: int) -> Rows:
    """Rows of at most `room` tokens for one piece or more of 1 to `room` tokens; deterministic.

    Best-fit decreasing is within 11/9 of the fewest rows (Johnson 1974), and next-fit in the given
    order can still, by luck, need fewer; then it is taken.
    """
    assert 0 < sizes.min() <= sizes.max() <= room
    row_of_piece, simple = best_fit(sizes, room), next_fit(sizes, room)
    if simple[-1] < row_of_piece.max():
        row_of_piece = simple
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of_piece))])
    return Rows(np.argsort(row_of_piece, kind="stable"), starts)


def best_fit(sizes: Ints, room: int) -> Ints:
    """The row of each piece, by best-fit decreasing; rows count from 0."""
    row_of_piece = np.empty(len(sizes), np.int64)
    # Up to 16 bits numpy's stable sort is a radix sort, linear in the pieces.
    order = np.argsort(sizes.astype(np.uint16) if room < 1 << 16 else sizes, kind="stable")
    lengths, starts = np.unique(sizes[order], return_index=True)
    alike = np.split(order, starts[1:])
    spaces = _Spaces(room)
    for length, pieces in zip(lengths[::-1].tolist(), alike[::-1], strict=True):
        while len(pieces):
            space, rows = spaces.take(length, len(pieces))
            each = space // length
            held = rows[: -(-len(pieces) // each)]
            placed = np.repeat(held, each)[: len(pieces)]
            row_of_piece[pieces[: len(placed)]] = placed
            last = len(placed) - each * (len(held) - 1)
            spaces.put(space - each * length, held[:-1])
            spaces.put(space - last * length, held[-1:])
            spaces.put(space, rows[len(held) :])
            pieces = pieces[len(placed) :]
    return row_of_piece


def next_fit(sizes: Ints, room: int) -> Ints:
    """The row of each piece in the given order, a new one where the next does not fit."""
    ends = np.cumsum(sizes)
    after = np.searchsorted(ends, ends - sizes + room, side="right").tolist()
    first, at = [], 0
    while at < len(sizes):
        first.append(at)
        at = after[at]
    return np.repeat(np.arange(len(first)), np.diff([*first, len(sizes)]))


class _Spaces:
    """Rows by the room that they have left, and as many empty ones as are wanted."""

    def __init__(self, room: int) -> None:
        self.room, self.opened = room, 0
        self._rows: dict[int, deque[Ints]] = {}
        self._left: list[int] = []  # the keys, in order

    def take(self, length: int, pieces: int) -> tuple[int, Ints]:
        """Some rows of the least room that `length` fits in; empty ones if it fits in none."""
        place = bisect_left(self._left, length)
        if place == len(self._left):
            count = -(-pieces // (self.room // length))
            self.opened += count
            return self.room, np.arange(self.opened - count, self.opened)
        space = self._left[place]
        group = self._rows[space]
        rows = group.popleft()
        if not group:
            del self._rows[space], self._left[place]
        return space, rows

    def put(self, space: int, rows: Ints) -> None:
        """These rows have so much room left; full ones are done."""
        if not space or not len(rows):
            return
        if space not in self._rows:
            self._rows[space] = deque()
            insort(self._left, space)
        self._rows[space].append(rows)
