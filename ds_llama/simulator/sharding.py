"""ZeRO-3's gather and reduce-scatter without a view for every rank of the world.

DeepSpeed cuts the buffer of a gather into one view a rank, and each parameter out of every one of
them: 65B on 512 ranks takes a million operations a step, none of which allocates anything but one
concatenation a parameter. These make the same storages at the same moments, and the same calls of
collectives; a test holds the account of a run with them to that of a run without.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from deepspeed import comm as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.comm import coalesced_collectives
from deepspeed.runtime.zero.partition_parameters import AllGatherCoalescedHandle, ZeroParamStatus

wait_with_views = AllGatherCoalescedHandle.wait


def wait(handle: Any, handle_dependency: bool = True) -> None:
    """`AllGatherCoalescedHandle.wait` (partition_parameters.py:757)."""
    if handle.quantization:
        wait_with_views(handle, handle_dependency)
        return
    if handle.complete:
        return
    handle.allgather_handle.wait()
    flat = handle.partitions[0]
    for param in handle.params:
        whole = torch.empty(param.ds_numel, dtype=flat.dtype, device=flat.device)
        param.data = whole.view(param.ds_shape).to(param.ds_tensor.dtype)
        param.ds_status = ZeroParamStatus.AVAILABLE
    handle.complete = True
    if not get_accelerator().is_synchronized_device() and not handle_dependency:
        AllGatherCoalescedHandle.data_buffer.append([flat])  # until free_buffer()


@torch.no_grad()
def reduce_scatter_coalesced(tensors: list[torch.Tensor], group: Any = None) -> list[torch.Tensor]:
    """`coalesced_collectives.reduce_scatter_coalesced` (runtime/comm/coalesced_collectives.py)."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    shares = [math.ceil(tensor.numel() / ranks) for tensor in tensors]
    padding = []
    if len(tensors) == 1 and tensors[0].numel() % ranks == 0:
        buffer = tensors[0].view(-1)
    else:
        for tensor, share in zip(tensors, shares, strict=True):
            missing = share * ranks - tensor.numel()
            if missing:
                padding.append(tensor.new_empty(missing))
        buffer = tensors[0].new_empty(sum(shares) * ranks)
    buffer.div_(ranks)
    own = buffer.narrow(0, rank * sum(shares), sum(shares))
    coalesced_collectives._torch_reduce_scatter_fn(buffer, own, group=group)
    results, offset = [], 0
    for tensor, share in zip(tensors, shares, strict=True):
        kept = max(0, min(share, tensor.numel() - rank * share))
        results.append(own.narrow(0, offset, kept))
        offset += share
    return results
