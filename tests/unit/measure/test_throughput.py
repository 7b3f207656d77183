from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.measure.throughput import Throughput


def test_by_hand() -> None:
    """8 A100s, a 7B model: 6 x 7e9 FLOPs a token, 24,000 tokens/s."""
    row = Throughput(6 * 7e9, 8, 312e12).row(tokens=48_000, seconds=2.0)
    assert row["tokens_per_s"] == 24_000
    assert row["tokens_per_s_per_device"] == 3_000
    assert row["mfu"] == pytest.approx(3_000 * 42e9 / 312e12)  # 0.404


def test_unknown_peak_gives_null() -> None:
    assert Throughput(6e9, 2).row(100, 1.0)["mfu"] is None


def test_no_time_gives_null() -> None:
    assert set(Throughput(6e9, 2, 1e12).row(100, 0.0).values()) == {None}


@given(
    tokens=st.integers(1, 10**9),
    seconds=st.floats(1e-3, 1e5),
    world=st.integers(1, 4096),
)
def test_devices_add_up(tokens: int, seconds: float, world: int) -> None:
    row = Throughput(6e9, world, 1e15).row(tokens, seconds)
    each, total, mfu = row["tokens_per_s_per_device"], row["tokens_per_s"], row["mfu"]
    assert each is not None
    assert total == pytest.approx(each * world)
    assert mfu == pytest.approx(each * 6e9 / 1e15)
