from __future__ import annotations

import pickle
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_llama.data.shards import HEADER_BYTES, Shard, ShardWriter, check_vocabulary, id_dtype
from ds_llama.errors import DataError
from tests.unit.data.conftest import write_shard

# Written by megatron-core 0.16.1's IndexedDatasetBuilder.
UINT16_DOCUMENTS = [[1, 2, 3], [65498], [4, 5]]
UINT16_BIN = bytes.fromhex("010002000300daff04000500")
UINT16_IDX = bytes.fromhex(
    "4d4d494449445800000100000000000000080300000000000000040000000000000003000000010000000200000"
    "00000000000000000060000000000000008000000000000000000000000000000010000000000000002000000000"
    "000000300000000000000"
)
# Two documents, the second of two sequences, as Megatron writes sentence-split text.
INT32_SEQUENCES = [[70000], [7], [8, 9]]
INT32_BIN = bytes.fromhex("70110100070000000800000009000000")
INT32_IDX = bytes.fromhex(
    "4d4d494449445800000100000000000000040300000000000000030000000000000001000000010000000200000"
    "00000000000000000040000000000000008000000000000000000000000000000010000000000000003000000000"
    "00000"
)


def test_bytes_are_those_that_megatron_writes(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "x", vocab_size=65499) as writer:
        for ids in UINT16_DOCUMENTS:
            writer.add(ids)
    assert (tmp_path / "x.bin").read_bytes() == UINT16_BIN
    assert (tmp_path / "x.idx").read_bytes() == UINT16_IDX


@pytest.mark.parametrize(
    ("data", "index", "sequences", "documents"),
    [
        (UINT16_BIN, UINT16_IDX, UINT16_DOCUMENTS, 3),
        (INT32_BIN, INT32_IDX, INT32_SEQUENCES, 2),
    ],
)
def test_what_megatron_wrote_is_read(
    tmp_path: Path, data: bytes, index: bytes, sequences: list[list[int]], documents: int
) -> None:
    (tmp_path / "x.bin").write_bytes(data)
    (tmp_path / "x.idx").write_bytes(index)
    shard = Shard(tmp_path / "x")
    assert [shard[i].tolist() for i in range(len(shard))] == sequences
    assert shard.num_documents == documents
    assert shard.read(0, shard.num_tokens).tolist() == list(chain(*sequences))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    vocab_size=st.sampled_from([10, 65499, 65500, 1 << 20]),
    documents=st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=12),
)
def test_round_trip(tmp_path: Path, vocab_size: int, documents: list[list[int]]) -> None:
    documents = [*documents, [vocab_size - 1]]
    with ShardWriter(tmp_path / "x", vocab_size=vocab_size) as writer:
        for ids in documents:
            writer.add(ids)
    shard = Shard(tmp_path / "x.idx")
    flat = list(chain(*documents))
    assert [shard[i].tolist() for i in range(len(shard))] == documents
    assert (shard.num_tokens, shard.num_documents) == (len(flat), len(documents))
    assert (
        shard.read(len(flat) // 3, len(flat) // 2).tolist()
        == flat[len(flat) // 3 :][: len(flat) // 2]
    )
    assert shard.largest_id(chunk_tokens=3) == vocab_size - 1


def test_id_type_changes_where_megatron_changes_it() -> None:
    assert (id_dtype(65499).name, id_dtype(65500).name) == ("uint16", "int32")


def test_a_shard_without_documents_can_be_written_and_read(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "x", vocab_size=10):
        pass
    shard = Shard(tmp_path / "x")
    assert (len(shard), shard.num_documents, shard.num_tokens, shard.largest_id()) == (0, 0, 0, -1)


def test_pickled_shard_maps_the_file_again(tmp_path: Path) -> None:
    shard = pickle.loads(pickle.dumps(write_shard(tmp_path / "x", 9)))
    assert shard.read(3, 2).tolist() == [3, 4]


def test_reading_beyond_the_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IndexError, match=r"8\+2 is beyond 9 tokens"):
        write_shard(tmp_path / "x", 9).read(8, 2)


@pytest.mark.parametrize("ids", [[3, 10], [-1, 3]])
def test_an_id_beyond_the_vocabulary_is_not_written(tmp_path: Path, ids: list[int]) -> None:
    with pytest.raises(DataError) as caught, ShardWriter(tmp_path / "x", vocab_size=10) as writer:
        writer.add(ids)
    assert "does not fit a vocabulary of 10" in caught.value.what
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_fails_leaves_the_old_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", 5)
    with pytest.raises(DataError), ShardWriter(tmp_path / "x", vocab_size=10) as writer:
        writer.add([1, 2, 99])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "x.idx"]
    assert Shard(tmp_path / "x").num_tokens == 5


