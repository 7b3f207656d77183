"""Batch sizes that no world size can bring together."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.deepspeed import BATCH_KEYS
from ds_llama.config.problems import Problem
from ds_llama.config.rules import Context

_SHORT = {BATCH_KEYS[1]: "micro", BATCH_KEYS[2]: "accumulation"}


def product(context: Context) -> Iterator[Problem]:
    """train_batch_size must be a multiple of what is given of the other two."""
    total = context.get(BATCH_KEYS[0])
    parts = {key: context.get(key) for key in BATCH_KEYS[1:] if context.get(key) is not None}
    if total is None or not parts:
        return
    total, unit = int(total), 1
    for value in parts.values():
        unit *= int(value)
    if total % unit:
        product = " x ".join(f"{key} ({int(value)})" for key, value in parts.items())
        below, above = total // unit * unit, (total // unit + 1) * unit
        choices = [size for size in (below, above) if size > 0]
        remedy = " or ".join(_triple(size, parts, unit) for size in choices)
        yield Problem(
            "batch-product",
            "error",
            BATCH_KEYS[0],
            f"train_batch_size ({total}) is not a multiple of {product}",
            f"take {remedy}",
        )


def _triple(size: int, parts: dict[str, int], unit: int) -> str:
    named = " x ".join(f"{int(value)} {_SHORT[key]}" for key, value in parts.items())
    rest = "ranks" if len(parts) == 2 else "ranks and the rest"
    return f"{size} = {named} x {size // unit} {rest}"
