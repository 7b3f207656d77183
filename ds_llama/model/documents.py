"""Several documents in a row, and no attention from one to another.

Each document is a call of its own to a causal kernel, so that borders have to be known on the host:
`document_lengths`, a tensor on the CPU, says them without waiting for a device. `position_ids` that
begin again say nothing of the kind. transformers takes them for borders only when it makes no cache
(masking_utils.py, `find_packed_sequence_indices`), which by default it does.

Legend: B batch, T tokens, n documents of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ds_llama.errors import ModelError

DOCUMENT_LENGTHS = "document_lengths"
Lengths = tuple[int, ...]


def lengths_of(given_Bn: Tensor | None, shape: torch.Size) -> Lengths | None:
    """Tokens of every document, row after row; None where every row is one document.

    given_Bn: int, each row's lengths and then zeros. Raises ModelError for lengths that do not fill
    rows of `shape`, (B, T).
    """
    if given_Bn is None:
        return None
    batch, tokens = shape
    rows = [[length for length in row if length] for row in given_Bn.tolist()]
    if len(rows) != batch or any(sum(row) != tokens or min(row) < 0 for row in rows):
        raise ModelError(
            f"document_lengths sum to {[sum(row) for row in rows]}, "
            f"input_ids has shape {(batch, tokens)}",
            where=DOCUMENT_LENGTHS,
            remedy="give the lengths of each row's documents, padding included, then zeros",
        )
    return None if all(len(row) == 1 for row in rows) else tuple(n for row in rows for n in row)


def positions_of(lengths: Lengths, shape: torch.Size, device: torch.device) -> Tensor:
    """0, 1, 2, … from the beginning of each document, int64 (B, T)."""
    return torch.cat([torch.arange(length) for length in lengths]).view(shape).to(device)
