"""Batch arithmetic: global batch = micro batch x accumulation steps x data-parallel ranks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """One consistent choice. Sizes are in sequences."""

    global_size: int
    micro_size: int
    accumulation_steps: int

    def says(self, ranks: int) -> str:
        """`train_batch_size 24 = 2 micro x 3 accumulation x 4 ranks`."""
        return (
            f"train_batch_size {self.global_size} = {self.micro_size} micro x "
            f"{self.accumulation_steps} accumulation x {ranks} ranks"
        )


def solve(
    global_size: int | None, micro_size: int | None, accumulation_steps: int | None, ranks: int
) -> Batch | None:
    """The batch that the given values determine; None when no batch has them all.

    DeepSpeed's own completion (runtime/config.py `_set_batch_related_parameters`), except that it
    rounds down where the values do not divide and stops later at a product that nobody wrote. One
    value alone means one accumulation step; none at all means a micro batch of one.
    """
    if global_size is None:
        micro, steps = micro_size or 1, accumulation_steps or 1
        return Batch(micro * steps * ranks, micro, steps)
    if micro_size is None:
        steps = accumulation_steps or 1
        micro_size = global_size // (steps * ranks)
    elif accumulation_steps is None:
        steps = global_size // (micro_size * ranks)
    else:
        steps = accumulation_steps
    fits = micro_size > 0 and steps > 0 and micro_size * steps * ranks == global_size
    return Batch(global_size, micro_size, steps) if fits else None


def nearest(
    global_size: int,
    micro_size: int | None,
    accumulation_steps: int | None,
    ranks: int,
    count: int = 3,
) -> list[Batch]:
    """Up to `count` consistent choices: those that change the fewest given values, by the least."""
    given = (global_size, micro_size, accumulation_steps)
    found = set[Batch]()
    for micro in _candidates(global_size, micro_size, ranks):
        for steps in _candidates(global_size, accumulation_steps, ranks):
            found.add(Batch(micro * steps * ranks, micro, steps))
        for total in (global_size // (micro * ranks), -(-global_size // (micro * ranks))):
            if (accumulation_steps is None and total > 0) or total > 0:
                found.add(Batch(micro * total * ranks, micro, total))
    return sorted(found, key=lambda batch: _distance(batch, given))[:count]


def _candidates(global_size: int, value: int | None, ranks: int) -> list[int]:
    """The value itself, and those around what the global batch leaves per rank."""
    per_rank = max(1, global_size // ranks)
    if value is None:
        return sorted({1, per_rank, -(-global_size // ranks)})
    divisors = [d for d in range(1, min(per_rank, 4096) + 1) if per_rank % d == 0]
    divisors += [per_rank // d for d in divisors]
    below = max((d for d in divisors if d <= value), default=1)
    above = min((d for d in divisors if d >= value), default=value)
    return sorted({value, below, above})


def _distance(batch: Batch, given: tuple[int, int | None, int | None]) -> tuple[float, ...]:
    chosen = (batch.global_size, batch.micro_size, batch.accumulation_steps)
    pairs = [(a, b) for a, b in zip(chosen, given, strict=True) if b is not None]
    changed = sum(a != b for a, b in pairs)
    by = sum(max(a, b) / min(a, b) - 1 for a, b in pairs)
    return (changed, by, *chosen)
