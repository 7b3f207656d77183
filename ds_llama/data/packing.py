"""Fixed-length windows over a shard's tokens, whatever documents they cut."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from ds_llama.data.masks import open_mask
from ds_llama.data.sample import IGNORED, Row, Sample
from ds_llama.data.shards import Shard
from ds_llama.errors import ConfigError, DataError


class PackedDataset:
    """Window i is `tokens[i*(T-1) : i*(T-1)+T]`, as a Sample of T tokens.

    Neighbours share one token, so that every token but the first is predicted exactly once:

        tokens    0 1 2 3 4 5 6 7 8 9        T = 4
        window 0  0 1 2 3                    predicts 1 2 3
        window 1        3 4 5 6              predicts 4 5 6
        window 2              6 7 8 9        predicts 7 8 9

    The at most T-2 tokens after the last whole window are left out. With `block_causal` a window is
    the documents, or parts of them, that lie in it, and no document's first token is learnt: what
    stands before it is another document's. Nor is what the shard's mask leaves out (`masks`).
    """

    def __init__(self, shard: Shard, sequence_length: int, *, block_causal: bool = False) -> None:
        check_length(sequence_length)
        if shard.num_tokens < sequence_length:
            raise DataError(
                f"the corpus has {shard.num_tokens} tokens, one window needs {sequence_length}",
                where=shard.prefix,
                remedy="prepare more text, a larger validation fraction if this is the validation "
                "shard, or set a smaller data.sequence_length",
            )
        self.shard, self.sequence_length, self._mask = shard, sequence_length, open_mask(shard)
        self.block_causal = block_causal

    def __len__(self) -> int:
        return (self.shard.num_tokens - 1) // (self.sequence_length - 1)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * (self.sequence_length - 1)
        ids, labels = read(self.shard, self._mask, start, self.sequence_length)
        if not self.block_causal:
            return Sample(ids, labels, (len(ids),))
        first = self._document_starts(start)
        labels[first] = IGNORED
        return Sample(ids, labels, self.lengths(index))

    def lengths(self, index: int) -> tuple[int, ...]:
        """`Sample.lengths` of a window, without reading its tokens."""
        if not self.block_causal:
            return (self.sequence_length,)
        first = self._document_starts(index * (self.sequence_length - 1))
        return tuple(np.diff([*first, self.sequence_length]).tolist())

    def _document_starts(self, start: int) -> list[int]:
        """Where documents begin in the window, its own beginning first; empty ones left out."""
        shard, end = self.shard, start + self.sequence_length
        document = bisect_right(range(shard.num_documents), start, key=shard.document_start)
        found = [0]
        while document < shard.num_documents and (border := shard.document_start(document)) < end:
            if border - start > found[-1]:
                found.append(border - start)
            document += 1
        return found

    def __repr__(self) -> str:
        return f"PackedDataset({self.shard.prefix!r}, sequence_length={self.sequence_length})"


def read(shard: Shard, mask: Shard | None, start_token: int, count: int) -> tuple[Row, Row]:
    """Ids of a part of the stream, and labels: the ids, -100 where the mask is 0; int64 both."""
    ids = shard.read(start_token, count).astype(np.int64)
    labels = ids.copy()
    if mask is not None:
        labels[mask.read(start_token, count) == 0] = IGNORED
    return ids, labels


def check_length(sequence_length: int) -> None:
    """ConfigError for rows in which nothing can be predicted."""
    if sequence_length < 2:
        raise ConfigError(
            f"a window of {sequence_length} tokens predicts nothing",
            where="data.sequence_length",
            remedy="set data.sequence_length to 2 or more",
        )
