"""Which piece of which parameter, master, moment and gradient this rank holds, at any ZeRO stage.

stage   weight (what forward uses)        master, moments, averaged gradient
0       whole, on every rank              masters are the weights; whole, on every rank
1, 2    whole, on every rank              a piece of the flat group, cut anywhere in a parameter
3       a slice of every parameter;       the slice of the same elements
        whole too while it is gathered

bf16 with fp32 accumulation at stage 1 is DeepSpeed's BF16_Optimizer, which keeps the whole averaged
gradient on every rank and names its flat groups otherwise (runtime/bf16_optimizer.py:109).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer

from ds_llama.zero import swap

WEIGHT, MASTER, GRADIENT = "weight", "master", "gradient"


@dataclass(frozen=True)
class Piece:
    """Elements `start` … of a parameter's tensor of some kind, 1-D, as this rank holds them.

    kind: "weight", "master", "gradient", or the optimizer's name of a moment ("exp_avg").
    replicated: every rank has a copy of the same elements.
    """

    name: str
    kind: str
    start: int
    flat: torch.Tensor
    replicated: bool


@dataclass(frozen=True)
class Place:
    """Elements `start` … of a parameter: `count` elements of a flat partition from `offset` on."""

    name: str
    start: int
    count: int
    offset: int


def pieces(engine: Any, *, swapped: bool = False) -> Iterator[Piece]:
    """Every piece of this rank; nothing is copied. Weights come first, in the module's order.

    swapped: those on NVMe too, which are left out otherwise. They are read, and each has its
    memory only until the next piece is asked for; what is written to it is lost.
    """
    if engine.zero_optimization_stage() == 0:
        for name, parameter in engine.module.named_parameters():
            yield from _whole(engine.optimizer, name, parameter)
        return
    for name, parameter in engine.module.named_parameters():
        yield from _weights(name, parameter, swapped)
    for index, held in enumerate(places(engine)):
        if swapped or not swap.is_away(engine, index):
            with swap.resident(engine, index):
                yield from of_partition(engine, index, held)


def partitions(engine: Any) -> list[torch.Tensor]:
    """This rank's flat masters at stages 1 to 3, by the index that `places` go by; none at stage 0.

    The inner optimizer's state has each as a key. Those on NVMe have no content (`sizes`).
    """
    optimizer = engine.optimizer
    if engine.zero_optimization_stage() == 0:
        return []
    if engine.zero_optimization_stage() == 3:
        return list(optimizer.fp32_partitioned_groups_flat)
    own = isinstance(optimizer, BF16_Optimizer)
    return list(
        optimizer.fp32_groups_flat_partition if own else optimizer.single_partition_of_fp32_groups
    )


def sizes(engine: Any) -> list[int]:
    """Elements of each of `partitions`."""
    if engine.zero_optimization_stage() == 3:
        return [int(numel) for numel in engine.optimizer.fp16_partitioned_groups_flat_numel]
    return [flat.numel() for flat in partitions(engine)]


def places(engine: Any) -> list[list[Place]]:
    """What each of `partitions` has of which parameter; a frozen parameter is in none."""
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    found: list[list[Place]] = [[] for _ in partitions(engine)]
    for name, parameter in engine.module.named_parameters() if found else ():
        place = _place_of_slice if stage == 3 else _place_in_group
        for index, start, count, offset in place(optimizer, parameter):
            found[index].append(Place(name, start, count, offset))
    return found


def of_partition(engine: Any, index: int, held: Sequence[Place]) -> Iterator[Piece]:
    """The pieces of a partition that is in memory; `held`: its row of `places`."""
    flat = partitions(engine)[index]
    state = engine.optimizer.optimizer.state.get(flat, {})
    for kind, tensor in [(MASTER, flat.data), *_moments(state, flat.numel())]:
        for place in held:
            piece = tensor.view(-1).narrow(0, place.offset, place.count)
            yield Piece(place.name, kind, place.start, piece, False)


def gradients(engine: Any) -> Iterator[Piece]:
    """This rank's pieces of the averaged gradient, as views that may be changed in place.

    To be read at an accumulation boundary between the last backward and the update
    (`engine.before_update`). Still multiplied with fp16's loss scale; fp32, or the dtype that
    gradients are accumulated in. A frozen parameter has none, nor has one whose optimizer state is
    on NVMe. With the optimizer on the host DeepSpeed has taken the norm of what it copied there
    already, and clips by that, whatever is changed here.
    """
    stage, optimizer = engine.zero_optimization_stage(), engine.optimizer
    read = {0: _whole_gradient, 1: _gradient_of_group, 2: _gradient_of_group, 3: _gradient_slice}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            yield from read[int(stage)](optimizer, name, parameter)


def _whole_gradient(optimizer: Any, name: str, parameter: Any) -> Iterator[Piece]:
    if parameter.grad is not None:
        yield Piece(name, GRADIENT, 0, parameter.grad.view(-1), True)


def _gradient_of_group(optimizer: Any, name: str, parameter: Any) -> Iterator[Piece]:
    if isinstance(optimizer, BF16_Optimizer):
        groups = zip(optimizer.bf16_groups, optimizer.fp32_groups_gradients, strict=True)
        for parameters, kept in groups:
            for candidate, gradient in zip(parameters, kept, strict=True):
                if candidate is parameter:
                    yield Piece(name, GRADIENT, 0, gradient.view(-1), True)
        return
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:  # another rank has it
        return
    index, address = mapping.param_group_index, mapping.hp_fragment_address
    if optimizer.cpu_offload:
        parts = [optimizer.single_partition_of_fp32_groups[index].grad]
    else:
        parts = optimizer.averaged_gradients[index]
    flat = _narrow(parts, address.start, address.numel)
    yield Piece(name, GRADIENT, mapping.lp_fragment_address.start, flat, False)


def _gradient_slice(optimizer: Any, name: str, parameter: Any) -> Iterator[Piece]:
    start, count = _slice(parameter)
    index, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
    if optimizer.offload_optimizer:
        parts = [optimizer.fp32_partitioned_groups_flat[index].grad]
    else:
        parts = optimizer.averaged_gradients[index]
    if count > 0 and parts[0] is not None and parts[0].numel() > 0:
        yield Piece(name, GRADIENT, start, _narrow(parts, offset, count), False)


def _narrow(parts: Sequence[torch.Tensor], start: int, count: int) -> torch.Tensor:
    """Elements of a partition that is kept as several tensors, each holding whole pieces."""
    for part in parts:
        if start < part.numel():
            return part.view(-1).narrow(0, start, count)
        start -= part.numel()
    raise IndexError(f"element {start} after the end of the partition")


def _whole(optimizer: Any, name: str, parameter: Any) -> Iterator[Piece]:
    yield Piece(name, WEIGHT, 0, parameter.data.view(-1), True)
    base = getattr(optimizer, "optimizer", optimizer)
    state = base.state.get(parameter, {}) if base is not None else {}
    for kind, moment in _moments(state, parameter.numel()):
        yield Piece(name, kind, 0, moment, True)


def _weights(name: str, parameter: Any, swapped: bool) -> Iterator[Piece]:
    """The weight that forward uses; at stage 3 this rank's slice, and the whole while gathered."""
    if not hasattr(parameter, "ds_id"):
        yield Piece(name, WEIGHT, 0, parameter.data.view(-1), True)
        return
    if swapped or parameter.ds_tensor.status.name == "AVAILABLE":
        start, count = _slice(parameter)
        with swap.slice_of(parameter) as flat:
            yield Piece(name, WEIGHT, start, flat.view(-1)[:count], False)
    if parameter.ds_status.name == "AVAILABLE":
        yield Piece(name, WEIGHT, 0, parameter.data.view(-1), True)


def _slice(parameter: Any) -> tuple[int, int]:
    """First element of this rank's slice, and how many there are before its padding."""
    size = parameter.ds_tensor.ds_numel
    start = size * torch.distributed.get_rank(parameter.ds_process_group)
    return start, max(0, min(size, parameter.ds_numel - start))


def _place_in_group(optimizer: Any, parameter: Any) -> Iterator[tuple[int, int, int, int]]:
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is not None:  # neither another rank's nor frozen
        start, address = mapping.lp_fragment_address.start, mapping.hp_fragment_address
        yield mapping.param_group_index, start, address.numel, address.start


def _place_of_slice(optimizer: Any, parameter: Any) -> Iterator[tuple[int, int, int, int]]:
    position = optimizer.grad_position.get(optimizer.get_param_id(parameter))
    if position is not None:  # not frozen
        index, offset, _ = position
        yield (index, *_slice(parameter), offset)


def _moments(state: dict[str, Any], numel: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an optimizer's state that have an element per parameter, not its counters."""
    for kind, value in sorted(state.items()):
        if torch.is_tensor(value) and value.dim() > 0 and value.numel() == numel:
            yield kind, value.data.view(-1)
