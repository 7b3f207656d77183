"""What a dataset gives, whichever way it was packed: one row of tokens and what is learnt of it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

IGNORED = -100

Row = npt.NDArray[np.int64]


class Sample(NamedTuple):
    """A row: int64 arrays of T tokens, and the documents that they are.

    labels: the tokens themselves where they are learnt, -100 elsewhere; not shifted, the model does
    that (Hugging Face's convention). lengths: tokens of each document in the row, in order, T
    together; `(T,)` where attention crosses borders.
    """

    input_ids: Row
    labels: Row
    lengths: tuple[int, ...]


class Dataset(Protocol):
    """Rows by their index. block_causal: attention ends at the documents' borders."""

    block_causal: bool

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sample: ...
    def lengths(self, index: int, /) -> tuple[int, ...]:
        """`Sample.lengths` of a row, without reading its tokens."""
