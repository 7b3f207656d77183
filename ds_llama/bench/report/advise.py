"""Which cell of a group to take: the fastest, the cheapest, and what lies between them.

Two cells are as fast as each other where their ranges overlap: from the slowest launch to the
fastest one, and for a single launch from its steps' 10th to 90th percentile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds_llama.bench.report.groups import Group
from ds_llama.bench.report.row import OURS, Cell, Measured
from ds_llama.bench.report.words import listed
from ds_llama.units import format_bytes

_WORTH = 0.01  # of the memory: what holds less than that less is not worth another word


@dataclass(frozen=True)
class Speed:
    """Tokens a second: the median, and the range in which another cell is as fast."""

    tokens_per_s: float
    low: float
    high: float

    def ties(self, other: Speed) -> bool:
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Advice:
    """`take`: of `fastest`, all as fast as the fastest within the noise, what holds least.

    cheapest: holds least of all. frontier: those that no other beats in both, by memory.
    wrong: cells left out since their losses or norms are not the reference's.
    """

    take: Cell | None
    fastest: tuple[Cell, ...] = ()
    cheapest: Cell | None = None
    frontier: tuple[Cell, ...] = ()
    wrong: tuple[Cell, ...] = ()


def speed(measured: Measured) -> Speed:
    """How fast, and within which range."""
    step, tokens = measured.step_s, measured.tokens_per_step
    slow, fast = max(step.medians), min(step.medians)
    if len(step.medians) == 1:
        slow, fast = step.p90, step.p10
    return Speed(measured.tokens_per_s, tokens / slow, tokens / fast)


def advise(group: Group) -> Advice:
    """What to take of a group's cells: of this package's own where there are any."""
    own = [cell for cell in group.cells if cell.program == OURS] or list(group.cells)
    wrong = [cell for cell in own if (gap := group.parity(cell)) is not None and gap.beyond]
    right = [cell for cell in own if cell not in wrong]
    if not right:
        return Advice(None, wrong=tuple(wrong))
    speeds = {cell.key: speed(group.measured(cell)) for cell in right}
    first = max(right, key=lambda cell: speeds[cell.key].tokens_per_s)
    fastest = [cell for cell in right if speeds[cell.key].ties(speeds[first.key])]
    fastest.sort(key=lambda cell: -speeds[cell.key].tokens_per_s)
    weighed = [cell for cell in right if _bytes(cell) is not None]
    front = frontier(weighed)
    return Advice(
        min(fastest, key=lambda cell: (_held(cell), -speeds[cell.key].tokens_per_s)),
        tuple(fastest),
        front[0] if front else None,
        tuple(front),
        tuple(wrong),
    )


def frontier(cells: Sequence[Cell]) -> list[Cell]:
    """Those that no other is as fast as with less memory; the one that holds least comes first."""
    found, best = list[Cell](), 0.0
    for cell in sorted(cells, key=lambda cell: (_held(cell), -_tokens(cell))):
        if _tokens(cell) > best:
            found.append(cell)
            best = _tokens(cell)
    return found


def sentences(group: Group, advice: Advice) -> list[str]:
    """What to take and why, each sentence with its numbers."""
    take = advice.take
    if take is None:
        return [*_left_out(group, advice), "No cell can be recommended."]
    said, peers = [_taken(group, advice, take)], _has_peers(group, take)
    rivals = sum(_same_kind(cell, take) for cell in group.cells) > 1
    if (cheapest := advice.cheapest) is not None and rivals:
        much = _held(cheapest) < (1 - _WORTH) * _held(take)
        least = f"None of the others {'of its kind ' * peers}holds less."
        said.append(_cheaper(group, take, cheapest) if much else least)
    return [*said, *_peers(group, take), *_left_out(group, advice)]


def _taken(group: Group, advice: Advice, take: Cell) -> str:
    name, mine = group.name(take), speed(group.measured(take))
    held = "" if _bytes(take) is None else f" with {format_bytes(_held(take))} at the peak"
    if len(group.cells) == 1:
        return f"{name} is the only cell measured: {_rate(mine)}{held}."
    peers = _has_peers(group, take)
    if peers and sum(_same_kind(cell, take) for cell in group.cells) == 1:
        return f"{name}: {_rate(mine)}{held}."
    if len(advice.fastest) == 1:
        following = [
            speed(group.measured(cell)).tokens_per_s
            for cell in group.cells
            if cell is not take and cell not in advice.wrong and _same_kind(cell, take)
        ]
        lead = f", {mine.tokens_per_s / max(following):.2f} x the next" if following else ""
        lead += "," if lead and held else ""
        of = " of this package's own" if peers else ""
        return f"Take {name}: the fastest{of} at {_rate(mine)}{lead}{held}."
    others = [group.name(cell) for cell in advice.fastest if cell is not take]
    least = "" if _bytes(take) is None else ", and holds least of them"
    return (
        f"Take {name}: {_rate(mine)}{held}; within the spread as fast as {listed(others)}{least}."
    )


def _cheaper(group: Group, take: Cell, cheapest: Cell) -> str:
    saved, share = 1 - _held(cheapest) / _held(take), _tokens(cheapest) / _tokens(take)
    return (
        f"If that does not fit, {group.name(cheapest)} holds least: "
        f"{format_bytes(_held(cheapest))} ({saved:.0%} less), at {share:.2f} x the speed: "
        f"{_rate(speed(group.measured(cheapest)))}."
    )


def _peers(group: Group, take: Cell) -> list[str]:
    """How the other programs' cells stand beside what is taken, the fastest first."""
    said = []
    for cell in sorted(group.cells, key=lambda cell: -_tokens(cell)):
        if _same_kind(cell, take):
            continue
        beside = f"{group.name(cell)} {_tokens(cell) / _tokens(take):.2f} x the speed"
        if _bytes(cell) is not None and _bytes(take):
            beside += f" and {_held(cell) / _held(take):.2f} x the memory"
        gap = group.parity(cell)
        beside += f" ({listed(gap.beyond)} not the reference's)" if gap and gap.beyond else ""
        said.append(beside)
    return [f"Beside it: {'; '.join(said)}."] if said else []


def _left_out(group: Group, advice: Advice) -> list[str]:
    """The cells that train something else, once for each kind of difference."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for cell in advice.wrong:
        gap = group.parity(cell)
        assert gap is not None
        kinds.setdefault(gap.beyond, []).append(group.name(cell))
    assert group.reference is not None
    wanted = f"that of the reference, {group.name(group.reference)}"
    return [
        f"Left out: {listed(names)}, whose {listed(what)} is not {wanted}."
        for what, names in kinds.items()
    ]


def _rate(found: Speed) -> str:
    return f"{found.tokens_per_s:,.0f} tokens/s ({found.low:,.0f} to {found.high:,.0f})"


def _has_peers(group: Group, take: Cell) -> bool:
    return not all(_same_kind(cell, take) for cell in group.cells)


def _same_kind(cell: Cell, other: Cell) -> bool:
    return (cell.program == OURS) == (other.program == OURS)


def _bytes(cell: Cell) -> int | None:
    return cell.measured.memory_bytes if cell.measured else None


def _held(cell: Cell) -> float:
    found = _bytes(cell)
    return float("inf") if found is None else found


def _tokens(cell: Cell) -> float:
    return cell.measured.tokens_per_s if cell.measured else 0.0