def test_check_vocabulary_names_both_numbers(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "x", 9)
    check_vocabulary(shard, 9)
    with pytest.raises(DataError) as caught:
        check_vocabulary(shard, 8)
    assert caught.value.what == "the data holds token id 8, the model's vocabulary has 8 entries"
    assert caught.value.where == str(tmp_path / "x.bin")
    assert "at least 9" in caught.value.remedy


def test_missing_shard_names_those_that_are_there(tmp_path: Path) -> None:
    write_shard(tmp_path / "train", 5)
    for wrong in (tmp_path, tmp_path / "trian"):
        with pytest.raises(DataError) as caught:
            Shard(wrong)
        assert "there is no token shard file" in caught.value.what
        assert str(tmp_path / "train") in caught.value.remedy


def test_missing_data_file_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "x", 5).bin_path.unlink()
    with pytest.raises(DataError) as caught:
        Shard(tmp_path / "x")
    assert caught.value.where == str(tmp_path / "x.bin")
    assert "ds-llama data prepare" in caught.value.remedy


def damaged(raw: bytes, kind: str) -> bytes:
    return {
        "empty": b"",
        "foreign": b"PK\x03\x04" + raw[4:],
        "header": raw[:20],
        "version": raw[:9] + b"\x02" + raw[10:],
        "type": raw[:17] + b"\x06" + raw[18:],
        "cut": raw[:-1],
        "long": raw + b"\0",
    }[kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "it starts with b''"),
        ("foreign", "is not a token index: it starts with b'PK"),
        ("header", f"is cut off: 20 bytes, the header alone has {HEADER_BYTES}"),
        ("version", "has layout version 2; only version 1 is known"),
        ("type", "has id type 6; token ids are one of 1 uint8"),
        ("cut", "is cut off: 61 bytes, its header (1 sequences) needs 62"),
        ("long", "is too long: 63 bytes, its header (1 sequences) needs 62"),
    ],
)
def test_damaged_index_says_what_is_wrong(tmp_path: Path, kind: str, words: str) -> None:
    shard = write_shard(tmp_path / "x", 5)
    shard.idx_path.write_bytes(damaged(shard.idx_path.read_bytes(), kind))
    with pytest.raises(DataError) as caught:
        Shard(tmp_path / "x")
    assert words in caught.value.what
    assert caught.value.where == str(tmp_path / "x.idx")
    assert "ds-llama data prepare" in caught.value.remedy


@pytest.mark.parametrize(("change", "found"), [(-1, 19), (4, 24)])
def test_data_of_another_size_names_both_sizes(tmp_path: Path, change: int, found: int) -> None:
    shard = write_shard(tmp_path / "x", 5)
    raw = shard.bin_path.read_bytes()
    shard.bin_path.write_bytes(raw[:change] if change < 0 else raw + bytes(change))
    with pytest.raises(DataError) as caught:
        Shard(tmp_path / "x")
    assert caught.value.what == f"the shard's data has {found} bytes where its index needs 20"
    assert caught.value.where == str(tmp_path / "x.bin")


def test_many_documents_at_once_equal_one_by_one(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "x", vocab_size=65499) as writer:
        ids = np.array(list(chain(*UINT16_DOCUMENTS)))
        writer.add_many(ids, np.array([3, 1, 2]))
    assert (tmp_path / "x.idx").read_bytes() == UINT16_IDX
