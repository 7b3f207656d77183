"""The gaps between a step's collectives and the paper's are named, and add up to the byte."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.measure import theory
from ds_llama.measure.theory import compared
from ds_llama.measure.traffic import Moved

P = 1_000_000
Elements = dict[tuple[str, str], int]


def moved(elements: Elements) -> Moved:
    collectives: dict[str, int] = {}
    for (kind, dtype), count in elements.items():
        size = count * {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]
        collectives[kind] = collectives.get(kind, 0) + size
    return Moved(collectives=collectives, elements=elements)


REDUCED, GATHERED = ("reduce_scatter", "bfloat16"), ("all_gather", "bfloat16")
ALL, WIDE = ("all_reduce", "bfloat16"), ("all_reduce", "float32")
CASES: dict[str, tuple[int, int, Elements, dict[str, int]]] = {
    "the paper's stage 2": (2, 1, {REDUCED: P, GATHERED: P}, {}),
    "the paper's stage 3": (3, 1, {REDUCED: P, GATHERED: 2 * P}, {}),
    "the paper's DDP": (0, 1, {ALL: P}, {}),
    "every rank gets the sum": (1, 1, {ALL: P, GATHERED: P}, {theory.EVERY_RANK: 2 * P}),
    "every micro-batch": (
        *(2, 3, {ALL: 3 * P, GATHERED: P}),
        {theory.EVERY_RANK: 6 * P, theory.EACH_MICRO_BATCH: 4 * P},
    ),
    "fp32 gradients": (
        *(1, 2, {WIDE: P, GATHERED: P}),
        {theory.EVERY_RANK: 4 * P, theory.WIDER: 2 * P},
    ),
    "fp32 gradients without ZeRO": (0, 1, {WIDE: P}, {theory.WIDER: 4 * P}),
    "quantized weights": (
        *(3, 1, {REDUCED: P, ("all_gather", "int8"): 2 * P}),
        {theory.WIDER_WEIGHTS: -2 * P},
    ),
    "kept for backward": (
        *(3, 2, {REDUCED: 2 * P, GATHERED: 2 * P}),
        {theory.EACH_MICRO_BATCH: 2 * P, theory.GATHERED_AGAIN: 4 * P, theory.KEPT: -4 * P},
    ),
    "recomputed": (3, 1, {REDUCED: P, GATHERED: 3 * P}, {theory.MORE: 2 * P}),
    "padded": (2, 1, {REDUCED: P + 8, GATHERED: P + 8}, {theory.PADDING: 32}),
}


@pytest.mark.parametrize(("stage", "batches", "elements", "gaps"), CASES.values(), ids=CASES)
def test_each_cause_has_its_bytes(
    stage: int, batches: int, elements: Elements, gaps: dict[str, int]
) -> None:
    found = compared(
        moved(elements), stage=stage, parameters=P, item_bytes=2, micro_batches=batches
    )
    assert found.gaps == gaps
    assert found.to_dict()["paper_volumes"] == (3 if stage == 3 else 2)


KINDS = [REDUCED, GATHERED, ALL, WIDE, ("broadcast", "float32"), ("all_to_all", "int8")]


@given(
    st.integers(0, 3),
    st.integers(1, 9),
    st.dictionaries(st.sampled_from(KINDS), st.integers(0, 9 * P)),
)
def test_the_gaps_are_the_whole_difference(stage: int, batches: int, elements: Elements) -> None:
    found = compared(
        moved(elements), stage=stage, parameters=P, item_bytes=2, micro_batches=batches
    )
    assert found.paper_bytes + sum(found.gaps.values()) == found.measured_bytes


def test_one_rank_sends_nothing() -> None:
    found = compared(
        moved({REDUCED: P}), stage=3, parameters=P, item_bytes=2, micro_batches=1, ranks=1
    )
    assert found.gaps == {theory.ONE_RANK: -4 * P}
