"""A mask and the shard that it belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ds_llama.data.masks import mask_writer, open_mask
from ds_llama.data.shards import Shard, ShardWriter
from ds_llama.errors import DataError


def shard(prefix: Path, *sizes: int) -> Shard:
    with ShardWriter(prefix, vocab_size=100) as writer:
        for size in sizes:
            writer.add(np.arange(size))
    return Shard(prefix)


def mask(prefix: Path, *documents: list[int]) -> None:
    with mask_writer(prefix) as writer:
        for values in documents:
            writer.add(values)


def test_a_mask_is_read_like_its_shard(tmp_path: Path) -> None:
    ids = shard(tmp_path / "x", 3, 0, 2)
    assert open_mask(ids) is None
    mask(tmp_path / "x.bin", [0, 1, 1], [], [0, 1])
    found = open_mask(ids)
    assert found is not None
    assert found.dtype == np.uint8
    assert found.bin_path.stat().st_size == ids.num_tokens
    assert [found[i].tolist() for i in range(3)] == [[0, 1, 1], [], [0, 1]]
    assert found.read(2, 3).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("documents", "what"),
    [
        ([[0, 1, 1]], "the mask has 1 documents in 1 sequences, its shard 2 in 2"),
        ([[0, 1, 1], [0]], "the mask has 1 tokens in sequence 1, its shard 2"),
    ],
)
def test_a_mask_of_other_documents(tmp_path: Path, documents: list[list[int]], what: str) -> None:
    ids = shard(tmp_path / "x", 3, 2)
    mask(tmp_path / "x", *documents)
    with pytest.raises(DataError) as caught:
        open_mask(ids)
    assert caught.value.what == what
    assert caught.value.where == str(tmp_path / "x-mask.idx")
    assert "remove the mask's two files to learn every token" in caught.value.remedy


def test_a_mask_that_is_none(tmp_path: Path) -> None:
    ids = shard(tmp_path / "x", 3, 2)
    shard(tmp_path / "x-mask", 3, 2)
    with pytest.raises(DataError, match="the mask holds uint16, a mask uint8"):
        open_mask(ids)
    (tmp_path / "x-mask.idx").unlink()
    with pytest.raises(DataError, match=r"there is no token shard file x-mask\.idx"):
        open_mask(ids)


def test_a_mask_holds_zero_and_one(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="id 2 does not fit a vocabulary of 2"),
        mask_writer(tmp_path / "x") as writer,
    ):
        writer.add([0, 2])
