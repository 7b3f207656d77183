"""LLaMA as `transformers.LlamaForCausalLM` names and computes it, in torch alone.

    input_ids (B, T)
        │
    embed_tokens ─────────────────────────────┐ the same Parameter when embeddings are tied
        │ x (B, T, D)                         │
    ┌───┴──────────── block, L times ───────┐ │
    │ x + self_attn(input_layernorm(x))     │ │
    │ x + mlp(post_attention_layernorm(x))  │ │
    └───┬───────────────────────────────────┘ │
      norm                                    │
        │                                     │
     lm_head ─────────────────────────────────┘
        │
    logits (B, T, V), or with labels their cross entropy, block by block of the vocabulary

Two rules make this model fit for ZeRO-3, and a test holds them: a module's parameters are read in
its own `forward` only, and every module runs in every forward pass.

Legend: B batch, T tokens, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ds_llama.config import LlamaConfig
from ds_llama.errors import ModelError
from ds_llama.model.attention import Attention, Mask, dense_mask
from ds_llama.model.cache import Cache
from ds_llama.model.documents import DOCUMENT_LENGTHS, lengths_of, positions_of
from ds_llama.model.init import initialize_
from ds_llama.model.linear import Embedding
from ds_llama.model.loss import LMHead, Reduction
from ds_llama.model.mlp import MLP
from ds_llama.model.norm import RMSNorm
from ds_llama.model.rope import RotaryTable


class LlamaOutput(NamedTuple):
    """What a forward pass gives: `loss` with labels, `logits` without."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and beside the residual stream."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Mask = None,
        cache: Cache | None = None,
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos, sin, mask, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class LlamaModel(nn.Module):
    """Embedding, blocks and final norm: token ids (B, T) to hidden states (B, T, D)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryTable(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        document_lengths: Tensor | None = None,
    ) -> Tensor:
        past, tokens = (0 if cache is None else cache.length), input_ids.shape[1]
        lengths = lengths_of(document_lengths, input_ids.shape)
        if lengths is not None and position_ids is None:
            position_ids = positions_of(lengths, input_ids.shape, input_ids.device)
        if position_ids is None:
            cos, sin = self.rotary(past, past + tokens, input_ids.device)
        else:
            cos, sin = self.rotary.at(position_ids, max(lengths) if lengths else None)
        mask = lengths or dense_mask(attention_mask, past, input_ids.shape, input_ids.device)
        x_BTD = self.embed_tokens(input_ids)
        for block in self.layers:
            x_BTD = block(x_BTD, cos, sin, mask, cache)
        if cache is not None:
            cache.advance(tokens)
        return self.norm(x_BTD)


class Llama(nn.Module):
    """A causal language model; `load_state_dict(hf_model.state_dict())` works as it is.

    seed: of the initial values, `torch.initial_seed()` when None. With `init=False`, on the meta
    device, and under `zero.Init`, parameters keep whatever their memory holds: `model.init` fills
    them later.
    """

    def __init__(self, config: LlamaConfig, *, seed: int | None = None, init: bool = True) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = LMHead(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        if init and not any(_is_elsewhere(parameter) for parameter in self.parameters()):
            initialize_(self, torch.initial_seed() if seed is None else seed)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        loss_weights: Tensor | None = None,
        reduction: Reduction = "mean",
        logits_to_keep: int = 0,
        document_lengths: Tensor | None = None,
    ) -> LlamaOutput:
        """Logits (B, T, V) in the training dtype, or with `labels` the loss in fp32.

        input_ids: int (B, T). attention_mask: (B, past + T), nonzero for real tokens; None means
        all. position_ids: int (B, T); counted from the first token when None, padding included, as
        transformers does, or from the beginning of each document. document_lengths: int (B, n),
        each row's documents, then zeros: no token attends to one of another document; on the CPU it
        is read without waiting for a device. labels: int64 (B, T), shifted inside, -100 ignored.
        loss_weights: (B, T), a factor for the loss of predicting each label. reduction: "mean" over
        the valid tokens, "sum", or "none" for (B, T). logits_to_keep: of the last so many tokens
        only; 0 means all.
        Raises ModelError where shapes, labels or the cache do not fit.
        """
        _check_shapes(input_ids, position_ids=position_ids, labels=labels, weights=loss_weights)
        if document_lengths is not None:
            _refuse(attention_mask=attention_mask, past_key_values=past_key_values)
        x_BTD = self.model(
            input_ids, attention_mask, position_ids, past_key_values, document_lengths
        )
        if labels is not None:
            loss = self.lm_head(x_BTD, labels, loss_weights, reduction)
            return LlamaOutput(loss=loss, past_key_values=past_key_values)
        logits = self.lm_head(x_BTD[:, -logits_to_keep:])
        return LlamaOutput(logits=logits, past_key_values=past_key_values)

    def tie_weights(self) -> None:
        """Make the LM head's weight the embedding's, if the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Llama:
        # `to_empty` from meta makes a new Parameter per module, which would untie a shared one.
        super()._apply(fn, recurse)
        self.tie_weights()
        return self


def _is_elsewhere(parameter: nn.Parameter) -> bool:
    """Without memory, or in ZeRO-3's partitions."""
    return parameter.is_meta or hasattr(parameter, "ds_tensor")


def _check_shapes(input_ids: Tensor, **others: Tensor | None) -> None:
    for name, tensor in others.items():
        if tensor is not None and tensor.shape[-1] != input_ids.shape[-1]:
            raise ModelError(
                f"{name} has shape {tuple(tensor.shape)}, input_ids {tuple(input_ids.shape)}",
                where=name,
                remedy="give them one entry per token; labels are shifted inside the model",
            )


def _refuse(**others: object) -> None:
    for name, value in others.items():
        if value is not None:
            raise ModelError(
                f"document_lengths and {name} are both given",
                where=DOCUMENT_LENGTHS,
                remedy="give one of them; padding is a document of its own",
            )
