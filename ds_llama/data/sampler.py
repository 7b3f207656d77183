"""Which sample comes when: a pure function of (seed, global sample index), in O(1) memory.

A list of n shuffled indices is not needed: `permute` is a keyed bijection of range(n), so the order
of an epoch is computed where it is asked for, and resuming is one integer.
"""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import Protocol

from ds_llama.config.run import TrainConfig
from ds_llama.errors import DataError

_ROUNDS = 8
_MASK = (1 << 64) - 1


def mix(value: int) -> int:
    """splitmix64's finaliser (Steele, Lea, Flood, OOPSLA 2014): 64 bits in, 64 well mixed out."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


@lru_cache(maxsize=256)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    state = mix(mix(seed & _MASK) ^ (epoch & _MASK))
    keys = []
    for _ in range(_ROUNDS):
        state = mix(state)
        keys.append(state)
    return tuple(keys)


def permute(index: int, n: int, seed: int, epoch: int) -> int:
    """The `index`-th element of the permutation of range(n) that (seed, epoch) names.

    A Feistel network over a x b >= n cells, each half moved by a keyed hash of the other: every
    round can be undone, so the whole is a bijection of the cells. A result of n or more is walked
    on until it falls below n, which keeps it one (Black and Rogaway, "Ciphers with Arbitrary Finite
    Domains", 2002). Fewer than a of the a x b cells lie outside, so a walk is rare.
    """
    if not 0 <= index < n:
        raise IndexError(f"sample {index} of {n}")
    rows = isqrt(n - 1) + 1
    columns = -(-n // rows)
    keys = _round_keys(seed, epoch)
    while True:
        row, column = divmod(index, columns)
        for k in range(0, _ROUNDS, 2):
            row = (row + mix(keys[k] ^ column)) % rows
            column = (column + mix(keys[k + 1] ^ row)) % columns
        index = row * columns + column
        if index < n:
            return index


class Order(Protocol):
    """Dataset index of each sample since training began; `length` samples are an epoch.

    end: how many samples there are, None for any number.
    """

    length: int
    end: int | None

    def index(self, global_sample_index: int) -> int: ...


class Sampler:
    """The endless order over a dataset of `length` samples: each epoch a permutation of its own."""

    end: int | None = None

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed

    def index(self, global_sample_index: int) -> int:
        """Dataset index of the sample that is `global_sample_index`-th since training began."""
        epoch, position = divmod(global_sample_index, self.length)
        return permute(position, self.length, self.seed, epoch)

    def __len__(self) -> int:
        return self.length


def samples_asked(train: TrainConfig, order: Order) -> int:
    """Samples of a run from its first to its last step, by `train.steps` or else `train.epochs`.

    `train` is a resolved run's, which has one of the two and the batch.
    """
    if train.steps is not None:
        return train.steps * (train.global_batch_size or 1)
    return max(1, round((train.epochs or 1.0) * order.length))


def check_enough(order: Order, samples: int) -> None:
    """Raise DataError where `max_epochs` of all corpora together allow fewer samples."""
    if order.end is None or samples <= order.end:
        return
    raise DataError(
        f"the run takes {samples} samples, and the corpora give {order.end} within their "
        "max_epochs",
        where="data.train",
        remedy="lower train.steps or train.epochs, raise max_epochs, or leave it out of one corpus",
    )
