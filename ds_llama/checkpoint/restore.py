"""Fill a fresh engine of any stage, offload and world size with what a step folder holds.

    masters, moments   read into the places where this rank keeps them, element by element
    step               into each partition's state, in the form in which its optimizer counts
    weights            from the masters, by the path that an update takes; frozen ones are read

No more is held beside the engine's own tensors than a block of a partition that is not in memory
that can be read into. DeepSpeed's own loading knows one stage, world size and offload, and needs a
second copy of a rank's share.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from ds_llama.checkpoint.reader import Reader
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.pieces import MASTER, WEIGHT, partitions, pieces


@torch.no_grad()
def restore(engine: Any, reader: Reader) -> None:
    """Make the engine's weights, masters, moments and buffers those of the step folder; collective.

    The engine is as `register` returned it. Counters and generators are not touched. Raises
    CheckpointError for elements that the folder does not have.
    """
    _make_states(engine, reader)
    stage = engine.zero_optimization_stage()
    trained = {name for name, p in engine.module.named_parameters() if p.requires_grad}
    for piece in pieces(engine):
        if piece.kind != WEIGHT:
            reader.read_into(piece.name, piece.kind, piece.start, piece.flat)
        elif stage == 0 or piece.name not in trained:
            reader.read_into(piece.name, MASTER, piece.start, piece.flat)
    buffers = reader.buffers()
    for name, buffer in engine.module.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
    engines.share_moments(engine)
    engines.refresh_weights(engine)


def _make_states(engine: Any, reader: Reader) -> None:
    """Give every tensor that the inner optimizer updates the moments that were saved of its parts.

    Empty, for `pieces` to find. Padding between and after a partition's parts is zero, as it is
    after any number of updates.
    """
    inner = engines.inner_optimizers(engine)[0]
    trained = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
    flats, held = partitions(engine), defaultdict(list)
    for piece in pieces(engine):
        if piece.kind == MASTER and piece.group is not None:
            held[piece.group].append(piece.name)
    # A partition that is nothing but padding is updated as the others are.
    updated = [(flat, held[index] or [trained[0][0]]) for index, flat in enumerate(flats)]
    for tensor, names in updated or [(parameter, [name]) for name, parameter in trained]:
        kinds = {kind: reader.dtype(n, kind) for n in names for kind in reader.kinds(n)}
        kinds.pop(MASTER)
        step = reader.step(names[0])
        if kinds or step is not None:  # it was saved after an update, by one who keeps something
            empty = {k: torch.zeros_like(tensor, dtype=dtype) for k, dtype in kinds.items()}
            inner.state[tensor] = {**_counted(inner, tensor, step), **empty}
    for index, tensor in enumerate(flats):
        if odd := reader.odd(world.rank(), index):
            inner.state[tensor].update({k: v.to(tensor.device) for k, v in odd.items()})


def _counted(inner: Any, tensor: torch.Tensor, step: float | None) -> Mapping[str, Any]:
    """`step` as this optimizer keeps it: torch's in a tensor, DeepSpeed's in an int."""
    if step is None:
        return {}
    inner = getattr(inner, "aux_optimizer", None) or inner  # Muon's other half
    if not type(inner).__module__.startswith("torch."):
        return {"step": int(step)}
    beside = any(group.get("fused") or group.get("capturable") for group in inner.param_groups)
    device = tensor.device if beside else torch.device("cpu")
    return {"step": torch.tensor(float(step), dtype=torch.float32, device=device)}
