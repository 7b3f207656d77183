from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_llama.data.packing import PackedDataset
from ds_llama.data.sample import IGNORED
from ds_llama.data.shards import Shard, ShardWriter
from ds_llama.errors import ConfigError, DataError
from tests.unit.data.conftest import write_shard


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(length=st.integers(2, 20), data=st.data())
def test_every_token_but_the_first_is_predicted_once(
    tmp_path: Path, length: int, data: st.DataObject
) -> None:
    tokens = data.draw(st.integers(length, 200))
    windows = PackedDataset(write_shard(tmp_path / "x", tokens), length)
    predicted = Counter(int(t) for i in range(len(windows)) for t in windows[i].labels[1:])
    whole = 1 + len(windows) * (length - 1)
    assert predicted == Counter(range(1, whole))
    assert 0 <= tokens - whole <= length - 2
    assert all(
        np.array_equal(np.diff(windows[i].input_ids), np.ones(length - 1))
        for i in range(len(windows))
    )


def test_windows_are_int64_and_end_with_the_dataset(tmp_path: Path) -> None:
    windows = PackedDataset(write_shard(tmp_path / "x", 10), 4)
    assert windows[0].input_ids.dtype == windows[0].labels.dtype == np.int64
    assert windows[0].lengths == (4,)
    assert [windows[i].input_ids.tolist() for i in range(len(windows))] == [
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


def documents(prefix: Path, lengths: list[int]) -> Shard:
    """A shard of these documents, whose ids count from 0 through all of them."""
    with ShardWriter(prefix, vocab_size=1 << 20) as writer:
        for end, length in zip(np.cumsum(lengths), lengths, strict=True):
            writer.add(np.arange(end - length, end))
    return Shard(prefix)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(lambda s: sum(s) > 12),
    length=st.integers(2, 12),
)
def test_kept_apart_all_but_first_tokens_are_learnt_once(
    tmp_path: Path, sizes: list[int], length: int
) -> None:
    windows = PackedDataset(documents(tmp_path / "x", sizes), length, block_causal=True)
    starts = {int(end - size) for end, size in zip(np.cumsum(sizes), sizes, strict=True) if size}
    learnt: Counter[int] = Counter()
    for index in range(len(windows)):
        ids, labels, lengths = windows[index]
        assert ids.tolist() == list(range(int(ids[0]), int(ids[0]) + length))
        assert sum(lengths) == length
        assert min(lengths) > 0
        begins = (np.cumsum(lengths) - lengths).tolist()
        assert [int(ids[b]) for b in begins[1:]] == sorted(starts & set(ids[1:].tolist()))
        assert (labels[begins] == IGNORED).all()
        learnt.update(int(label) for label in labels if label != IGNORED)
    whole = 1 + len(windows) * (length - 1)
    assert learnt == Counter(set(range(1, whole)) - starts)


def test_documents_of_several_sequences_are_not_cut_where_those_end(tmp_path: Path) -> None:
    """Megatron's `--split-sentences`: the index says which sequence a document begins with."""
    shard = documents(tmp_path / "x", [3, 2, 4, 1])
    shard.document_starts = np.array([0, 2, 4])
    assert shard.document_borders().tolist() == [0, 5, 10]
    windows = PackedDataset(shard, 10, block_causal=True)
    assert windows[0].lengths == (5, 5)
    shard.document_starts = np.array([0, 1, 2, 3, 4])  # sabotage is seen
    assert windows[0].lengths == (3, 2, 4, 1)
