"""What is in a shard: counts, lengths, a decoded sample."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ds_llama.data.masks import open_mask
from ds_llama.data.shards import Shard
from ds_llama.data.tokenizer import Tokenizer, load_tokenizer
from ds_llama.errors import DataError


def summary(
    shard: Shard, tokenizer: Tokenizer | None = None, *, documents: int = 2, tokens: int = 64
) -> dict[str, Any]:
    """A JSON-ready description; with a tokenizer also the first `tokens` of some documents.

    `learnt_tokens` is null for a shard without a mask, of which all are. Reads the whole shard
    once, for the largest id.
    """
    largest, mask = shard.largest_id(), open_mask(shard)
    result = {
        "prefix": shard.prefix,
        "id_type": shard.dtype.name,
        "bytes": shard.bin_path.stat().st_size,
        "documents": shard.num_documents,
        "sequences": len(shard),
        "tokens": shard.num_tokens,
        "largest_id": largest,
        "learnt_tokens": _learnt_tokens(mask) if mask is not None else None,
        "lengths": _lengths(shard),
        "histogram": _histogram(shard),
    }
    if tokenizer is not None:
        result["samples"] = _samples(shard, tokenizer, largest, documents, tokens)
    return result


def _learnt_tokens(mask: Shard, chunk_tokens: int = 1 << 24) -> int:
    starts = range(0, mask.num_tokens, chunk_tokens)
    counts = (mask.read(s, min(chunk_tokens, mask.num_tokens - s)).sum() for s in starts)
    return sum(int(count) for count in counts)


def _lengths(shard: Shard) -> dict[str, float] | None:
    if not len(shard):
        return None
    marks = np.percentile(shard.sizes, [0, 10, 50, 90, 100])
    names = ("min", "p10", "median", "p90", "max")
    return {
        "mean": float(shard.sizes.mean()),
        **{n: float(m) for n, m in zip(names, marks, strict=True)},
    }


def _histogram(shard: Shard) -> list[dict[str, int]]:
    """Sequences by length, in buckets that double: [0, 1), [1, 2), [2, 4), [4, 8), ..."""
    longest = int(shard.sizes.max()) if len(shard) else 0
    edges = [0, *(1 << k for k in range(longest.bit_length() + 1))]
    counts, _ = np.histogram(shard.sizes, edges)
    # numpy counts the last edge into the last bucket; no length reaches it.
    rows = zip(pairwise(edges), counts, strict=True)
    return [{"from": a, "below": b, "sequences": int(c)} for (a, b), c in rows if c]


def _samples(
    shard: Shard, tokenizer: Tokenizer, largest: int, documents: int, tokens: int
) -> list[dict[str, Any]]:
    beside = tokenizer.path.with_name("tokenizer.json")
    if largest >= tokenizer.vocab_size and beside.is_file():  # it may add tokens, as chats need
        tokenizer = load_tokenizer(beside)
    if largest >= tokenizer.vocab_size:
        raise DataError(
            f"the shard holds token id {largest}, the tokenizer has {tokenizer.vocab_size} pieces",
            where=str(shard.bin_path),
            remedy="name the tokenizer that the shard was prepared with",
        )
    # Spread over the shard, so that the first file's licence header is not all there is to see.
    places = sorted({i * len(shard) // documents for i in range(documents)}) if len(shard) else []
    return [{"sequence": i, "text": tokenizer.decode(shard[i][:tokens].tolist())} for i in places]
