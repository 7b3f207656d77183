"""Which piece of which parameter, master weight and moment this rank holds, at any ZeRO stage.

stage   weight (what forward uses)        master, moments
0       whole, on every rank              masters are the weights; whole moments on every rank
1, 2    whole, on every rank              a piece of the flat group, cut anywhere in a parameter
3       a slice of every parameter;       the slice of the same elements
        whole too while it is gathered
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

WEIGHT, MASTER = "weight", "master"


@dataclass(frozen=True)
class Piece:
    """Elements `start` … of a parameter's tensor of some kind, 1-D, as this rank holds them.

    kind: "weight", "master", or the optimizer's name of a moment ("exp_avg"). replicated: every
    rank has a copy of the same elements.
    """

    name: str
    kind: str
    start: int
    flat: torch.Tensor
    replicated: bool


def pieces(engine: Any) -> Iterator[Piece]:
    """Every piece of this rank, in the order of the module's parameters; nothing is copied.

    What is swapped out to NVMe is left out.
    """
    stage = engine.zero_optimization_stage()
    read = {0: _whole, 1: _of_group, 2: _of_group, 3: _slice}[int(stage)]
    for name, parameter in engine.module.named_parameters():
        yield from read(engine.optimizer, name, parameter)


def _whole(optimizer: Any, name: str, parameter: Any) -> Iterator[Piece]:
    yield Piece(name, WEIGHT, 0, parameter.data.view(-1), True)
    base = getattr(optimizer, "optimizer", optimizer)
    state = base.state.get(parameter, {}) if base is not None else {}
    for kind, moment in _moments(state, parameter.numel()):
        yield Piece(name, kind, 0, moment, True)


def _of_group(optimizer: Any, name: str, parameter: Any) -> Iterator[Piece]:
    yield Piece(name, WEIGHT, 0, parameter.data.view(-1), True)
    mapping = getattr(parameter, "_hp_mapping", None)
    if mapping is None:  # another rank has it, or it is frozen
        return
    group = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    start, address = mapping.lp_fragment_address.start, mapping.hp_fragment_address
    for kind, flat in _group_tensors(optimizer, group):
        piece = flat.view(-1).narrow(0, address.start, address.numel)
        yield Piece(name, kind, start, piece, False)


def _slice(optimizer: Any, name: str, parameter: Any) -> Iterator[Piece]:
    shard = parameter.ds_tensor
    size = shard.ds_numel
    start = size * torch.distributed.get_rank(parameter.ds_process_group)
    count = max(0, min(size, parameter.ds_numel - start))  # the rest of the slice is padding
    if shard.status.name == "AVAILABLE":
        yield Piece(name, WEIGHT, start, shard.data.view(-1)[:count], False)
    if parameter.ds_status.name == "AVAILABLE":
        yield Piece(name, WEIGHT, 0, parameter.data.view(-1), True)
    position = optimizer.grad_position.get(optimizer.get_param_id(parameter))
    if position is None:  # frozen
        return
    index, offset, _ = position
    group = optimizer.fp32_partitioned_groups_flat[index]
    if group.numel() == 0:
        return
    for kind, flat in _group_tensors(optimizer, group):
        yield Piece(name, kind, start, flat.view(-1).narrow(0, offset, count), False)


def _group_tensors(optimizer: Any, group: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield MASTER, group.data
    yield from _moments(optimizer.optimizer.state.get(group, {}), group.numel())


def _moments(state: dict[str, Any], numel: int) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of an optimizer's state that have an element per parameter, not its counters."""
    for kind, value in sorted(state.items()):
        if torch.is_tensor(value) and value.dim() > 0 and value.numel() == numel:
            yield kind, value.data.view(-1)
