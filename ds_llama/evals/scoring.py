"""What a model makes of rows: how likely it finds each choice, or what it writes.

With a process group all of this is collective: every rank calls it with the same rows, batch i is
rank i mod world's, and every rank has the result of all. Batches are those of one process, and so
is what comes out.

Legend: B batch, T tokens of its longest sequence.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from ds_llama.data.rows import Pair, Row, encode_pair, encode_prompt
from ds_llama.data.tokenizer import Tokenizer
from ds_llama.errors import DataError, ModelError
from ds_llama.evals.asking import (
    config_of,
    device_of,
    eval_mode,
    from_all,
    idle_pass,
    is_partitioned,
    rank_and_world,
)
from ds_llama.evals.complete import positions
from ds_llama.evals.generate import generate
from ds_llama.model.loss import IGNORE_INDEX


def choice_loglikelihoods(
    model: Any, coder: Tokenizer, rows: Sequence[Row], *, batch_size: int
) -> list[list[float]]:
    """For every choice of every row log p(choice | prompt) in nats, the sum over its tokens.

    model: a `ds_llama.model.Llama`, or a DeepSpeed engine of one. Raises DataError, before the
    first forward pass, for a row that the model cannot hold, ModelError for a token id that it does
    not have.
    """
    config = config_of(model)
    pairs = [[_encoded(coder, row, choice) for choice in row.choices] for row in rows]
    for row, of_row in zip(rows, pairs, strict=True):
        longest = max(len(context) + len(choice) for context, choice in of_row)
        _require_room(row, longest, positions(config), "the prompt with a choice")
    flat = [pair for of_row in pairs for pair in of_row]
    _require_known([i for context, choice in flat for i in (*context, *choice)], config.vocab_size)
    flat_found = iter(loglikelihoods(model, flat, batch_size=batch_size))
    found = [[next(flat_found) for _ in of_row] for of_row in pairs]
    for row, values in zip(rows, found, strict=True):
        if any(map(math.isnan, values)):
            raise ModelError(
                "the model finds a choice NaN likely: its weights are not finite",
                where=row.where,
                remedy="evaluate an earlier checkpoint, and look at the loss in metrics.jsonl",
            )
    return found


def written_answers(
    model: Any,
    coder: Tokenizer,
    rows: Sequence[Row],
    *,
    batch_size: int,
    max_new_tokens: int,
    eos: Collection[int],
) -> list[str]:
    """The first line that the model writes after each prompt, greedily, without white space around.

    Raises DataError for a row whose prompt and answer the model cannot hold.
    """
    prompts = [encode_prompt(coder, row.prompt) for row in rows]
    limit = positions(config_of(model))
    what = f"the prompt with {max_new_tokens} new tokens"
    for row, ids in zip(rows, prompts, strict=True):
        _require_context(row, ids)
        _require_room(row, len(ids) + max_new_tokens, limit, what)
    batches = _by_length([len(ids) for ids in prompts], batch_size)

    def write() -> dict[int, str]:
        mine = [i for batch in _of_this_rank(batches) for i in batch]
        new = generate(
            model,
            [prompts[i] for i in mine],
            max_new_tokens=max_new_tokens,
            eos=eos,
            vocab_size=coder.vocab_size,
            batch_size=batch_size,
        )
        return {i: _first_line(coder, prompts[i], more) for i, more in zip(mine, new, strict=True)}

    written = from_all(write)
    return [written[i] for i in range(len(rows))]


def _first_line(coder: Tokenizer, prompt: list[int], new: list[int]) -> str:
    text = coder.decode([*prompt, *new])[len(coder.decode(prompt)) :]
    return text.strip().partition("\n")[0].rstrip()


def _encoded(coder: Tokenizer, row: Row, choice: str) -> Pair:
    pair = encode_pair(coder, row, choice)
    _require_context(row, pair[0])
    return pair


@torch.no_grad()
def loglikelihoods(model: Any, pairs: Sequence[Pair], *, batch_size: int) -> list[float]:
    """log p(continuation | context) in nats for each pair; both have at least one token.

    Sequences of like length share a batch, padded at the right, where no token of theirs looks.
    """
    batches = _by_length([len(context) + len(more) for context, more in pairs], batch_size)
    device = device_of(model)

    def score() -> dict[int, float]:
        found: dict[int, float] = {}
        mine = _of_this_rank(batches)
        for batch in mine:
            ids_BT, labels_BT = _right_padded([pairs[i] for i in batch])
            loss_BT = model(
                input_ids=ids_BT.to(device), labels=labels_BT.to(device), reduction="none"
            ).loss
            totals = loss_BT.cpu().double().sum(dim=1).tolist()
            found |= {i: -total for i, total in zip(batch, totals, strict=True)}
        if is_partitioned(model):
            for _ in range(math.ceil(len(batches) / rank_and_world()[1]) - len(mine)):
                idle_pass(model, device)
        return found

    with eval_mode(model):
        values = from_all(score)
    return [values[i] for i in range(len(pairs))]


def _of_this_rank(batches: list[list[int]]) -> list[list[int]]:
    rank, world = rank_and_world()
    return batches[rank::world]


def _right_padded(pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    """Ids and labels, int64 (B, T); labels of continuations only."""
    longest = max(len(context) + len(more) for context, more in pairs)
    ids = torch.zeros(len(pairs), longest, dtype=torch.int64)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for row, (context, more) in enumerate(pairs):
        end = len(context) + len(more)
        ids[row, :end] = torch.tensor([*context, *more])
        labels[row, len(context) : end] = torch.tensor(more)
    return ids, labels


def _by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first: what does not fit is seen at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _require_context(row: Row, ids: Sequence[int]) -> None:
    if not ids:
        raise DataError(
            "the prompt has no tokens, and the tokenizer no BOS token to go on from",
            where=row.where,
            remedy="write some text into the prompt",
        )


def _require_room(row: Row, tokens: int, limit: int, what: str) -> None:
    if tokens > limit:
        raise DataError(
            f"{what} takes {tokens} tokens, and the model holds {limit}",
            where=row.where,
            remedy="shorten the row, or generate less (--max-new-tokens) if that is what is asked",
        )


def _require_known(ids: Sequence[int], vocab_size: int) -> None:
    if max(ids) >= vocab_size:
        raise ModelError(
            f"token id {max(ids)} is outside the model's vocabulary of {vocab_size}",
            where="--tokenizer",
            remedy="use the tokenizer that the model was trained with",
        )
