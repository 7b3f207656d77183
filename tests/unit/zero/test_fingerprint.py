from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.zero import fingerprint as module
from ds_llama.zero.fingerprint import MODULUS, fingerprint

SIZE = 3 * module._BLOCK + 1000


@pytest.fixture(scope="module")
def tensor() -> torch.Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(0))


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, SIZE), max_size=6))
def test_pieces_add_up_to_the_whole_wherever_it_is_cut(
    tensor: torch.Tensor, cuts: list[int]
) -> None:
    edges = [0, *sorted(cuts), SIZE]
    parts = [fingerprint(tensor[a:b], a) for a, b in pairwise(edges)]
    assert sum(parts) % MODULUS == fingerprint(tensor)


def test_the_formula_as_written(tensor: torch.Tensor) -> None:
    """Against Python integers, over a piece that spans two blocks."""
    start, count = module._BLOCK - 5, 11
    table = module._table(torch.device("cpu")).tolist()
    bits = tensor[start : start + count].view(torch.int32).tolist()
    expected = sum(
        (value + module._OFFSET)
        * table[i % module._BLOCK]
        * pow(module._FACTOR, i // module._BLOCK, MODULUS)
        for i, value in enumerate(bits, start)
    )
    assert fingerprint(tensor[start : start + count], start) == expected % MODULUS


def test_a_checkpoint_of_today_is_readable_tomorrow() -> None:
    """The table and the sum are part of the format of state.json."""
    table = module._table(torch.device("cpu")).numpy()
    assert hashlib.sha256(table.tobytes()).hexdigest() == TABLE
    assert fingerprint(torch.arange(1000, dtype=torch.float32)) == ARANGE


TABLE = "87e23170d589fa79dc0669415fcff875362ab315b4c4abe4859fbbcbc0377a49"
ARANGE = 50250424617562392


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("change", ["bit", "swap", "negative zero", "shift", "lost", "twice"])
def test_each_accident_changes_it(dtype: torch.dtype, change: str) -> None:
    tensor = torch.linspace(1, 2, 4096).to(dtype)
    tensor[7] = 0
    before = fingerprint(tensor)
    other = tensor.clone()
    if change == "bit":
        other.view(torch.uint8)[1234] ^= 1
    elif change == "swap":
        other[0], other[4095] = tensor[4095], tensor[0]
    elif change == "negative zero":
        other[7] = -0.0
    elif change == "shift":
        other = tensor.roll(1)
    elif change == "lost":
        other = tensor[:-1]
    else:
        other = torch.cat([tensor, tensor[:1]])
    assert fingerprint(other) != before


def test_missing_pieces_of_zeros_show() -> None:
    zeros = torch.zeros(10)
    assert fingerprint(zeros) != fingerprint(zeros[:5])
    assert fingerprint(zeros[:0]) == 0


def test_random_tensors_do_not_collide() -> None:
    rng = np.random.default_rng(0)
    seen = {
        fingerprint(torch.from_numpy(rng.integers(0, 2, 64).astype(np.float32)))
        for _ in range(2000)
    }
    assert len(seen) == 2000
