"""Groups, parity, what is recommended, and what is said of each cell's limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.bench.report import advise, limits
from ds_llama.bench.report.groups import Group, groups
from ds_llama.bench.report.row import parse
from ds_llama.bench.report.tables import ranks
from tests.unit.bench.report.conftest import Row, changed, measured_rows, real_rows, timed

ROWS = {row["strategy"] + " " + row["precision"]: row for row in measured_rows()[::-1]}
ZERO1, ZERO2, ZERO3 = (ROWS[f"zero{stage} bf16"] for stage in (1, 2, 3))
SIZE = "memory__measured__device_peak_bytes"


def group_of(rows: Sequence[Row], **reference: Any) -> Group:
    (found,) = groups([parse(row) for row in rows], reference)
    return found


def said(rows: Sequence[Row]) -> str:
    group = group_of(rows)
    return " ".join(advise.sentences(group, advise.advise(group)))


def holding(row: Row, medians: list[float], size: int) -> Row:
    return changed(timed(row, medians), **{SIZE: size})


def test_groups_are_of_the_same_work() -> None:
    first, second = groups([parse(row) for row in real_rows()], {"stage": 2, "precision": "fp32"})
    assert (first.sequence_length, second.sequence_length) == (128, 64)
    assert first.reference is not None
    assert first.name(first.reference) == "zero2 fp32"
    assert second.reference is second.cells[0]  # the case's is not in it
    assert len(first.failed) == 3
    assert len(set(first.names.values())) == len(first.names)
    assert first.shared == "micro 2, 2 ranks"


def test_groups_of_one_name_have_files_of_their_own() -> None:
    models = [{"hidden_size": size} for size in (8, 16, 32)]
    found = groups([parse(changed(ZERO2, str(m), model=m, model_name="h")) for m in models], {})
    assert [group.slug for group in found] == ["h-4x128", "h-4x128-2", "h-4x128-3"]


def test_the_faster_is_taken_and_the_cheaper_named() -> None:
    words = said([holding(ZERO1, [0.1, 0.102], 2**30), holding(ZERO3, [0.2, 0.204], 2**29)])
    assert words.startswith("Take zero1: the fastest at ")
    assert "2.00 x the next, with 1 GiB at the peak" in words
    assert "zero3 holds least: 512 MiB (50% less), at 0.50 x the speed" in words


def test_within_the_spread_the_one_that_holds_less_is_taken() -> None:
    words = said([holding(ZERO1, [0.1, 0.12], 2**30), holding(ZERO3, [0.11, 0.13], 2**29)])
    assert words.startswith("Take zero3")
    assert "within the spread as fast as zero1, and holds least of them" in words
    assert "None of the others holds less." in words


def test_a_fast_wrong_cell_is_left_out() -> None:
    wrong = holding(ZERO3, [0.01, 0.01], 2**20)
    wrong["losses"] = [wrong["losses"][0] * 0.9, *wrong["losses"][1:]]
    right = holding(ZERO1, [0.1, 0.1], 2**30)
    words = said([right, wrong])
    assert words.startswith("Take zero1")
    assert "Left out: zero3, whose first loss is not that of the reference, zero1." in words
    assert "Left out" not in said([right, holding(ZERO3, [0.01, 0.01], 2**20)])


@pytest.mark.parametrize("value", [float("nan"), None])
def test_losses_that_are_no_numbers(value: float | None) -> None:
    broken = changed(ZERO3, losses=[value] * 10)
    gap = group_of([ZERO1, broken]).parity(parse(broken))
    assert gap is not None
    assert gap.beyond == (("first loss", "last loss") if value is not None else ())
    assert (gap.first_loss is None) == (value is None)


def test_all_cells_wrong_or_one_cell() -> None:
    other = changed(ZERO3, program="peers/huggingface.py:eager")
    assert "is the only cell measured" in said([ZERO1])
    group = group_of([other, changed(ZERO1, grad_norms=[9.0] * 10)])
    words = advise.sentences(group, advise.advise(group))
    assert words[-1] == "No cell can be recommended."


def test_a_peer_is_not_recommended() -> None:
    peer = changed(timed(ZERO2, [1e-3, 1e-3], "peer"), program="peers/huggingface.py:compiled")
    group = group_of([ZERO2, peer])
    assert advise.advise(group).take is group.cells[0]
    assert set(group.names.values()) == {"ds_llama", "huggingface:compiled"}
    assert group.shared.startswith("zero2, bf16")
    words = said([ZERO2, peer])
    assert f"huggingface:compiled {4 * 127 / 1e-3 / ZERO2['tokens_per_s']:.2f} x the speed" in words
    assert "and 1.00 x the memory." in words
    assert words.startswith("ds_llama: ")
    assert "fastest" not in words  # which the peer is
    own = [holding(ZERO2, [0.1, 0.1], 2**29), holding(ZERO3, [0.2, 0.2], 2**30)]
    words = said([*own, peer])
    assert words.startswith("Take ds_llama zero2: the fastest of this package's own at ")
    assert "None of the others of its kind holds less." in words
    names = group_of([ZERO2, peer, changed(ZERO3, "3")]).names.values()
    assert "huggingface:compiled zero2" in names


def test_more_ranks_are_beside_the_fewest() -> None:
    rate = ZERO2["tokens_per_s_per_device"]
    four = changed(ZERO2, "four", world_size=4, tokens_per_s_per_device=rate * 0.8)
    table = ranks([parse(row) for row in (four, ZERO3, ZERO2)])
    assert table is not None
    assert [(row[1], row[4]) for row in table.rows] == [("2", "100%"), ("4", "80%")]
    assert table.rows[1][-1] == "2"  # ranks a core
    assert ranks([parse(row) for row in (ZERO2, ZERO3)]) is None


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=12))
def test_the_frontier_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    rows = [
        changed(ZERO2, str(number), tokens_per_s=float(tokens), **{SIZE: size})
        for number, (size, tokens) in enumerate(points)
    ]
    cells = [parse(row) for row in rows]
    found = {points[int(cell.key)] for cell in advise.frontier(cells)}
    beaten = {
        (size, tokens)
        for size, tokens in points
        for s, t in points
        if s <= size and t >= tokens and (s, t) != (size, tokens)
    }
    assert found == set(points) - beaten


def limit_of(row: Row, *others: Row) -> str:
    group = group_of([row, *others])
    return " ".join(limits.sentences(group, group.cells[0]))


def parts(row: Row, **parts_s: float) -> Row:
    return changed(row, parts_s={name.replace("_", " "): s for name, s in parts_s.items()})


def test_what_takes_longest_is_the_limit() -> None:
    flops = ZERO2["flops"]["hardware"]
    busy = parts(ZERO2, forward=0.2, backward=0.4, gather=0.28, optimizer=0.12)
    busy = changed(busy, peak_flops={"measured": flops / 0.6 / 0.8, "vendor": None})
    words = limit_of(busy)
    assert words.startswith(
        "Limited by matrix products: forward and backward take 60% of a step taken apart, at "
        "80% of the GEMM peak; gathering weights 28%, the optimizer's step 12%."
    )
    idle = changed(busy, peak_flops={"measured": flops / 0.6 / 0.03, "vendor": None})
    assert "Limited by forward and backward: 60% of a step taken apart, at 3% of" in limit_of(idle)
    words = limit_of(parts(ZERO2, forward=0.1, backward=0.1, reduce=0.7, host_link=0.1))
    assert words.startswith(
        "Limited by reducing gradients: 70% of a step taken apart; forward and backward"
    )


def test_the_step_from_a_simpler_cell_is_said() -> None:
    fast, slow = timed(ZERO2, [0.1, 0.102]), timed(ZERO3, [0.2, 0.204])
    size = ZERO2["memory"]["measured"]["device_peak_bytes"]
    slow = changed(slow, **{SIZE: size // 2})
    assert "Against zero2: 50% slower, 50% less memory." in limit_of(slow, fast)
    assert "as fast within the spread" in limit_of(timed(ZERO3, [0.099, 0.2]), fast)
    assert "Against" not in limit_of(fast, slow)
    offloaded = changed(slow, "all", offload="all", strategy="zero3+all")
    assert "Against zero3:" in limit_of(offloaded, fast, slow)
    again = changed(slow, "again", recompute=True)
    assert "Against zero3:" in limit_of(again, fast, slow, offloaded)


def test_doubts_are_said() -> None:
    words = limit_of(timed(changed(ZERO2, data_wait_share=0.04), [0.1, 0.15]))
    assert "4% of its time it waits for data." in words
    assert "Its launches are 40% apart" in words
    assert "Memory peaks in forward: 2.52 MiB, " in words
    early = changed(ZERO2, memory__measured__peak_phase="first", **{SIZE: 2**30})
    assert "Memory peaks in the first update: 1 GiB." in limit_of(early)


def test_what_was_not_measured_is_said() -> None:
    blind = changed(ZERO2, parts_s=None, memory__measured=None, flops=None, mfu=None)
    words = limit_of(blind)
    assert "What limits its time was not measured." in words
    assert "Its memory was not measured." in words
    group = group_of([blind, ZERO3])
    assert advise.advise(group).cheapest is group.cells[1]
