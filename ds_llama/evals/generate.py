"""Token ids from a model: prompts in, continuations out, one forward pass a token.

Legend: B batch (prompts that run at once), T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ds_llama.errors import CallError, ModelError, RunError
from ds_llama.evals.asking import (
    any_rank,
    config_of,
    device_of,
    eval_mode,
    idle_pass,
    is_partitioned,
)
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
    batch_size: int | None = None,
    on_token: Callable[[int, int], bool] | None = None,
) -> list[list[int]]:
    """What `model` adds to each prompt, at most `max_new_tokens` ids, ending with the first `eos`.

    model: a `ds_llama.model.Llama`, or a DeepSpeed engine of one; in eval mode for the time being.
    prompts: token ids, of any lengths above 0; `batch_size` of them (all by default) run at once,
    shorter ones padded at their left. What is drawn for a prompt depends on the seed and its place
    among the prompts; greedy tokens depend on the prompt alone, up to rounding. vocab_size: the
    tokenizer's, where the model's own is padded to a rounder number; ids beyond it are not drawn.
    on_token: called with (index of the prompt, token) for each; True ends that text.

    At ZeRO-3 every rank has to call this, each with prompts of its own, or none, and with limits of
    its own: all go on until the last is done. An error on one rank is raised at that end, and as a
    RunError on the others.
    Raises CallError for an empty prompt, ModelError for an id that the model does not have, and for
    logits that are not finite.
    """
    asked = _Asked(model, prompts, max_new_tokens, sampling, eos, vocab_size, on_token)
    new: list[list[int]] = [[] for _ in prompts]
    with eval_mode(model):
        at_once = max(len(prompts), 1) if batch_size is None else batch_size
        work = _passes(asked, at_once, new)
        if is_partitioned(model):
            _in_step(model, work)
        else:
            for _ in work:
                pass
    return new


class _Asked(NamedTuple):
    model: Any
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    sampling: Sampling
    eos: Collection[int]
    vocab_size: int | None
    on_token: Callable[[int, int], bool] | None


def _in_step(model: Any, work: Iterator[None]) -> None:
    """Run `work`, which stops before each forward pass, on all ranks, pass by pass.

    A forward pass gathers every layer from all ranks, so one whose work is done, or has failed,
    makes passes that nobody reads until all are done.
    """
    device = device_of(model)
    wants, failure = _advance(work)
    while any_rank(wants, device):
        if wants:
            wants, failure = _advance(work)
        else:
            idle_pass(model, device)
    if any_rank(failure is not None, device):
        raise failure or RunError(
            "another rank could not generate", where="generate", remedy="see that rank's error"
        )


def _advance(work: Iterator[None]) -> tuple[bool, Exception | None]:
    """Whether `work` stands before another forward pass, and what went wrong on the way there."""
    try:
        next(work)
    except StopIteration:
        return False, None
    except Exception as error:
        return False, error
    return True, None


def _passes(asked: _Asked, batch_size: int, new: list[list[int]]) -> Iterator[None]:
    """Generate into `new`; yields before each forward pass."""
    _check(asked.prompts, asked.max_new_tokens, batch_size, config_of(asked.model).vocab_size)
    seeds = asked.sampling.seeds(len(asked.prompts))
    for start in range(0, len(asked.prompts), batch_size):
        rows = range(start, min(start + batch_size, len(asked.prompts)))
        yield from _batch(asked, rows, [seeds[row] for row in rows], new)


def _batch(asked: _Asked, rows: range, seeds: list[int], new: list[list[int]]) -> Iterator[None]:
    """Some prompts, all at once; a row that has ended goes on unread until the last one does."""
    device = device_of(asked.model)
    ids_BT, mask_BT = _left_padded([asked.prompts[row] for row in rows], device)
    # the position of a token in its own prompt, whatever stands at its left
    position_BT = (mask_BT.cumsum(dim=-1) - 1).clamp(min=0)
    cache = Cache(max_length=ids_BT.shape[1] + asked.max_new_tokens)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    seen_BV = _seen(asked, rows, device)
    running = set(rows) if asked.max_new_tokens else set()
    while running:
        yield
        logits_B1V = asked.model(
            ids_BT,
            attention_mask=mask_BT,
            position_ids=position_BT,
            past_key_values=cache,
            logits_to_keep=1,
        ).logits
        next_B = asked.sampling.choose(logits_B1V[:, -1, : asked.vocab_size], generators, seen_BV)
        for row, token in zip(rows, next_B.tolist(), strict=True):
            if row in running and _is_last(asked, row, token, new[row]):
                running.remove(row)
        ids_BT = next_B.clamp(min=0)[:, None]
        if seen_BV is not None:
            seen_BV.scatter_(1, ids_BT, True)
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)
        position_BT = position_BT[:, -1:] + 1


def _is_last(asked: _Asked, row: int, token: int, new: list[int]) -> bool:
    """Take the token of a text that still goes on; whether it goes no further."""
    if token < 0:
        raise ModelError(
            f"what the model says after {len(new)} new tokens is not finite",
            where=f"prompt {row + 1}",
            remedy="take an earlier checkpoint, for this one's weights hold NaN or infinity",
        )
    new.append(token)
    told = asked.on_token is not None and asked.on_token(row, token)
    return told or token in asked.eos or len(new) == asked.max_new_tokens


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, int64 (B, T); id 0 where there is no token."""
    longest = max(len(prompt) for prompt in prompts)
    gaps = [longest - len(prompt) for prompt in prompts]
    pairs = list(zip(gaps, prompts, strict=True))
    ids = torch.tensor([[0] * gap + list(prompt) for gap, prompt in pairs], device=device)
    mask = torch.tensor([[0] * gap + [1] * len(prompt) for gap, prompt in pairs], device=device)
    return ids, mask


def _seen(asked: _Asked, rows: range, device: torch.device) -> Tensor | None:
    """Which tokens each prompt has, bool (B, V); None where no penalty asks for it."""
    if asked.sampling.repetition_penalty == 1:
        return None
    width = config_of(asked.model).vocab_size
    seen = torch.zeros(len(rows), width, dtype=torch.bool, device=device)
    for place, row in enumerate(rows):
        seen[place, torch.tensor(asked.prompts[row], device=device)] = True
    return seen[:, : asked.vocab_size]


def _check(
    prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int, vocab_size: int
) -> None:
    for name, value, least in (
        ("max-new-tokens", max_new_tokens, 0),
        ("batch-size", batch_size, 1),
    ):
        if value < least:
            raise CallError(f"{name} is {value}", where=f"--{name}", remedy=f"give {least} or more")
    if not all(prompts):
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
