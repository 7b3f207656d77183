"""Attention on "sim" as CUDA's kernels allocate it: torch has fused ones for its own devices.

Left alone `scaled_dot_product_attention` falls back to the math path there, which holds T x T
scores for every head. CUDA's choice between its kernels (aten/src/ATen/native/transformers/cuda/
sdp_utils.cpp) is made here by what a training step can meet:

    half precision, no mask        flash: keeps the output and an fp32 log-sum-exp per query
    fp32 or a mask, equal heads    memory-efficient: the same, rows of it padded to 32
    fp32 or a mask, grouped heads  math: holds the scores; the model repeats the keys instead
"""

from __future__ import annotations

import torch
from torch import Tensor

aten = torch.ops.aten
_real = torch.nn.functional.scaled_dot_product_attention
_FLASH = (torch.float16, torch.bfloat16)
_LARGEST_HEAD = 256


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` for tensors of any device."""
    grouped = query.shape[1] != key.shape[1]
    if query.device.type != "sim" or (grouped and not enable_gqa):
        return _real(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if torch.is_autocast_enabled("sim"):
        dtype = torch.get_autocast_dtype("sim")
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    small = query.shape[-1] <= _LARGEST_HEAD
    if attn_mask is None and query.dtype in _FLASH and small:
        flash = aten._scaled_dot_product_flash_attention
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if not grouped:
        efficient = aten._scaled_dot_product_efficient_attention
        keep = any(tensor.requires_grad for tensor in (query, key, value))
        bias = None if attn_mask is None else _bias(attn_mask, query, key)
        return efficient(query, key, value, bias, keep, dropout_p, is_causal, scale=scale)[0]
    return _real(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask of numbers, as the kernel takes it: made from booleans, expanded to every head."""
    if mask.dtype == torch.bool:
        zeros = torch.zeros_like(mask, dtype=query.dtype)
        mask = zeros.masked_fill_(mask.logical_not(), float("-inf"))
    return mask.expand(*query.shape[:3], key.shape[2])
