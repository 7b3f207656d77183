"""Causal grouped-query attention (Ainslie et al. 2023) through torch's SDPA.

Without padding no mask exists: SDPA's causal path is used, which is the flash kernel where there is
one (on the CPU too). Documents that are kept apart are a call of it each, which costs the squares
of their lengths, not of the row's. A dense mask is made once per forward pass, for all layers, when
a batch is padded or when several new tokens meet a cache.

With a cache, which is how text is written, operations and their order are transformers', so that in
every dtype the logits have its bits and a greedy text its tokens. Without one the rotation is in
fp32, and some lengths are attended to in two calls.

Legend: B batch, T tokens, S tokens attended to (past ones included), D model, H query heads,
K key/value heads, d head dim.
"""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ds_llama.config import LlamaConfig
from ds_llama.errors import ModelError
from ds_llama.model.cache import Cache
from ds_llama.model.documents import Lengths
from ds_llama.model.linear import Linear
from ds_llama.model.rope import rotate, rotate_rounded

# Where a query may look: bool (B or 1, 1, T, S), or nowhere but in its document, by the lengths of
# the documents of all rows; None is causal.
Mask = Tensor | Lengths | None


class Attention(nn.Module):
    """The attention half of a block; `layer` is its place in a Cache."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        self.layer, self.head_dim, self.dropout = layer, config.head_dim, config.attention_dropout
        self.q_proj = Linear(width, config.attention_size, bias=bias)
        self.k_proj = Linear(width, config.key_value_size, bias=bias)
        self.v_proj = Linear(width, config.key_value_size, bias=bias)
        self.o_proj = Linear(config.attention_size, width, bias=bias)

    def forward(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Mask = None,
        cache: Cache | None = None,
    ) -> Tensor:
        heads = (*x_BTD.shape[:2], -1, self.head_dim)
        q_BTHd, k_BTKd = self.q_proj(x_BTD).view(heads), self.k_proj(x_BTD).view(heads)
        v_BTKd = self.v_proj(x_BTD).view(heads)
        turned = rotate if cache is None else rotate_rounded
        q_BTHd, k_BTKd = turned(q_BTHd, k_BTKd, cos, sin)
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, tuple):
            out_BTHd = attend_apart(q_BTHd, k_BTKd, v_BTKd, mask, dropout)
            return self.o_proj(out_BTHd.flatten(2))
        q_BHTd, k_BKSd, v_BKSd = (t.transpose(1, 2) for t in (q_BTHd, k_BTKd, v_BTKd))
        if cache is not None:
            k_BKSd, v_BKSd = cache.update(self.layer, k_BKSd, v_BKSd)
        out_BHTd = attend(q_BHTd, k_BKSd, v_BKSd, mask, dropout, whole=cache is not None)
        return self.o_proj(out_BHTd.transpose(1, 2).flatten(2))


def attend(
    q_BHTd: Tensor,
    k_BKSd: Tensor,
    v_BKSd: Tensor,
    mask: Tensor | None,
    dropout: float = 0.0,
    *,
    whole: bool = False,
) -> Tensor:
    """softmax(q k / sqrt(d)) v; causal where `mask` is None. Masked-out rows give zeros.

    whole: in one call of SDPA, whatever is the faster.
    """
    groups = q_BHTd.shape[1] // k_BKSd.shape[1]
    on_cpu, tokens = q_BHTd.device.type == "cpu", q_BHTd.shape[2]
    alone = mask is None and tokens == k_BKSd.shape[2]
    if on_cpu and alone and not whole and _HALVED[0] < tokens <= _HALVED[1]:
        return _attend_in_halves(q_BHTd, k_BKSd, v_BKSd, dropout)
    # On CUDA no fused kernel takes grouped heads in fp32, or with a mask: SDPA would fall back to
    # one that holds the whole T x S matrix.
    fused = on_cpu or (mask is None and _is_half(q_BHTd))
    if groups > 1 and not fused:
        k_BKSd, v_BKSd = (t.repeat_interleave(groups, dim=1) for t in (k_BKSd, v_BKSd))
    return F.scaled_dot_product_attention(
        q_BHTd,
        k_BKSd,
        v_BKSd,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None and tokens > 1,
        enable_gqa=groups > 1 and fused,
    )


def attend_apart(
    q_BTHd: Tensor, k_BTKd: Tensor, v_BTKd: Tensor, lengths: Lengths, dropout: float = 0.0
) -> Tensor:
    """Causal attention within each document, (B, T, H, d); `lengths` sum to B T.

    Neighbours of equal length go together. Split and joined once, so that the gradients are joined
    and split again, and not summed into a row of zeros for each document.
    """
    alike = [(length, len(list(same))) for length, same in groupby(lengths)]
    sizes = [length * count for length, count in alike]
    parts = zip(*(t.flatten(0, 1).split(sizes) for t in (q_BTHd, k_BTKd, v_BTKd)), strict=True)
    outs = []
    for (length, _), part in zip(alike, parts, strict=True):
        q, k, v = (t.unflatten(0, (-1, length)).transpose(1, 2) for t in part)
        outs.append(attend(q, k, v, None, dropout).transpose(1, 2).flatten(0, 1))
    return torch.cat(outs).view_as(q_BTHd)


def _is_half(tensor: Tensor) -> bool:
    """Whether SDPA gets it in half precision; autocast, where it is on, sees to that."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    device = tensor.device.type
    return half or (device != "meta" and torch.is_autocast_enabled(device))


# Lengths, above the first and up to the second, at which two halves are the faster: torch's flash
# kernel for the CPU works on 512 keys at a time, and up to there on all of them for every query.
_HALVED = (256, 512)


def _attend_in_halves(q_BHTd: Tensor, k_BKTd: Tensor, v_BKTd: Tensor, dropout: float) -> Tensor:
    """Causal attention in two calls: the first half of the queries never sees the second's keys."""
    tokens, half = q_BHTd.shape[2], q_BHTd.shape[2] // 2
    early = [t[:, :, :half] for t in (q_BHTd, k_BKTd, v_BKTd)]
    mask = torch.ones(tokens - half, tokens, dtype=torch.bool, device=q_BHTd.device).tril(half)
    late = attend(q_BHTd[:, :, half:], k_BKTd, v_BKTd, mask, dropout)
    return torch.cat((attend(*early, None, dropout), late), dim=2)


def dense_mask(
    padding_BS: Tensor | None, past: int, shape: torch.Size, device: torch.device
) -> Tensor | None:
    """Where each of T new tokens may look, bool (B or 1, 1, T, S); None where causal says it all.

    padding_BS: the caller's attention_mask, nonzero for real tokens, past ones included.
    shape: (B, T) of the new tokens. Raises ModelError when the mask has another shape.
    """
    batch, tokens = shape
    if padding_BS is not None and tuple(padding_BS.shape) != (batch, past + tokens):
        raise ModelError(
            f"attention_mask has shape {tuple(padding_BS.shape)}, "
            f"input_ids and past need {(batch, past + tokens)}",
            where="attention_mask",
            remedy="give one row per sequence with a 0 or 1 for every token, past ones included",
        )
    if padding_BS is not None and not torch.compiler.is_compiling() and bool(padding_BS.all()):
        padding_BS = None  # one look at the values buys the causal kernel for every layer
    if padding_BS is None and (past == 0 or tokens == 1):
        return None
    causal_TS = torch.ones(tokens, past + tokens, dtype=torch.bool, device=device).tril(past)
    if padding_BS is None:
        return causal_TS[None, None]
    return causal_TS & padding_BS.to(device=device, dtype=torch.bool)[:, None, None, :]
