from __future__ import annotations

import pytest

from ds_llama.measure.throughput import mfu


def test_by_hand() -> None:
    """An A100 at 3,000 tokens/s on a 7B model: 6 x 7e9 FLOPs a token of 312e12 FLOP/s."""
    assert mfu(3_000, 6 * 7e9, 312e12) == pytest.approx(0.40385, abs=1e-5)


def test_an_unknown_peak_gives_null() -> None:
    assert mfu(3_000, 6 * 7e9, None) is None
