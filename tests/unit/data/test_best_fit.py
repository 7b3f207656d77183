from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.data.best_fit import best_fit, next_fit, pack
from tests.campaigns import packing


def by_hand(sizes: list[int], room: int) -> list[int]:
    """Best-fit decreasing, piece by piece: the tokens in each row."""
    rows: list[int] = []
    for size in sorted(sizes, reverse=True):
        fits = [row for row, held in enumerate(rows) if held + size <= room]
        if fits:
            rows[max(fits, key=rows.__getitem__)] += size
        else:
            rows.append(size)
    return rows


PIECES = st.integers(1, 40).flatmap(
    lambda room: st.tuples(st.just(room), st.lists(st.integers(1, room), min_size=1, max_size=120))
)


@given(PIECES)
def test_groups_give_what_best_fit_decreasing_gives_piece_by_piece(
    pieces: tuple[int, list[int]],
) -> None:
    room, sizes = pieces
    held = np.bincount(best_fit(np.array(sizes), room), weights=sizes)
    # Of rows with equal room either may take the next: the rows' contents differ, not their sums.
    assert sorted(held.tolist()) == sorted(by_hand(sizes, room))


@given(PIECES)
def test_no_piece_is_lost_or_doubled_and_no_row_too_full(pieces: tuple[int, list[int]]) -> None:
    room, sizes = pieces
    rows = pack(np.array(sizes), room)
    assert sorted(rows.order.tolist()) == list(range(len(sizes)))
    assert rows.starts[0] == 0
    assert rows.starts[-1] == len(sizes)
    filled = [sum(np.array(sizes)[part]) for part in np.split(rows.order, rows.starts[1:-1])]
    assert len(filled) == len(rows)
    assert 0 < min(filled) <= max(filled) <= room
    assert len(rows) <= next_fit(np.array(sizes), room)[-1] + 1  # never more waste


@given(PIECES)
def test_next_fit_opens_a_row_where_the_next_does_not_fit(pieces: tuple[int, list[int]]) -> None:
    room, sizes = pieces
    expected, row, space = [], -1, 0
    for size in sizes:
        if size > space:
            row, space = row + 1, room
        space -= size
        expected.append(row)
    assert next_fit(np.array(sizes), room).tolist() == expected


def test_where_next_fit_is_luckier_it_is_taken() -> None:
    """4 4 | 3 3 3 | 3 for best-fit decreasing, 4 3 3 | 4 3 3 in the order given."""
    sizes = np.array([4, 3, 3, 4, 3, 3])
    assert best_fit(sizes, 10).max() == 2
    assert pack(sizes, 10).order.tolist() == [0, 1, 2, 3, 4, 5]
    assert pack(sizes, 10).starts.tolist() == [0, 3, 6]


def test_equal_pieces_are_laid_in_their_own_order() -> None:
    rows = pack(np.full(7, 3), 6)
    assert rows.order.tolist() == list(range(7))
    assert rows.starts.tolist() == [0, 2, 4, 6, 7]


@pytest.mark.parametrize("room", [2048, 100_000])
def test_many_pieces_of_a_skewed_length(room: int) -> None:
    """Far fewer steps than pieces: lengths go by in groups."""
    draw = np.random.default_rng(0)
    sizes = np.clip(draw.lognormal(5.5, 1.2, 200_000), 1, room).astype(np.int64)
    rows = pack(sizes, room)
    full = sizes.sum() / (len(rows) * room)
    naive = sizes.sum() / ((next_fit(sizes, room)[-1] + 1) * room)
    assert full > 0.999 > naive


def test_the_campaigns_short_form(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    try:
        assert packing.main(["--short"]) == 0
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2,000 documents of")
    assert [line.split("  ")[1] for line in lines[1:4]] == [
        "best_fit",
        "next-fit, in their order",
        "none",
    ]
    assert [line.partition(";")[2].split()[1] for line in lines[-3:]] == ["MB;"] * 3
