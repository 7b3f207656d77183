from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.data import Shard, ShardWriter
from ds_llama.data.masks import mask_writer
from ds_llama.data.packing import PackedDataset
from ds_llama.errors import CallError, DataError
from ds_llama.evals.windows import Corpus, Strided, is_shard, read_shard


def stream(tokens: int) -> Corpus:
    """Token i is i + 1, so that padding is none of them."""
    return Corpus("stream", np.arange(1, tokens + 1, dtype=np.uint16), None)


SIZES = st.tuples(st.integers(2, 60), st.integers(2, 20)).flatmap(
    lambda pair: st.tuples(st.just(pair[0]), st.just(pair[1]), st.integers(1, pair[1]))
)


@settings(max_examples=40)
@given(SIZES)
def test_windows_are_those_of_the_well_known_loop(sizes: tuple[int, int, int]) -> None:
    tokens, length, stride = sizes
    windows, previous_end, index = Strided(stream(tokens), length, stride), 0, 0
    for begin in range(0, tokens, stride):
        end = min(begin + length, tokens)
        ids, labels = windows[index]
        held = list(range(begin + 1, end + 1))
        assert ids.tolist() == held + [0] * (len(ids) - len(held))
        expected = [token if token > previous_end else -100 for token in held]
        assert labels.tolist() == expected + [-100] * (len(ids) - len(held))
        previous_end, index = end, index + 1
        if end == tokens:
            break
    assert len(windows) == index
    with pytest.raises(IndexError):
        windows[index]


@settings(max_examples=40)
@given(SIZES)
def test_every_token_but_the_first_is_predicted_once(sizes: tuple[int, int, int]) -> None:
    tokens, length, stride = sizes
    windows = Strided(stream(tokens), length, min(stride, length - 1))
    labels = [labels[1:] for _, labels in (windows[i] for i in range(len(windows)))]
    predicted = Counter(label for row in labels for label in row.tolist() if label != -100)
    assert predicted == dict.fromkeys(range(2, tokens + 1), 1)


def test_the_default_is_what_a_run_validates_on_and_the_rest(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "shard", vocab_size=100) as shard:
        for start in (0, 20):
            shard.add(np.arange(start, start + 15))
    corpus = read_shard(tmp_path / "shard", None)
    assert (len(corpus.tokens), corpus.utf8_bytes) == (30, None)
    windows, packed = Strided(corpus, 9), PackedDataset(Shard(tmp_path / "shard"), 9)
    assert len(windows) == len(packed) + 1 == 4
    for index in range(len(packed)):
        assert windows[index][0].tolist() == packed[index].input_ids.tolist()
        assert windows[index][1][1:].tolist() == packed[index].labels[1:].tolist()


def test_what_a_shards_mask_leaves_out_does_not_count(tmp_path: Path) -> None:
    """As in the run's own validation, window by window."""
    with ShardWriter(tmp_path / "x", vocab_size=100) as shard, mask_writer(tmp_path / "x") as mask:
        for start in (0, 20):
            shard.add(np.arange(start, start + 15))
            mask.add([0] * 11 + [1] * 4)
    windows = Strided(read_shard(tmp_path / "x", None), 9)
    packed = PackedDataset(Shard(tmp_path / "x"), 9)
    for index in range(len(packed)):
        assert windows[index][1][1:].tolist() == packed[index].labels[1:].tolist()
    counted = [t for i in range(len(windows)) for t in windows[i][1].tolist() if t != -100]
    assert counted == [11, 12, 13, 14, 31, 32, 33, 34]


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_passes_tokens_over(stride: int) -> None:
    with pytest.raises(CallError) as caught:
        Strided(stream(30), 8, stride)
    assert caught.value.what == f"a stride of {stride} does not fit windows of 8 tokens"
    assert "give 1 to 8" in caught.value.remedy


def test_one_token_predicts_nothing() -> None:
    with pytest.raises(DataError, match="the data has 1 tokens, and nothing to predict"):
        Strided(stream(1), 8)


def test_a_shard_is_named_by_its_prefix_or_its_files(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "v1.0", vocab_size=10) as shard:
        shard.add([1, 2])
    for name in ("v1.0", "v1.0.bin", "v1.0.idx"):
        assert is_shard(tmp_path / name)
    (tmp_path / "text.txt").write_text("a")
    assert not is_shard(tmp_path / "text.txt")
    assert not is_shard(tmp_path)
