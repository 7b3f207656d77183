"""The tables of docs/from-ddp.md are arithmetic; its programs run in tests/distributed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.distributed.cells.from_ddp import programs

PAGE = (Path(__file__).parents[2] / "docs" / "from-ddp.md").read_text()
Shares = list[Callable[[int], float]]
STAGES = ("DDP", "stage 1", "stage 2", "stage 3")


def tables() -> list[list[list[str]]]:
    """The cells of every table, without its two heading rows."""
    blocks = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    return [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()[2:]]
        for block in blocks
    ]


def shares(
    weight: int, gradient: int, master: int, ddp_master: int
) -> list[Callable[[int], float]]:
    """Bytes a parameter on each of N ranks, from what each stage splits; moments are 8."""
    return [
        lambda n: weight + gradient + ddp_master + 8,
        lambda n: weight + gradient + (master + 8) / n,
        lambda n: weight + (gradient + master + 8) / n,
        lambda n: (weight + gradient + ddp_master + 8) / n,
    ]


@pytest.mark.parametrize(
    ("number", "expected"), [(0, shares(2, 2, 4, 4)), (1, shares(4, 4, 4, 0))], ids=["bf16", "fp32"]
)
def test_memory(number: int, expected: Shares) -> None:
    rows = tables()[number]
    assert [row[0] for row in rows] == list(STAGES)
    for row, share in zip(rows, expected, strict=True):
        assert row[3:] == [f"{share(n):.2f}" for n in (2, 8, 64)]
        assert all(eval(row[2], {"N": n}) == share(n) for n in (1, 2, 8, 64))


def test_traffic() -> None:
    rows = tables()[2]
    assert [row[0] for row in rows] == list(STAGES)
    # An all-reduce is a reduce-scatter and an all-gather, each of which sends every parameter once.
    reduces = [lambda a: 1, lambda a: 1, lambda a: a, lambda a: a]
    gathers = [lambda a: 1, lambda a: 1, lambda a: 1, lambda a: 2 * a]
    for row, reduce, gather in zip(rows, reduces, gathers, strict=True):
        assert row[3:] == [str(reduce(a) + gather(a)) for a in (1, 2, 8)]
        formula = row[2].replace("3 A", "3 * A")
        assert all(eval(formula, {"A": a}) == reduce(a) + gather(a) for a in (1, 2, 8))


def test_the_drawing_is_the_table() -> None:
    [drawing] = re.findall(r"```\n( +rank 0.*?)```", PAGE, re.S)
    whole = [line for line in drawing.splitlines() if "####" in line]
    split = [line for line in drawing.splitlines() if ".#.." in line]
    assert (len(whole), len(split)) == (3 + 2 + 1, 1 + 2 + 3)


def test_every_diff_applies(tmp_path: Path) -> None:
    found = [path.read_text() for path in programs(tmp_path)]
    assert len(found) == 5
    assert all(compile(text, "train.py", "exec") for text in found)
    assert "DistributedDataParallel" in found[0]
    assert "dl.register(model, run)" in found[-1]
