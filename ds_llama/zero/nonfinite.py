"""Which parameter is the first that is no number any more, by the order of the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ds_llama.zero import world
from ds_llama.zero.pieces import WEIGHT, Piece, gradients, pieces


def first(engine: Any) -> str | None:
    """ "the weight of NAME (rank R)" or "the gradient of NAME (rank R)"; None if all are finite.

    Weights come first: one that is not finite spoils every gradient. The rank is the lowest that
    holds such an element: after the gradients have been averaged it is not told any more whose
    data it came from. To be asked where `pieces.gradients` can be; every element is read, so not at
    every step. Collective: all ranks get the same answer.
    """
    return first_weight(engine) or _first(engine, "gradient", gradients(engine))


def first_weight(engine: Any) -> str | None:
    """`first` among the weights alone, which can be asked at any time."""
    return _first(engine, "weight", (piece for piece in pieces(engine) if piece.kind == WEIGHT))


def _first(engine: Any, what: str, held: Iterable[Piece]) -> str | None:
    names = [name for name, _ in engine.module.named_parameters()]
    size, none = world.world_size(), len(names) * world.world_size()
    broken = next((p.name for p in held if not bool(torch.isfinite(p.flat).all())), None)
    code = none if broken is None else names.index(broken) * size + world.rank()
    lowest = torch.tensor(code, dtype=torch.int64, device=world.device())
    torch.distributed.all_reduce(lowest, op=torch.distributed.ReduceOp.MIN)
    number, rank = divmod(int(lowest), size)
    return None if int(lowest) == none else f"the {what} of {names[number]} (rank {rank})"
