"""All rows of a selftest, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from ds_llama.selftest.cells import Cell
from ds_llama.selftest.outcome import BEYOND, ERROR, NOT_RUN, OK, Outcome, row


@dataclass(frozen=True)
class Worst:
    """The largest difference over its limit: in which cell, of what."""

    ratio: float
    cell: str
    quantity: str


@dataclass(frozen=True)
class Report:
    """`about` has world size, device and versions; `sabotage` is what was broken, if anything."""

    rows: Sequence[tuple[Cell, Outcome]]
    about: dict[str, Any]
    sabotage: str | None = None

    def count(self, *verdicts: str) -> int:
        return sum(outcome.verdict in verdicts for _, outcome in self.rows)

    @property
    def passed(self) -> bool:
        """Whether nothing that ran is beyond its limits or failed."""
        return not self.count(BEYOND, ERROR)

    @property
    def worst(self) -> Worst | None:
        """None where nothing was compared; a nan is worse than any number."""
        found = [
            Worst(ratio if ratio == ratio else inf, cell.name, quantity)
            for cell, outcome in self.rows
            if outcome.gaps is not None
            for quantity, ratio in outcome.gaps.ratios(cell.limits).items()
        ]
        return max(found, key=lambda worst: worst.ratio, default=None)

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.about,
            "sabotage": self.sabotage,
            "passed": self.passed,
            "summary": self.sentence(),
            "cells": [row(cell, outcome) for cell, outcome in self.rows],
        }

    def sentence(self) -> str:
        """How many cells ran, the largest difference over its limit, the verdict."""
        total, ran, errors = len(self.rows), self.count(OK, BEYOND), self.count(ERROR)
        beyond, worst = self.count(BEYOND), self.worst
        parts = [f"{ran} of {_cells(total)} ran to the end"]
        if worst is not None:
            parts.append(
                f"the largest difference is {worst.ratio:.2g} of its limit "
                f"({worst.quantity.replace('_', ' ')} of {worst.cell})"
            )
            parts.append(f"{_cells(beyond)} beyond" if beyond else "every cell is within")
        if errors:
            parts.append(f"{_cells(errors)} failed")
        return ", ".join(parts[:2]) + "".join(f"; {part}" for part in parts[2:]) + "."

    def reasons(self) -> dict[str, list[str]]:
        """Why cells were not run, or failed; the cells of each reason."""
        found: dict[str, list[str]] = {}
        for cell, outcome in self.rows:
            if outcome.verdict in (NOT_RUN, ERROR):
                reason = f"{outcome.verdict}: {outcome.reason}"
                found.setdefault(reason, []).append(cell.name)
        return found


def _cells(number: int) -> str:
    return f"{number} cell{'s' * (number != 1)}"
