"""Two folders: what changed in each cell, and how sure that is.

A launch is what can be repeated, not a step: a process keeps its memory layout, its threads and
its neighbours as long as it lives. So the noise is that of launches' medians, of their logarithms.
With the two or three launches that a cell has, its own standard deviation says little; it is pooled
over all cells of both folders, and a cell whose own is larger is judged by its own. The intervals
are Student's, and hold for all cells together at 95% (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, fsum, log, sqrt
from typing import Any

from ds_llama.bench.report.folder import Folder
from ds_llama.bench.report.groups import full_name
from ds_llama.bench.report.row import Cell, Measured
from ds_llama.bench.report.student import quantile

CONFIDENCE = 0.95
FASTER, SLOWER, SAME, UNSURE = "faster", "slower", "no difference seen", "too few launches"


@dataclass(frozen=True)
class Noise:
    """Standard deviation of the logarithm of a launch's median, pooled; its degrees of freedom."""

    deviation: float
    df: int


@dataclass(frozen=True)
class Change:
    """From the earlier row to the later one, relative: 0.05 is 5% more tokens a second.

    low, high: the interval; None where either side has a single launch. peak_flops: of the
    machine's own product of matrices, which no cell can change. memory: of the device's peak.
    """

    key: str
    name: str
    speed: float
    low: float | None
    high: float | None
    launches: tuple[int, int]
    memory: float | None
    peak_flops: float | None

    @property
    def verdict(self) -> str:
        if self.low is None or self.high is None:
            return UNSURE
        if self.low <= 0 <= self.high:
            return SAME
        return FASTER if self.speed > 0 else SLOWER


@dataclass(frozen=True)
class Comparison:
    """`lost`: measured before, and no longer (name, why); `only_*`: cells that one folder has."""

    other: str
    changes: tuple[Change, ...]
    noise: Noise | None
    lost: tuple[tuple[str, str], ...]
    gained: tuple[str, ...]
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]

    def failures(self, limit: float) -> list[str]:
        """What is worse than `limit` allows: slower beyond it and beyond the noise, more memory
        than it, or no longer measured."""
        said = []
        for change in self.changes:
            if change.verdict == SLOWER and change.speed < -limit:
                said.append(f"{change.name}: {-change.speed:.1%} slower")
            if change.memory is not None and change.memory > limit:
                said.append(f"{change.name}: {change.memory:.1%} more memory")
        return said + [f"{name}: {why}" for name, why in self.lost]

    def to_dict(self) -> dict[str, Any]:
        changes = [{**asdict(change), "verdict": change.verdict} for change in self.changes]
        return {**asdict(self), "changes": changes}


def compare(here: Folder, there: Folder) -> Comparison:
    """What changed from the rows of `there` to those of `here`, by cell."""
    now, before = ({cell.key: cell for cell in each.cells} for each in (here, there))
    both = [(before[key], now[key]) for key in now if key in before]
    pairs = [(old, new) for old, new in both if old.measured and new.measured]
    pooled = noise([cell.measured for pair in pairs for cell in pair if cell.measured])
    judged = sum(min(_launches(old), _launches(new)) > 1 for old, new in pairs)
    return Comparison(
        there.name,
        tuple(_change(old, new, pooled, judged) for old, new in pairs),
        pooled,
        tuple((full_name(n), _why(n)) for o, n in both if o.measured and not n.measured),
        tuple(full_name(new) for old, new in both if new.measured and not old.measured),
        tuple(full_name(cell) for key, cell in now.items() if key not in before),
        tuple(full_name(cell) for key, cell in before.items() if key not in now),
    )


def noise(cells: Sequence[Measured]) -> Noise | None:
    """Pooled over cells with several launches; None where there are none."""
    df = sum(len(cell.step_s.medians) - 1 for cell in cells)
    if not df:
        return None
    return Noise(sqrt(fsum(_squares(cell) for cell in cells) / df), df)


def _change(old: Cell, new: Cell, pooled: Noise | None, judged: int) -> Change:
    before, after = old.measured, new.measured
    assert before is not None
    assert after is not None
    change = _log_speed(after) - _log_speed(before)
    launches = _launches(old), _launches(new)
    width = None
    if pooled is not None and min(launches) > 1:
        own = sqrt((_squares(before) + _squares(after)) / (sum(launches) - 2))
        beyond = (1 - CONFIDENCE) / judged
        error = max(own, pooled.deviation) * sqrt(1 / launches[0] + 1 / launches[1])
        width = error * quantile(beyond, pooled.df)
    peaks = [each.peak_flops.measured if each.peak_flops else None for each in (before, after)]
    return Change(
        new.key,
        full_name(new),
        exp(change) - 1,
        None if width is None else exp(change - width) - 1,
        None if width is None else exp(min(change + width, 700)) - 1,
        launches,
        _ratio(before.memory_bytes, after.memory_bytes),
        _ratio(*peaks),
    )


def _log_speed(measured: Measured) -> float:
    medians = measured.step_s.medians
    return log(measured.tokens_per_step) - fsum(map(log, medians)) / len(medians)


def _squares(measured: Measured) -> float:
    """Sum of squared deviations of the logarithms of its launches' medians."""
    logs = [log(median) for median in measured.step_s.medians]
    middle = fsum(logs) / len(logs)
    return fsum((each - middle) ** 2 for each in logs)


def _launches(cell: Cell) -> int:
    return len(cell.measured.step_s.medians) if cell.measured else 0


def _ratio(before: float | None, after: float | None) -> float | None:
    return None if not before or after is None else after / before - 1


def _why(cell: Cell) -> str:
    return f"no longer measured ({cell.status}: {cell.reason})"
