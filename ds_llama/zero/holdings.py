"""What an engine holds and what for, as `measure.accounting` asks it at the end of every phase.

                 stage 0    1, 2                            3
parameters       whole      whole, in flat groups           slices; whole while gathered
gradients        .grad      averaged partitions             averaged partitions
master           none       flat fp32 partitions            flat fp32 partitions
optimizer        moments    moments of the partitions       moments of the partitions
buckets                     what gradients are sent in, staging to the host and to NVMe

Names are those of DeepSpeed's optimizers; one that an optimizer has not is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ds_llama.measure import accounting
from ds_llama.zero import ema

Held = tuple[torch.Tensor, str]

# Where two name one storage (fp32 at stage 3: masters are the slices themselves), the later wins.
_ATTRIBUTES = {
    "buckets": (
        "ipg_buckets",  # stages 1 to 3
        "temp_grad_buffer_for_cpu_offload",  # stage_1_and_2.py:653
        "temp_grad_buffer_for_gpu_offload",
    ),
    "gradients": (
        "averaged_gradients",
        "all_grad_tensors",
        "accumulated_grads_in_cpu",
        "grads_in_partition",
        "grad_partitions_flat_buffer",  # stage3.py:791
        "fp32_groups_gradients_flat",  # BF16_Optimizer
    ),
    "master": (
        "single_partition_of_fp32_groups",  # stages 1, 2
        "fp32_partitioned_groups_flat",  # stage 3
        "fp32_groups_flat_partition",  # BF16_Optimizer
    ),
    "parameters": (
        "bit16_groups_flat",
        "bf16_groups_flat",
        "param_buffer_of_bit16_for_cpu_offload_groups",
        "fp16_partitioned_groups_flat",
        "lp_param_buffer",  # stage3.py:972
        "param_groups_fp16_flat_cpu_memory",
    ),
}
_DEPTH = 5  # of lists, dicts and DeepSpeed's own small objects around a tensor


def watch(engine: Any) -> None:
    """Let the Account that is entered, if there is one, ask this engine what it holds."""
    account = accounting.entered()
    if account is not None:
        account.ask(engine, of_engine)


def watch_model(model: torch.nn.Module, vocabulary: int) -> None:
    """The same for a model that no engine has yet; `vocabulary`: its logits' last dimension."""
    account = accounting.entered()
    if account is not None:
        account.vocabulary = vocabulary
        account.ask(model, of_module)


def count_buffers(swapper: Any) -> None:
    """Count what a swapper has just made in C++, which no operation passes to be seen by."""
    account = accounting.entered()
    if account is not None:
        for tensor in _tensors(getattr(swapper, "buffers", None)):
            account.label(tensor, "buckets")


def of_engine(engine: Any) -> Iterator[Held]:
    """Every tensor that the engine holds, with its category (`measure.phases.CATEGORIES`)."""
    outer = engine.optimizer
    yield from _swap_buffers(outer)
    for inner in (getattr(outer, "optimizer", outer), getattr(outer, "backup_optimizer", None)):
        if inner is not None:
            yield from _states(inner)
    for category, names in _ATTRIBUTES.items():
        for name in names:
            for tensor in _tensors(getattr(outer, name, None)):
                yield tensor, category
                if category == "master" and tensor.grad is not None:
                    yield tensor.grad, "gradients"
    yield from of_module(engine.module)


def _swap_buffers(outer: Any) -> Iterator[Held]:
    """Where the optimizer's states wait for NVMe (swap_tensor/optimizer_utils.py:187)."""
    swapper = getattr(outer, "optimizer_swapper", None)
    for name in ("swap_buffer_manager", "gradient_swapper"):
        holder = getattr(swapper, name, None)
        for tensor in _tensors(getattr(holder, "all_buffers", None)):
            yield tensor, "buckets"


def of_module(module: torch.nn.Module) -> Iterator[Held]:
    """Parameters with their slices and gradients; buffers are `other`."""
    for buffer in module.buffers():
        yield buffer, "other"
    swappers = {}
    for parameter in module.parameters():
        for gradient in (parameter.grad, getattr(parameter, "grad_accum", None)):
            if gradient is not None:
                yield gradient, "gradients"
        yield parameter, "parameters"
        for slice_ in ("ds_tensor", "ds_secondary_tensor"):
            tensor = getattr(parameter, slice_, None)
            if tensor is not None:
                yield tensor, "parameters"
        swapper = getattr(parameter, "nvme_swapper", None)
        swappers[id(swapper)] = swapper
    for swapper in swappers.values():
        for name in ("buffers", "partitioned_swap_buffer"):
            for tensor in _tensors(getattr(swapper, name, None)):
                yield tensor, "buckets"


def _states(optimizer: torch.optim.Optimizer) -> Iterator[Held]:
    for state in optimizer.state.values():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                yield value, "other" if key == ema.KEY else "optimizer"


def _tensors(value: Any, depth: int = _DEPTH) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif depth == 0 or value is None or isinstance(value, (str, int, float)):
        return
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item, depth - 1)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, depth - 1)
    elif type(value).__module__.startswith("deepspeed.runtime"):
        yield from _tensors(vars(value), depth - 1)
