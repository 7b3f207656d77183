"""Fixed-length windows over a shard's tokens, across document borders."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ds_llama.data.shards import Shard
from ds_llama.errors import ConfigError, DataError


class PackedDataset:
    """Window i is `tokens[i*(T-1) : i*(T-1)+T]`: int64, T tokens.

    Neighbours share one token, so that every token but the first is predicted exactly once:

        tokens    0 1 2 3 4 5 6 7 8 9        T = 4
        window 0  0 1 2 3                    predicts 1 2 3
        window 1        3 4 5 6              predicts 4 5 6
        window 2              6 7 8 9        predicts 7 8 9

    The at most T-2 tokens after the last whole window are left out.
    """

    def __init__(self, shard: Shard, sequence_length: int) -> None:
        if sequence_length < 2:
            raise ConfigError(
                f"a window of {sequence_length} tokens predicts nothing",
                where="data.sequence_length",
                remedy="set data.sequence_length to 2 or more",
            )
        if shard.num_tokens < sequence_length:
            raise DataError(
                f"the corpus has {shard.num_tokens} tokens, one window needs {sequence_length}",
                where=shard.prefix,
                remedy="prepare more text, a larger validation fraction if this is the validation "
                "shard, or set a smaller data.sequence_length",
            )
        self.shard, self.sequence_length = shard, sequence_length

    def __len__(self) -> int:
        return (self.shard.num_tokens - 1) // (self.sequence_length - 1)

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = index * (self.sequence_length - 1)
        return self.shard.read(start, self.sequence_length).astype(np.int64)

    def __repr__(self) -> str:
        return f"PackedDataset({self.shard.prefix!r}, sequence_length={self.sequence_length})"
