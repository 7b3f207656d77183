"""Ranks that fail together: an error on one of them is raised on all, and none waits for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from ds_llama.commit import disk
from ds_llama.errors import CheckpointError, DsLlamaError
from ds_llama.zero import world

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """Every rank's `value`, in the order of ranks, on every rank. Values are pickled."""
    if world.world_size() == 1:
        return [value]
    values: list[Any] = [None] * world.world_size()
    dist.all_gather_object(values, value)
    return values


def together(doing: str, where: object, action: Callable[[], T], *, only: int | None = None) -> T:
    """Run `action` on every rank, or on rank `only`, whose result every rank then gets.

    Raises on all ranks what the first rank that failed has met: a DsLlamaError as it is, anything
    else as a CheckpointError that says what was being done and on which rank.
    """
    result: T | None = None
    problem: DsLlamaError | None = None
    if only is None or only == world.rank():
        try:
            result = action()
        except Exception as error:
            problem = explained(error, doing, where)
    outcomes = gather((problem, result if only is not None else None))
    first = next((problem for problem, _ in outcomes if problem is not None), None)
    if first is not None:
        raise first
    return result if only is None else outcomes[only][1]  # type: ignore[return-value]


def explained(error: Exception, doing: str, where: object) -> DsLlamaError:
    """`error` as this package's own, so that it can be sent to the other ranks."""
    if isinstance(error, DsLlamaError):
        return error
    if isinstance(error, OSError):
        return disk.failure(error, doing, str(where), rank=world.rank())
    return CheckpointError(
        f"{doing} failed on rank {world.rank()}: {type(error).__name__}: {error}",
        where=str(where),
        remedy="nothing that was committed before is harmed; if the message does not help, "
        "export the checkpoint and start from its weights",
    )
