"""Which tokens of a shard are learnt: a shard of uint8 beside it, of the same documents.

    PREFIX.bin  PREFIX.idx              ids
    PREFIX-mask.bin  PREFIX-mask.idx    1 where the token is learnt, 0 where it is only read

A shard without such a neighbour is learnt whole.
"""

from __future__ import annotations

import os

import numpy as np

from ds_llama.data.shards import Shard, ShardWriter, paths_of
from ds_llama.errors import DataError

MASK_DTYPE = np.dtype("<u1")


def mask_prefix(prefix: str | os.PathLike[str]) -> str:
    return os.fspath(paths_of(prefix)[0])[: -len(".bin")] + "-mask"


def mask_writer(prefix: str | os.PathLike[str]) -> ShardWriter:
    """Writes the mask of the shard `prefix`: 0 and 1, document by document."""
    return ShardWriter(mask_prefix(prefix), vocab_size=2, dtype=MASK_DTYPE)


def open_mask(shard: Shard) -> Shard | None:
    """The mask of a shard, read like it (`mask[i]`, `mask.read`), uint8; None if it has none.

    Raises `DataError` for a mask that is damaged, or of other documents than the shard's.
    """
    prefix = mask_prefix(shard.prefix)
    if not any(path.exists() for path in paths_of(prefix)):
        return None
    mask = Shard(prefix)
    if mask.dtype != MASK_DTYPE:
        raise _foreign(f"holds {mask.dtype.name}, a mask uint8", mask)
    if len(mask) != len(shard) or not np.array_equal(mask.document_starts, shard.document_starts):
        raise _foreign(
            f"has {mask.num_documents} documents in {len(mask)} sequences, "
            f"its shard {shard.num_documents} in {len(shard)}",
            mask,
        )
    differing = np.flatnonzero(mask.sizes != shard.sizes)
    if len(differing):
        first = int(differing[0])
        raise _foreign(
            f"has {mask.sizes[first]} tokens in sequence {first}, its shard {shard.sizes[first]}",
            mask,
        )
    return mask


def _foreign(what: str, mask: Shard) -> DataError:
    return DataError(
        f"the mask {what}",
        where=str(mask.idx_path),
        remedy="prepare the records again with `ds-llama data prepare`, or remove the mask's two "
        "files to learn every token",
    )
