"""How much of a collective's payload crosses every rank's link: what turns one rate into another.

After nccl-tests (doc/PERFORMANCE.md): algorithm bandwidth is payload over time; bus bandwidth is
that times the factor below, which makes it comparable with what one link can do, whatever the
collective and the number of ranks N. The factors are those of a ring, whose ranks all send and
receive at a time:

    all_reduce                               2 (N - 1) / N
    all_gather, reduce_scatter, all_to_all     (N - 1) / N
    broadcast, reduce, send_recv             1

No torch here.
"""

from __future__ import annotations

# Payloads as `measure.traffic` counts them, and nccl-tests: of what is spread, the whole of it.
_SPREAD = frozenset(("all_gather", "reduce_scatter", "all_to_all"))
_WHOLE = frozenset(("broadcast", "reduce", "send_recv"))


def factor(kind: str, ranks: int) -> float:
    """Bytes over each rank's link, one way, for a byte of payload. Raises KeyError."""
    if kind == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if kind in _SPREAD:
        return (ranks - 1) / ranks
    if kind in _WHOLE:
        return 1.0
    raise KeyError(kind)
