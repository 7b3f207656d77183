"""Whether what every rank has a copy of is the same on all of them.

stage   copies
0       weights (which are the masters), moments
1, 2    weights; each rank's own part of them is also its fp32 masters, rounded
3       the weights that stay gathered; each rank's slices are its fp32 masters, rounded

Beside them the numbers that an update depends on: learning rates, counters, the loss scale. Ranks
exchange 24 bytes, and the rest only where these differ: the price is one pass over the weights.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from ds_llama.errors import RunError
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.fingerprint import fingerprint
from ds_llama.zero.pieces import MASTER, WEIGHT, Piece, pieces

_SHOWN = 3


def check(engine: Any, where: str, **numbers: object) -> None:
    """Raise RunError, on every rank, that names the ranks and what differs on them; collective.

    To be called between the last backward of a window and its update (`engine.before_update`),
    when the weights are those that the window was computed with: stages 1 and 2 write all of them
    anew in an update. `numbers` are compared too; a NaN is equal to a NaN.
    """
    copies, astray = _copies(engine), _astray(engine)
    copies |= {name: repr(value) for name, value in (_numbers(engine) | numbers).items()}
    if _all_equal(copies, astray):
        return
    found: list[Any] = [None] * world.world_size()
    torch.distributed.all_gather_object(found, (copies, astray))
    raise RunError(
        "the ranks have come apart: " + "; ".join(_sentences(found)),
        where=where,
        remedy="nothing was updated from this: resume from the last checkpoint, and if it is the "
        "same rank again, look for a fault in its memory, device or link",
    )


def _copies(engine: Any) -> dict[str, str]:
    return {
        f"{piece.name} ({piece.kind})": f"{fingerprint(piece.flat, piece.start):016x}"
        for piece in pieces(engine)
        if piece.replicated
    }


def _numbers(engine: Any) -> dict[str, object]:
    rates = [group["lr"] for group in engine.optimizer.param_groups]
    return {
        "learning rate": rates,
        "optimizer step": engines.adam_step(engine),
        "loss scale": engines.loss_scale(engine),
        "count of micro-batches": engine.micro_steps,
        "count of updates": engine.global_steps,
        "count of skipped updates": engine.skipped_steps,
    }


def _astray(engine: Any) -> list[str]:
    """This rank's parameters whose weights are not its fp32 masters of them, rounded."""
    if engine.zenflow or engine.super_offload():
        return []  # their masters are updated beside the forward pass
    held: dict[str, list[Piece]] = defaultdict(list)
    for piece in pieces(engine):
        if piece.kind in (WEIGHT, MASTER):
            held[piece.name].append(piece)
    return [name for name, found in held.items() if not _agree(found)]


def _agree(found: list[Piece]) -> bool:
    masters = [piece for piece in found if piece.kind == MASTER]
    weights = [piece for piece in found if piece.kind == WEIGHT]
    for master in masters:
        for weight in weights:
            part = weight.flat.narrow(0, master.start - weight.start, master.flat.numel())
            rounded = master.flat.to(part.dtype).to(part.device)
            if not bool(((part == rounded) | (part.isnan() & rounded.isnan())).all()):
                return False
    return True


def _all_equal(copies: Mapping[str, str], astray: list[str]) -> bool:
    digest = hashlib.sha256(repr(sorted(copies.items())).encode()).digest()[:7]
    mine = torch.tensor(
        [int.from_bytes(digest, "big"), -int.from_bytes(digest, "big"), len(astray)],
        device=world.device(),
    )
    torch.distributed.all_reduce(mine, op=torch.distributed.ReduceOp.MAX)
    largest, negated_smallest, somewhere = mine.tolist()
    return largest == -negated_smallest and somewhere == 0


def _sentences(found: list[tuple[dict[str, str], list[str]]]) -> list[str]:
    """What is wrong, a clause for each parameter or number.

    A rank that differs from more than half of the ranks is the one that is wrong; of two ranks
    nobody can tell, unless one of them disowns its part by its own masters.
    """
    disowned = {name for _, astray in found for name in astray}
    clauses = [
        f"on rank {rank} the weights of {name} are not those of its fp32 masters"
        for rank, (_, astray) in enumerate(found)
        for name in astray
    ]
    for key in sorted(set().union(*(copies for copies, _ in found))):
        values = [copies.get(key, "nothing") for copies, _ in found]
        if len(set(values)) > 1 and key.removesuffix(f" ({WEIGHT})") not in disowned:
            clauses.append(_who(key, values))
    more = len(clauses) - _SHOWN
    return clauses[:_SHOWN] + ([f"and {more} more"] if more > 0 else [])


def _who(key: str, values: list[str]) -> str:
    usual = max(values, key=values.count)
    if 2 * values.count(usual) <= len(values):
        return f"ranks {', '.join(map(str, range(len(values))))} do not have the same {key}"
    others = ", ".join(str(rank) for rank, value in enumerate(values) if value != usual)
    return f"rank {others} has another {key} than the rest"
