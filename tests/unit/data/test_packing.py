from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_llama.data.packing import PackedDataset
from ds_llama.errors import ConfigError, DataError
from tests.unit.data.conftest import write_shard


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(2, 20), data=st.data())
def test_every_token_but_the_first_is_predicted_once(
    tmp_path: Path, length: int, data: st.DataObject
) -> None:
    tokens = data.draw(st.integers(length, 200))
    windows = PackedDataset(write_shard(tmp_path / "x", tokens), length)
    predicted = Counter(int(t) for i in range(len(windows)) for t in windows[i][1:])
    whole = 1 + len(windows) * (length - 1)
    assert predicted == Counter(range(1, whole))
    assert 0 <= tokens - whole <= length - 2
    assert all(
        np.array_equal(np.diff(windows[i]), np.ones(length - 1)) for i in range(len(windows))
    )


def test_windows_are_int64_and_end_with_the_dataset(tmp_path: Path) -> None:
    windows = PackedDataset(write_shard(tmp_path / "x", 10), 4)
    assert windows[0].dtype == np.int64
    assert [windows[i].tolist() for i in range(len(windows))] == [
        [0, 1, 2, 3],
        [3, 4, 5, 6],
        [6, 7, 8, 9],
    ]
    with pytest.raises(IndexError, match="window 3 of 3"):
        windows[3]


def test_a_corpus_shorter_than_a_window_names_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        PackedDataset(write_shard(tmp_path / "x", 7), 8)
    assert caught.value.what == "the corpus has 7 tokens, one window needs 8"
    assert caught.value.where == str(tmp_path / "x")
    assert "data.sequence_length" in caught.value.remedy


def test_a_window_of_one_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a window of 1 tokens predicts nothing"):
        PackedDataset(write_shard(tmp_path / "x", 7), 1)
