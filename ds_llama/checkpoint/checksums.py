"""Checksums of everything that a checkpoint holds per parameter, equal at any stage and world size.

    {"parameters": {name: {"weight": "hex", "master": "hex", "exp_avg": "hex", …}},
     "ranks": ["hex", …]}

`parameters` is the same however the tensors are divided among ranks; `ranks` is a digest of what
each rank holds, which says where a difference is as long as the division is the same.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import torch

from ds_llama.checkpoint import ranks
from ds_llama.errors import CheckpointError
from ds_llama.zero import world
from ds_llama.zero.fingerprint import MODULUS, fingerprint
from ds_llama.zero.pieces import pieces

Sums = dict[tuple[str, str], int]


def compute(engine: Any) -> dict[str, Any]:
    """Checksums of an engine's weights, masters and moments; collective."""
    return _compute(engine)[0]


def check(engine: Any, saved: dict[str, Any], where: str) -> None:
    """Raise CheckpointError, on every rank, unless the engine holds what was saved; collective.

    saved: `compute`'s result of the engine that was saved.
    """
    now, copies = _compute(engine)
    expected, held = _with_masters(saved["parameters"]), _with_masters(now["parameters"])
    wrong = [
        f"{name} ({kind})"
        for name in sorted({*expected, *held})
        for kind in sorted({*expected.get(name, {}), *held.get(name, {})})
        if expected.get(name, {}).get(kind) != held.get(name, {}).get(kind)
    ]
    astray = [
        f"{name} ({kind}) on rank {world.rank()}"
        for (name, kind), value in copies.items()
        if expected.get(name, {}).get(kind) != f"{value:016x}"
    ]
    wrong += [text for found in ranks.gather(astray) for text in found]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        who = _differing_ranks(saved["ranks"], now["ranks"])
        raise CheckpointError(
            f"what was loaded differs from what was saved: {', '.join(wrong[:3])}{more}{who}",
            where=where,
            remedy="do not train on from this: resume from another checkpoint, report the defect",
        )


def _with_masters(found: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """At stage 0, where all is fp32, the weights are the masters."""
    return {
        name: {"master": kinds["weight"], **kinds} if "weight" in kinds else kinds
        for name, kinds in found.items()
    }


def _differing_ranks(saved: list[str], now: list[str]) -> str:
    if len(saved) != len(now):
        return ""
    pairs = zip(saved, now, strict=True)
    who = [str(rank) for rank, (then, here) in enumerate(pairs) if then != here]
    return f"; on rank {', '.join(who)}"


def _compute(engine: Any) -> tuple[dict[str, Any], Sums]:
    """`compute`'s result, and this rank's sums over copies that every rank has."""
    parted, copies, digest = ranks.together("checksums", "engine", lambda: _local(engine))
    total = _add_up(parted)
    # Copies count once, rank 0's; at stage 3 a gathered weight's slices were added up already.
    total = ranks.gather({**copies, **total} if world.rank() == 0 else {})[0]
    parameters: dict[str, dict[str, str]] = defaultdict(dict)
    for (name, kind), value in sorted(total.items()):
        parameters[name][kind] = f"{value:016x}"
    return {"parameters": dict(parameters), "ranks": ranks.gather(digest)}, copies


def _local(engine: Any) -> tuple[Sums, Sums, str]:
    """This rank's sums over pieces of its own, those over copies that all ranks have, a digest."""
    parted: Sums = defaultdict(int)
    copies: Sums = {}
    digest = hashlib.sha256()
    for piece in pieces(engine, swapped=True):
        value = fingerprint(piece.flat, piece.start)
        key = (piece.name, piece.kind)
        if piece.replicated:
            copies[key] = value
        else:
            parted[key] = (parted[key] + value) % MODULUS
        digest.update(f"{piece.name} {piece.kind} {piece.start} {value:016x}\n".encode())
    return dict(parted), copies, digest.hexdigest()


def _add_up(parted: Sums) -> Sums:
    """Sums over all ranks; a rank that holds no piece of a parameter adds nothing."""
    keys = sorted(set().union(*ranks.gather(set(parted))))
    values = [parted.get(key, 0) for key in keys]
    if not keys:
        return {}
    # Two halves, so that the sum over ranks cannot overflow.
    halves = torch.tensor(
        [[value & 0xFFFFFFFF, value >> 32] for value in values],
        dtype=torch.int64,
        device=world.device(),
    )
    if world.world_size() > 1:
        torch.distributed.all_reduce(halves)
    sums = [(low + (high << 32)) % MODULUS for low, high in halves.tolist()]
    return dict(zip(keys, sums, strict=True))
