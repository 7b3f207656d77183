"""A checksum of a tensor that can be added up from its pieces.

    f(x) = sum over elements i of (bits(x_i) + C) * W[i mod B] * K^(i div B)   modulo 2^64

bits: the element's memory as a signed integer, so that 0.0 and -0.0 differ. W: B fixed odd random
numbers; C, K: fixed and odd. The index i counts in the whole tensor, so that a rank computes the
sum over the slice that it holds, and the sum over ranks is the tensor's, however it is divided:
one number is comparable across ZeRO stages and world sizes. It finds accidents (an element lost,
changed, moved or counted twice); it is no protection against malice, which the manifest's SHA-256
of the files is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

MODULUS = 1 << 64
_BLOCK = 1 << 18
_OFFSET = -0x61C8864680B583EB  # odd, 2^64 divided by the golden ratio, as a signed number
_FACTOR = 0xD1342543DE82EF95
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(flat: torch.Tensor, start: int = 0) -> int:
    """The sum over a 1-D piece that begins at element `start` of its tensor: 0 … 2^64 - 1.

    Holds 4 MiB beside the piece, on its device.
    """
    bits = flat.detach().contiguous().view(_BITS[flat.element_size()])
    table = _table(flat.device)
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    done = 0
    while done < bits.numel():
        block, within = divmod(start + done, _BLOCK)
        count = min(_BLOCK - within, bits.numel() - done)
        values = bits[done : done + count].to(torch.int64).add_(_OFFSET)
        # Integer arithmetic of torch wraps, which is arithmetic modulo 2^64.
        values.mul_(table[within : within + count])
        total += values.sum() * _signed(pow(_FACTOR, block, MODULUS))
        done += count
    return int(total) % MODULUS


def _signed(value: int) -> int:
    return value - MODULUS if value >= MODULUS // 2 else value


@lru_cache(maxsize=4)
def _table(device: torch.device) -> torch.Tensor:
    """W: the splitmix64 sequence, made odd (Steele et al. 2014, "Fast splittable generators")."""
    with np.errstate(over="ignore"):
        z = np.arange(1, _BLOCK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) | np.uint64(1)
    return torch.from_numpy(z.view(np.int64)).to(device)
