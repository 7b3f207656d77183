"""Several documents in a row, and no attention from one to another.

Each document is a call of its own to a causal kernel, so that borders have to be known on the host.
`document_lengths`, a tensor on the CPU, says them without waiting for a device. Without it they are
read from `position_ids` that begin again, which waits; transformers finds documents in the same way
(masking_utils.py, `find_packed_sequence_indices`), and makes a dense mask of them.

Legend: B batch, T tokens, n documents of a row.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ds_llama.errors import ModelError

DOCUMENT_LENGTHS = "document_lengths"
Lengths = tuple[int, ...]


def find_lengths(
    given_Bn: Tensor | None, positions_BT: Tensor | None, shape: torch.Size
) -> Lengths | None:
    """Tokens of every document, row after row; None where every row is one document.

    given_Bn: int, each row's lengths and then zeros. Where it is None, a document begins at every
    position that is not above the one before it. Raises ModelError for lengths that do not fill
    rows of `shape`.
    """
    batch, tokens = shape
    if given_Bn is not None:
        rows = [[length for length in row if length] for row in given_Bn.tolist()]
        if len(rows) != batch or any(sum(row) != tokens or min(row) < 0 for row in rows):
            raise ModelError(
                f"document_lengths sum to {[sum(row) for row in rows]}, "
                f"input_ids has shape {(batch, tokens)}",
                where=DOCUMENT_LENGTHS,
                remedy="give the lengths of each row's documents, padding included, then zeros",
            )
    elif positions_BT is not None:
        rows = _begin_again(positions_BT.expand(batch, tokens))
    else:
        return None
    return None if all(len(row) == 1 for row in rows) else tuple(n for row in rows for n in row)


def _begin_again(positions_BT: Tensor) -> list[list[int]]:
    batch, tokens = positions_BT.shape
    borders: list[list[int]] = [[0] for _ in range(batch)]
    for row, before in (positions_BT[:, 1:] <= positions_BT[:, :-1]).nonzero().tolist():
        borders[row].append(before + 1)
    return [[b - a for a, b in pairwise([*row, tokens])] for row in borders]


def positions_of(lengths: Lengths, shape: torch.Size, device: torch.device) -> Tensor:
    """0, 1, 2, … from the beginning of each document, int64 (B, T)."""
    return torch.cat([torch.arange(length) for length in lengths]).view(shape).to(device)
