"""Batch sizes that no world size can bring together, or not this one."""

from __future__ import annotations

from collections.abc import Iterator

from ds_llama.config.batch import nearest, solve
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
    """`8 = 2 micro x 4 ranks`, or with one part open, `8 = 2 micro x 4 (on 1 or 2 or 4 ranks)`."""
    named = " x ".join(f"{int(value)} {_SHORT[key]}" for key, value in parts.items())
    rest = size // unit
    if len(parts) == 2:
        return f"{size} = {named} x {rest} rank{'s' * (rest != 1)}"
    worlds = [str(ranks) for ranks in range(1, min(rest, 1024) + 1) if rest % ranks == 0]
    shown = " or ".join(worlds) if len(worlds) <= 6 else f"{', '.join(worlds[:5])} …"
    return f"{size} = {named} x {rest} (on {shown} rank{'s' * (rest != 1)})"


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _sizes(context: Context) -> tuple[int | None, int | None, int | None]:
    total, micro, steps = (_whole(context.get(key)) for key in BATCH_KEYS)
    return total, micro, steps


def world(context: Context) -> Iterator[Problem]:
    """runtime/config.py `_batch_assertion`; a run's batch is solved by `resolve`."""
    total, micro, steps = _sizes(context)
    if context.world_size is None or context.run is not None or total is None:
        return
    ranks = _ranks(context)
    if ranks is None or solve(total, micro, steps, ranks) is not None:
        return
    sizes = zip(BATCH_KEYS, (total, micro, steps), strict=True)
    given = [f"{key} ({size})" for key, size in sizes if size is not None]
    choices = nearest(total, micro, steps, ranks)
    yield Problem(
        "batch-world",
        "error",
        BATCH_KEYS[0],
        f"{' and '.join(given)} do not fit together on {ranks} data-parallel ranks",
        "take " + ", or ".join(choice.says(ranks) for choice in choices),
    )


def _ranks(context: Context) -> int | None:
    """Ranks that see different data; None where the world does not divide."""
    sharing = max(1, int(context.get("tensor_parallel.autotp_size", 1)))
    sharing *= int(context.get("sequence_parallel_size", 1))
    world = context.world_size
    return None if world is None or world % sharing else world // sharing


def one_world(context: Context) -> Iterator[Problem]:
    """The three together say how many ranks there must be."""
    total, micro, steps = _sizes(context)
    known = context.world_size is not None or context.run is not None
    if known or total is None or micro is None or total % (micro * (steps or 1)):
        return
    ranks = total // (micro * (steps or 1))
    if steps is not None or ranks == 1:
        given = "the three sizes" if steps is not None else " and ".join(BATCH_KEYS[:2])
        yield Problem(
            "batch-one-world",
            "warning",
            BATCH_KEYS[0],
            f"{given} together hold on {ranks} data-parallel rank{'s' * (ranks != 1)} only: "
            f"{total} = {micro} micro x {steps or 1} accumulation x {ranks}",
            f"leave {BATCH_KEYS[0]} out to train on any number, or check with --world-size",
        )


def missing(context: Context) -> Iterator[Problem]:
    """runtime/config.py `_set_batch_related_parameters` asserts one of the first two."""
    alone = BATCH_KEYS[2] in context.deepspeed and not set(BATCH_KEYS) & context.broken
    given = set(BATCH_KEYS[:2]) & context.deepspeed.keys()
    if context.dialect == "deepspeed" and alone and not given:
        yield Problem(
            "batch-missing",
            "warning",
            BATCH_KEYS[2],
            f"{BATCH_KEYS[2]} alone is no batch: DeepSpeed stops unless the script adds one of "
            f"{BATCH_KEYS[0]} and {BATCH_KEYS[1]}",
            f"write {BATCH_KEYS[1]}",
        )
