"""Cells in groups of the same work, their names, and what differs from the reference.

A group is one model, one sequence length and one global batch: its cells do the same thing, so that
their speeds, memory and losses can be laid beside each other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ds_llama.bench.case import matches
from ds_llama.bench.report.row import OURS, Cell, Measured

# What a cell's name is made of beside its strategy, where the cells of a group differ in it.
_WORDS: Mapping[str, Callable[[Cell], str]] = {
    "program": lambda cell: cell.program_name,
    "precision": lambda cell: cell.precision,
    "recompute": lambda cell: "recompute" if cell.recompute else "",
    "compile": lambda cell: "compile" if cell.compile else "",
    "micro_batch_size": lambda cell: f"micro {cell.micro_batch_size}",
    "accumulation": lambda cell: f"accumulate {cell.accumulation}" if cell.accumulation > 1 else "",
    "world_size": lambda cell: "1 rank" if cell.world_size == 1 else f"{cell.world_size} ranks",
}


@dataclass(frozen=True)
class Limits:
    """Relative differences from the reference, beyond which a cell is marked."""

    first_loss: float
    last_loss: float
    grad_norm: float


PARITY = ("first loss", "last loss", "grad norm")
# Between two cells of fp32, where only the order of sums differs; and where either is half.
EXACT, HALF = Limits(1e-4, 1e-3, 1e-2), Limits(5e-3, 2e-2, 1e-1)


@dataclass(frozen=True)
class Parity:
    """A cell's difference from the reference, relative; None where either has no such number.

    grad_norm: the largest over the steps that both have. `beyond` names what is over its limit.
    """

    first_loss: float | None
    last_loss: float | None
    grad_norm: float | None
    beyond: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Cells of the same work. `cells` are the measured ones, `failed` the others.

    shared: what all of them are, in words. slug: part of the names of files, no two groups' equal.
    """

    model_name: str
    sequence_length: int
    global_batch_size: int
    cells: tuple[Cell, ...]
    failed: tuple[Cell, ...]
    reference: Cell | None
    names: Mapping[str, str] = field(repr=False)
    shared: str
    slug: str

    @property
    def title(self) -> str:
        return f"{self.model_name}, {self.global_batch_size} x {self.sequence_length} tokens a step"

    def name(self, cell: Cell) -> str:
        return self.names[cell.key]

    def measured(self, cell: Cell) -> Measured:
        assert cell.measured is not None
        return cell.measured

    def parity(self, cell: Cell) -> Parity | None:
        """None for the reference itself, and where there is none."""
        if self.reference is None or cell.key == self.reference.key:
            return None
        return parity(cell, self.reference)


def groups(cells: Sequence[Cell], reference: Mapping[str, Any]) -> list[Group]:
    """The groups in the order of their first cells. `reference`: axes of the wanted cell."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        sizes = (cell.model, cell.sequence_length, cell.global_batch_size)
        found.setdefault(json.dumps(sizes, sort_keys=True), []).append(cell)
    made = list[Group]()
    for each in found.values():
        group = _group(each, reference)
        twins = sum(other.slug.startswith(group.slug) for other in made)
        made.append(replace(group, slug=f"{group.slug}-{twins + 1}") if twins else group)
    return made


def full_name(cell: Cell) -> str:
    """A cell in words without what is usual, where no group has said the rest."""
    if cell.name is not None:
        return cell.name
    sizes = f"{cell.model_name} {cell.micro_batch_size} x {cell.sequence_length}"
    words = ["program", "precision", "recompute", "compile", "world_size"]
    return f"{_name(cell, words[cell.program == OURS :])}, {sizes}"


def parity(cell: Cell, reference: Cell) -> Parity:
    """What differs between two measured cells of one group."""
    mine, wanted = cell.measured, reference.measured
    assert mine is not None
    assert wanted is not None
    shared = min(len(mine.losses), len(wanted.losses))
    first = _relative(mine.losses[0], wanted.losses[0]) if shared else None
    last = _relative(mine.losses[shared - 1], wanted.losses[shared - 1]) if shared else None
    pairs = zip(mine.grad_norms, wanted.grad_norms, strict=False)
    each = [gap for a, b in pairs if (gap := _relative(a, b)) is not None]
    norm = max(each, key=_size) if each else None
    limits = EXACT if cell.precision == reference.precision == "fp32" else HALF
    bounds = (limits.first_loss, limits.last_loss, limits.grad_norm)
    over = [
        name
        for name, gap, bound in zip(PARITY, (first, last, norm), bounds, strict=True)
        if gap is not None and not abs(gap) <= bound  # NaN is beyond every bound
    ]
    return Parity(first, last, norm, tuple(over))


def _relative(value: float | None, wanted: float | None) -> float | None:
    if value is None or wanted is None or wanted == 0:
        return None
    return value / wanted - 1


def _size(gap: float) -> float:
    return abs(gap) if gap == gap else float("inf")


def _group(cells: list[Cell], reference: Mapping[str, Any]) -> Group:
    measured = tuple(cell for cell in cells if cell.measured is not None)
    wanted = [cell for cell in measured if matches(cell, reference)]
    varying = [axis for axis in _WORDS if len({getattr(cell, axis) for cell in cells}) > 1]
    shared = [word for axis in _WORDS if axis not in varying and (word := _WORDS[axis](cells[0]))]
    # Of FSDP or DDP beside ZeRO a stage says nothing where all have the same.
    alike = "program" in varying and len({cell.strategy for cell in cells}) == 1
    shared = [cells[0].strategy, *shared] if alike else shared
    return Group(
        cells[0].model_name,
        cells[0].sequence_length,
        cells[0].global_batch_size,
        measured,
        tuple(cell for cell in cells if cell.measured is None),
        next(iter([*wanted, *measured]), None),
        {cell.key: _name(cell, varying, not alike) for cell in cells},
        ", ".join(word for word in shared if word != OURS),
        _slug(cells[0]),
    )


def _slug(cell: Cell) -> str:
    words = f"{cell.model_name}-{cell.global_batch_size}x{cell.sequence_length}"
    return re.sub(r"[^A-Za-z0-9.]+", "-", words).strip("-")


def _name(cell: Cell, varying: Sequence[str], strategy: bool = True) -> str:
    """The program if it varies, the strategy, and the other words."""
    words = [_WORDS[axis](cell) for axis in varying]
    programs = [words.pop(0)] if "program" in varying else []
    return " ".join(word for word in [*programs, cell.strategy * strategy, *words] if word)
