"""What a cell came to, and what the ranks' outcomes together mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite, nan
from typing import Any

from ds_llama.selftest.cells import Cell, Limits

OK, BEYOND, NOT_RUN, ERROR = "ok", "beyond", "not run", "error"
_WORST_FIRST = (ERROR, BEYOND, OK, NOT_RUN)


@dataclass
class Gaps:
    """Largest differences from the reference, in the units of `Limits`."""

    loss: float = 0.0
    grad_norm: float = 0.0
    clip_coef: float = 0.0
    parameters: float = 0.0

    def see(self, other: Gaps) -> None:
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            # not max(): it drops a nan or keeps it, by the order of its arguments
            setattr(self, field.name, mine if mine >= theirs or mine != mine else theirs)

    def ratios(self, limits: Limits) -> dict[str, float]:
        """Each difference over its limit."""
        allowed = limits.to_dict()
        return {name: gap / allowed[name] for name, gap in asdict(self).items()}

    def within(self, limits: Limits) -> bool:
        return all(ratio <= 1 for ratio in self.ratios(limits).values())

    def to_dict(self) -> dict[str, float | None]:
        """JSON has no nan and no infinity: null for those."""
        return {name: gap if isfinite(gap) else None for name, gap in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, float | None]) -> Gaps:
        return cls(**{name: nan if gap is None else gap for name, gap in values.items()})


@dataclass(frozen=True)
class Outcome:
    """`gaps` is None where nothing was compared; `reason` then says why."""

    verdict: str
    gaps: Gaps | None = None
    reason: str | None = None
    seconds: float = 0.0

    @classmethod
    def judge(cls, gaps: Gaps, limits: Limits, seconds: float) -> Outcome:
        return cls(OK if gaps.within(limits) else BEYOND, gaps, None, seconds)

    def to_dict(self) -> dict[str, Any]:
        gaps = None if self.gaps is None else self.gaps.to_dict()
        return {
            "verdict": self.verdict,
            "gaps": gaps,
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Outcome:
        gaps = values["gaps"]
        return cls(
            values["verdict"],
            None if gaps is None else Gaps.from_dict(gaps),
            values["reason"],
            values["seconds"],
        )


def merge(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of all ranks': the worst verdict, the largest differences, the longest time."""
    worst = min(outcomes, key=lambda outcome: _WORST_FIRST.index(outcome.verdict))
    gaps = None
    if worst.verdict in (OK, BEYOND):
        gaps = Gaps()
        for outcome in outcomes:
            gaps.see(outcome.gaps or Gaps())
    return Outcome(worst.verdict, gaps, worst.reason, max(o.seconds for o in outcomes))


def row(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    """One row of the report: the cell, the outcome, the limits."""
    return {**cell.to_dict(), **outcome.to_dict(), "limits": cell.limits.to_dict()}
