"""Text from a model: prompts in, continuations out, one forward pass a token.

Legend: B batch (prompts), T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ds_llama.errors import CallError, ModelError
from ds_llama.evals.sampling import Sampling
from ds_llama.model.cache import Cache

_GREEDY = Sampling()


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = _GREEDY,
    eos: Collection[int] = (),
    vocab_size: int | None = None,
) -> list[list[int]]:
    """What `model` adds to each prompt, at most `max_new_tokens` ids, ending with the first `eos`.

    model: a `ds_llama.model.Llama` in eval mode. prompts: token ids, of any lengths above 0; they
    run as one batch, shorter ones padded at their left. Sampled tokens depend on the whole batch
    and the seed; greedy ones on their prompt alone, up to rounding. vocab_size: the tokenizer's,
    where the model's own is padded to a rounder number; ids beyond it are not drawn.
    Raises CallError for an empty prompt, ModelError for an id that the model does not have.
    """
    _check(prompts, max_new_tokens, model.config.vocab_size)
    device = next(model.parameters()).device
    ids_BT, mask_BT = _left_padded(prompts, device)
    # the position of a token in its own prompt, whatever stands at its left
    position_BT = (mask_BT.cumsum(dim=-1) - 1).clamp(min=0)
    cache = Cache(max_length=ids_BT.shape[1] + max_new_tokens)
    generator = sampling.generator()
    new: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts))) if max_new_tokens else set()
    while running:
        logits_B1V = model(
            ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits
        next_B = sampling.choose(logits_B1V[:, -1, :vocab_size], generator)
        for row, token in enumerate(next_B.tolist()):
            if row in running:
                new[row].append(token)
                if token in eos or len(new[row]) == max_new_tokens:
                    running.remove(row)
        # rows that have ended go on unread until the last one does
        ids_BT = next_B[:, None]
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(prompts), 1)], dim=1)
        position_BT = position_BT[:, -1:] + 1
    return new


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 (B, T); id 0 where there is no token."""
    longest = max(len(prompt) for prompt in prompts)
    gaps = [longest - len(prompt) for prompt in prompts]
    pairs = list(zip(gaps, prompts, strict=True))
    ids = torch.tensor([[0] * gap + list(prompt) for gap, prompt in pairs], device=device)
    mask = torch.tensor([[0] * gap + [1] * len(prompt) for gap, prompt in pairs], device=device)
    return ids, mask


def _check(prompts: Sequence[Sequence[int]], max_new_tokens: int, vocab_size: int) -> None:
    if max_new_tokens < 0:
        raise CallError(
            f"max-new-tokens is {max_new_tokens}", where="--max-new-tokens", remedy="give 0 or more"
        )
    if not prompts or not all(prompts):
        raise CallError(
            "a prompt has no tokens",
            where="--prompt",
            remedy="write some text; a tokenizer with a BOS token also takes an empty prompt",
        )
    beyond = [i for prompt in prompts for i in prompt if not 0 <= i < vocab_size]
    if beyond:
        raise ModelError(
            f"token id {beyond[0]} is outside the model's vocabulary of {vocab_size}",
            where="--tokenizer",
            remedy="use the tokenizer that the model was trained with",
        )
