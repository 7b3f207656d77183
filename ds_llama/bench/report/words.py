"""Numbers and lists as a report writes them."""

from __future__ import annotations

from collections.abc import Sequence

_RATES = (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6))
NOT_MEASURED = "not measured"


def percent(share: float) -> str:
    """ "57%"; below a tenth two digits: "4.1%", "0.41%"."""
    return f"{share * 100:.2g}%" if abs(share) < 0.1 else f"{share:.0%}"


def signed(change: float | None) -> str:
    """A relative change, with its sign: "+3.1%", "-12%"; "0" for none at all."""
    if change is None:
        return NOT_MEASURED
    if change != change:
        return "NaN"
    if change == 0:
        return "0"
    digits = f"{change * 100:+.2g}" if abs(change) < 0.1 else f"{change * 100:+.0f}"
    return f"{digits}%" if "e" not in digits else "under 0.0001%"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; of more than four three are named."""
    if len(names) > 4:
        return f"{', '.join(names[:3])} and {len(names) - 3} others"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def counted(number: int, one: str, several: str | None = None) -> str:
    """ "1 cell", "3 cells"."""
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def rate(flops: float) -> str:
    """ "44 GFLOP/s", "989 TFLOP/s"."""
    name, size = next((each for each in _RATES if flops >= each[1]), _RATES[-1])
    return f"{flops / size:.3g} {name}FLOP/s"
