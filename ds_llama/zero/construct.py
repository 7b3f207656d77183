"""Build a model with the same initial weights under plain, meta and `zero.Init` construction.

    plain       modules made on the device in the training dtype, then every parameter filled
    meta        modules made without memory, materialised on the device, then filled
    zero.Init   modules partitioned while they are made; each rank fills its own slice only

`zero.Init` alone does not give the weights of plain construction: it broadcasts rank 0's values,
and whatever initialises a model after construction then runs on partitioned tensors. Here one
function of (seed, parameter name, element index) decides every value, so that a rank can draw just
the elements it keeps and the result does not depend on the way or on the world size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import deepspeed
import torch
from deepspeed.utils import groups
from torch import nn

from ds_llama.config.model import LlamaConfig
from ds_llama.config.resolve import Resolved
from ds_llama.errors import ModelError
from ds_llama.measure import accounting
from ds_llama.model import init, rope
from ds_llama.model.llama import Llama
from ds_llama.zero import heap, holdings, swap, vocabulary, world

How = Literal["plain", "meta", "zero.Init"]
Fill = Callable[[nn.Module], None]


@accounting.phase("construct")
def build(resolved: Resolved, *, how: How | None = None, fill: Fill | None = None) -> Llama:
    """A `Llama` in the training dtype on this rank's device, initialised from the run's seed.

    `how` is taken from the stage when None: `zero.Init` at stage 3, meta below. `fill` replaces the
    random initialisation, to load weights for instance; it sees partitioned parameters under
    `zero.Init`. Collective under `zero.Init`: all ranks call.
    """
    world.join()
    how = how or ("zero.Init" if resolved.stage == 3 else "meta")
    model = _BUILDERS[how](resolved.model, getattr(torch, resolved.dtype), resolved)
    holdings.watch_model(model, resolved.model.vocab_size)
    vocabulary.freeze(model)
    (fill or (lambda module: fill_initial_(module, resolved.run.train.seed)))(model)
    _check_rotary(model, resolved.run.data.sequence_length)
    return model


def fill_initial_(model: nn.Module, seed: int) -> None:
    """Set every parameter in place from (seed, name, index); a ZeRO-3 rank fills its partition.

    Values are drawn in fp32 and cast to the parameter's dtype.
    """
    rules = init.rules(model)
    for name, parameter in model.named_parameters():
        with own_part(parameter) as (target, start, stop):
            init.fill_(target[: stop - start], name, rules[name], start, seed)
            target[stop - start :].zero_()


def is_partitioned(parameter: nn.Parameter) -> bool:
    """Whether ZeRO-3 owns the parameter, so that its data is a rank's slice."""
    return hasattr(parameter, "ds_id")


@contextmanager
def own_part(parameter: nn.Parameter) -> Iterator[tuple[torch.Tensor, int, int]]:
    """What this rank holds of a parameter, to be written: flat, and the range of its elements.

    All of it, or the slice of a ZeRO-3 parameter, which is read from NVMe and written back where
    it lives there. A slice is padded where the world does not divide the parameter: it may be
    longer than the range, which is empty on ranks that hold padding only.
    """
    if not is_partitioned(parameter):
        yield parameter.data.view(-1), 0, parameter.numel()
        return
    shard = parameter.ds_tensor
    size, total = shard.ds_numel, parameter.ds_numel
    start = min(size * torch.distributed.get_rank(parameter.ds_process_group), total)
    with swap.slice_of(parameter, changed=True) as flat:
        yield flat, start, min(start + size, total)
    # hpZ's copy within the node was made of what was there before, and would be gathered instead
    # (partition_parameters.py:1571).
    parameter.ds_secondary_tensor = None


def _plain(config: LlamaConfig, dtype: torch.dtype, resolved: Resolved) -> Llama:
    with world.device(), _default_dtype(dtype):
        return Llama(config, init=False)


def _meta(config: LlamaConfig, dtype: torch.dtype, resolved: Resolved) -> Llama:
    with torch.device("meta"), _default_dtype(dtype):
        model = Llama(config, init=False)
    # `to_empty` likens meta tensors, for which torch imports sympy: 0.5 s of every rank's start.
    return model._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=world.device()))


def _zero_init(config: LlamaConfig, dtype: torch.dtype, resolved: Resolved) -> Llama:
    # The dtype comes from the JSON: as an argument it is ignored where fp16 is not supported.
    swap.prepare(resolved)
    # DeepSpeed keeps hpZ's group for the process, and stops at making it a second time.
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
    partitioning = deepspeed.zero.Init(config_dict_or_path=resolved.deepspeed)
    holdings.count_buffers(getattr(partitioning, "param_swapper", None))
    with heap.returned(), partitioning:
        return Llama(config, init=False)


_BUILDERS: dict[How, Callable[[LlamaConfig, torch.dtype, Resolved], Llama]] = {
    "plain": _plain,
    "meta": _meta,
    "zero.Init": _zero_init,
}


class _default_dtype:
    """`torch.set_default_dtype` for the length of a `with` block."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __enter__(self) -> None:
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *_: object) -> None:
        torch.set_default_dtype(self.before)


def _check_rotary(model: nn.Module, tokens: int) -> None:
    """Every rotary table equals its fp32 recomputation: `zero.Init` has rounded such tables."""
    for module in model.modules():
        table = getattr(module, "rotary", None)
        if isinstance(table, rope.RotaryTable):
            table(0, tokens, world.device())
    wrong = rope.inexact_tables(model)
    if wrong:
        raise ModelError(
            f"the rotary table of {wrong[0]} is not exact in fp32",
            where="model construction",
            remedy="keep rotary tables out of parameters, buffers and zero.Init's reach",
        )
