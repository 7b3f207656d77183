"""Fill a fresh engine of any stage, offload and world size with what a step folder holds.

    masters, moments   read into the places where this rank keeps them, element by element; what
                       goes to NVMe one partition at a time, in the buffers of an update
    step               into each partition's state, in the form in which its optimizer counts
    weights            from the masters, by the path that an update takes; frozen ones are read

No more is held beside the engine's own tensors than a block of a partition that is not in memory
that can be read into; of what goes to NVMe the moments of one partition, as in the first update.
DeepSpeed's own loading knows one stage, world size and offload, and needs a
second copy of a rank's share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ds_llama.checkpoint.reader import Reader
from ds_llama.measure import accounting
from ds_llama.zero import engine as engines
from ds_llama.zero import swap, world
from ds_llama.zero.construct import own_part
from ds_llama.zero.pieces import MASTER, WEIGHT, Place, of_partition, partitions, pieces, places


@accounting.phase("restore")
@torch.no_grad()
def restore(engine: Any, reader: Reader) -> None:
    """Make the engine's weights, masters, moments and buffers those of the step folder; collective.

    The engine is as `register` returned it, or has trained. Counters and generators are not
    touched. Raises CheckpointError for elements that the folder does not have.
    """
    if engine.zero_optimization_stage() == 0:
        _whole(engine, reader)
    else:
        _frozen(engine, reader)
        swap.forget_states(engine)
        for index, held in enumerate(places(engine)):
            with swap.resident(engine, index, changed=True):
                _partition(engine, reader, index, held)
    buffers = reader.buffers()
    for name, buffer in engine.module.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
    engines.share_moments(engine)
    engines.recount(engine)
    engines.refresh_weights(engine)


def _whole(engine: Any, reader: Reader) -> None:
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            _make_state(engine, reader, parameter, [name])
    for piece in pieces(engine):
        kind = MASTER if piece.kind == WEIGHT else piece.kind
        reader.read_into(piece.name, kind, piece.start, piece.flat)


def _frozen(engine: Any, reader: Reader) -> None:
    """Weights that have no master: at stage 3 this rank's slice, at stages 1 and 2 all of them."""
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            with own_part(parameter) as (flat, start, stop):
                reader.read_into(name, MASTER, start, flat[: stop - start])


def _partition(engine: Any, reader: Reader, index: int, held: list[Place]) -> None:
    """Fill one partition; nothing but padding is updated as the others are."""
    flat = partitions(engine)[index]
    names = [place.name for place in held]
    trained = (name for name, p in engine.module.named_parameters() if p.requires_grad)
    _make_state(engine, reader, flat, names or [next(trained)])
    if odd := reader.odd(world.rank(), index):
        state = engines.inner_optimizers(engine)[0].state[flat]
        state.update({kind: value.to(flat.device) for kind, value in odd.items()})
    for piece in of_partition(engine, index, held):
        reader.read_into(piece.name, piece.kind, piece.start, piece.flat)


def _make_state(engine: Any, reader: Reader, tensor: torch.Tensor, names: list[str]) -> None:
    """Give a tensor that the inner optimizer updates the moments that were saved of its parts.

    Empty, for `pieces` to find. Padding between and after the parts is zero, as it is after any
    number of updates.
    """
    inner = engines.inner_optimizers(engine)[0]
    kinds = {kind: reader.dtype(n, kind) for n in names for kind in reader.kinds(n)}
    kinds.pop(MASTER)
    step = reader.step(names[0])
    if kinds or step is not None:  # it was saved after an update, by one who keeps something
        empty = {k: torch.zeros_like(tensor, dtype=dtype) for k, dtype in kinds.items()}
        inner.state[tensor] = {**_counted(inner, tensor, step), **empty}


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
