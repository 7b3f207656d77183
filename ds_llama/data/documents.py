"""Whole documents in rows: packed by best fit, or one in each. Attention never leaves one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ds_llama.data import best_fit
from ds_llama.data.masks import open_mask
from ds_llama.data.packing import check_length, read
from ds_llama.data.sample import IGNORED, Sample
from ds_llama.data.shards import Shard
from ds_llama.errors import DataError

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packed:
    """What became of a shard's documents, in rows of at most `sequence_length` tokens.

    cut: documents that were longer than a row. lost_tokens: those of theirs that are in no row.
    unlearnt: pieces that were left out, since nothing of them is learnt.
    """

    documents: int
    tokens: int
    rows: int
    sequence_length: int
    cut: int
    lost_tokens: int
    one_each: bool
    unlearnt: int = 0

    @property
    def waste(self) -> float:
        """Share of the rows' places that holds no token."""
        return 1 - self.tokens / (self.rows * self.sequence_length)

    def __str__(self) -> str:
        text = f"{self.documents:,} documents, {self.tokens:,} tokens in {self.rows:,} rows of "
        if self.one_each:
            text += f"at most {self.sequence_length:,}"
        else:
            text += f"{self.sequence_length:,}: {self.waste:.2%} empty"
        if self.cut:
            text += f"; {self.cut:,} longer than a row, {self.lost_tokens:,} tokens lost"
        if self.unlearnt:
            text += f"; {self.unlearnt:,} left out, of which nothing is learnt"
        return text


class DocumentDataset:
    """Rows of whole documents, of at most T tokens: int64, as Samples.

    packing: "best_fit" or "none", a document a row. truncation: of a document of more than T tokens
    "right" keeps the first T, "left" the last T, "drop" none of it, and "split" cuts it into pieces
    that share a token with their neighbours, as windows do, so that all but its first are learnt.
    Every piece is a document of its own, whose first token is not learnt, nor is what the shard's
    mask leaves out (`masks`); pieces of which nothing is learnt are in no row. Raises DataError for
    a shard that leaves no row.
    """

    block_causal = True

    def __init__(
        self, shard: Shard, sequence_length: int, packing: str, truncation: str = "right"
    ) -> None:
        check_length(sequence_length)
        self.shard, self.sequence_length, self.packing = shard, sequence_length, packing
        self._mask = open_mask(shard)
        borders = shard.document_borders()
        starts, sizes = borders[:-1], np.diff(borders)
        cut = int((sizes > sequence_length).sum())
        starts, pieces = _pieces(starts, sizes, sequence_length, truncation)
        lost = int(sizes.sum() - pieces.sum()) if truncation != "split" else 0
        learnt = _learnt(self._mask, starts, pieces)
        self._starts, self._sizes = starts[learnt], pieces[learnt]
        if not len(self._sizes):
            raise _nothing_left(shard, sequence_length, learns_nothing=len(pieces) > 0)
        pack = best_fit.pack if packing == "best_fit" else _apart
        self._rows = pack(self._sizes, sequence_length)
        self.packed = Packed(
            documents=int((sizes > 0).sum()),
            tokens=int(self._sizes.sum()),
            rows=len(self._rows),
            sequence_length=sequence_length,
            cut=cut,
            lost_tokens=lost,
            one_each=packing == "none",
            unlearnt=len(pieces) - len(self._sizes),
        )

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        pieces = self._pieces_of(index)
        sizes = self._sizes[pieces]
        parts = [
            read(self.shard, self._mask, start, size)
            for start, size in zip(self._starts[pieces].tolist(), sizes.tolist(), strict=True)
        ]
        ids, labels = (np.concatenate(rows) for rows in zip(*parts, strict=True))
        labels[np.cumsum(sizes) - sizes] = IGNORED
        return Sample(ids, labels, tuple(sizes.tolist()))

    def lengths(self, index: int) -> tuple[int, ...]:
        """`Sample.lengths` of a row, without reading its tokens."""
        return tuple(self._sizes[self._pieces_of(index)].tolist())

    def _pieces_of(self, index: int) -> Ints:
        return self._rows.order[self._rows.starts[index] : self._rows.starts[index + 1]]

    def __repr__(self) -> str:
        length = self.sequence_length
        return f"DocumentDataset({self.shard.prefix!r}, {length}, packing={self.packing!r})"


def _pieces(starts: Ints, sizes: Ints, most: int, truncation: str) -> tuple[Ints, Ints]:
    """First token and number of tokens of what is laid into rows; empty documents left out."""
    kept = sizes > 0 if truncation != "drop" else (sizes > 0) & (sizes <= most)
    starts, sizes = starts[kept], sizes[kept]
    if truncation == "split":
        counts = np.maximum(-(-(sizes - 1) // (most - 1)), 1)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        before = number * (most - 1)
        starts, sizes = np.repeat(starts, counts) + before, np.repeat(sizes, counts) - before
    elif truncation == "left":
        starts = starts + np.maximum(sizes - most, 0)
    return starts, np.minimum(sizes, most)


def _learnt(mask: Shard | None, starts: Ints, sizes: Ints) -> npt.NDArray[np.bool_]:
    """Of each piece, whether the mask has any of its tokens learnt; the first never is."""
    if mask is None:
        return np.ones(len(sizes), np.bool_)
    pieces = zip(starts.tolist(), sizes.tolist(), strict=True)
    found = (bool(mask.read(start + 1, size - 1).any()) for start, size in pieces)
    return np.fromiter(found, np.bool_, len(sizes))


def _nothing_left(shard: Shard, sequence_length: int, *, learns_nothing: bool) -> DataError:
    if learns_nothing:
        return DataError(
            f"nothing is learnt of what rows of {sequence_length} tokens hold of each document",
            where=shard.prefix,
            remedy='set a larger data.sequence_length, or data.truncation to "left" to keep the '
            "ends of chats",
        )
    return DataError(
        f"no document is left for rows of {sequence_length} tokens",
        where=shard.prefix,
        remedy='prepare more text, or set data.truncation to "right" if it is "drop"',
    )


def _apart(sizes: Ints, room: int) -> best_fit.Rows:
    return best_fit.Rows(np.arange(len(sizes)), np.arange(len(sizes) + 1))
