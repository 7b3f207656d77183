from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds_llama.data.documents import DocumentDataset
from ds_llama.data.loader import Loader
from ds_llama.data.masks import mask_writer
from ds_llama.data.packing import PackedDataset
from ds_llama.data.sample import IGNORED
from ds_llama.data.sampler import Sampler
from ds_llama.data.shards import Shard
from ds_llama.errors import ConfigError, DataError
from tests.unit.data.test_packing import documents


def kept(sizes: list[int], most: int, truncation: str) -> list[list[int]]:
    """The ids of each piece, document by document, written out."""
    pieces = []
    for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True):
        ids = list(range(end - size, end))
        if size <= most or truncation == "right":
            pieces.append(ids[:most])
        elif truncation == "left":
            pieces.append(ids[-most:])
        elif truncation == "split":
            pieces += [ids[at : at + most] for at in range(0, size - 1, most - 1)]
    return [piece for piece in pieces if piece]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any),
    length=st.integers(2, 16),
    packing=st.sampled_from(["best_fit", "none"]),
    truncation=st.sampled_from(["right", "left", "drop", "split"]),
)
def test_rows_hold_every_piece_once_and_learn_all_but_its_first_token(
    tmp_path: Path, sizes: list[int], length: int, packing: str, truncation: str
) -> None:
    shard, expected = documents(tmp_path / "x", sizes), kept(sizes, length, truncation)
    if not expected:
        with pytest.raises(DataError, match="no document is left"):
            DocumentDataset(shard, length, packing, truncation)
        return
    dataset = DocumentDataset(shard, length, packing, truncation)
    found, learnt = [], Counter()
    for index in range(len(dataset)):
        ids, labels, lengths = dataset[index]
        assert len(ids) == len(labels) == sum(lengths) <= length
        assert packing == "best_fit" or len(lengths) == 1
        borders = np.cumsum(lengths)[:-1]
        found += [part.tolist() for part in np.split(ids, borders)]
        for part, predicted in zip(np.split(ids, borders), np.split(labels, borders), strict=True):
            assert predicted.tolist() == [IGNORED, *part[1:].tolist()]
            learnt.update(part[1:].tolist())
    assert sorted(found) == sorted(expected)
    assert max(learnt.values(), default=1) == 1
    packed = dataset.packed
    assert packed.documents == sum(size > 0 for size in sizes)
    assert packed.tokens == sum(map(len, expected))
    assert packed.cut == sum(size > length for size in sizes)
    held = {token for piece in expected for token in piece}
    assert packed.lost_tokens == sum(sizes) - len(held)
    if truncation == "split":
        assert len(learnt) == sum(size - 1 for size in sizes if size)


def test_a_row_is_its_documents_in_their_order_and_type(tmp_path: Path) -> None:
    dataset = DocumentDataset(documents(tmp_path / "x", [3, 8, 5]), 8, "best_fit")
    assert len(dataset) == 2
    assert dataset[1].input_ids.tolist() == [0, 1, 2, 11, 12, 13, 14, 15]
    assert dataset[1].lengths == (3, 5)
    assert dataset[1].input_ids.dtype == dataset[1].labels.dtype == np.int64
    with pytest.raises(IndexError, match="row 2 of 2"):
        dataset[2]
    assert str(tmp_path / "x") in repr(dataset)


def test_what_was_packed_is_said_in_a_line(tmp_path: Path) -> None:
    shard = documents(tmp_path / "x", [3, 8, 5, 12])
    assert str(DocumentDataset(shard, 8, "best_fit").packed) == (
        "4 documents, 24 tokens in 3 rows of 8: 0.00% empty; 1 longer than a row, 4 tokens lost"
    )
    shorter = str(DocumentDataset(shard, 16, "none").packed)
    assert shorter == "4 documents, 28 tokens in 4 rows of at most 16"


def test_no_document_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        DocumentDataset(documents(tmp_path / "x", [9, 8]), 4, "none", "drop")
    assert caught.value.what == "no document is left for rows of 4 tokens"
    assert caught.value.where == str(tmp_path / "x")
    assert "data.truncation" in caught.value.remedy


def test_a_row_of_one_token_is_refused(tmp_path: Path) -> None:
    shard: Shard = documents(tmp_path / "x", [9])
    with pytest.raises(ConfigError, match="predicts nothing"):
        DocumentDataset(shard, 1, "best_fit")


@pytest.mark.parametrize("how", ["windows", "apart", "best_fit", "none"])
def test_what_the_mask_leaves_out_is_read_and_not_learnt(tmp_path: Path, how: str) -> None:
    sizes, draw = [7, 12, 3, 5, 9], np.random.default_rng(0)
    shard, learnt = documents(tmp_path / "x", sizes), draw.integers(0, 2, sum(sizes))
    with mask_writer(tmp_path / "x") as writer:
        for part in np.split(learnt, np.cumsum(sizes)[:-1]):
            writer.add(part)
    dataset: PackedDataset | DocumentDataset
    if how in ("windows", "apart"):
        dataset = PackedDataset(shard, 12, block_causal=how == "apart")
    else:
        dataset = DocumentDataset(shard, 12, how)
    found = Counter()
    for ids, labels, _ in (dataset[row] for row in range(len(dataset))):
        assert ((labels == ids) | (labels == IGNORED)).all()
        found.update(labels[1:][labels[1:] != IGNORED].tolist())
    firsts = {0} if how == "windows" else set((np.cumsum(sizes) - sizes).tolist())
    held = 1 + len(dataset) * 11 if how in ("windows", "apart") else sum(sizes)
    assert found == Counter(set(np.flatnonzero(learnt[:held]).tolist()) - firsts)


def test_any_step_can_be_made_again_by_any_world(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    shard = documents(tmp_path / "x", draw.integers(1, 30, 200).tolist())
    dataset = DocumentDataset(shard, 32, "best_fit")
    again = DocumentDataset(Shard(tmp_path / "x"), 32, "best_fit")

    def step(number: int, world: int, source: DocumentDataset) -> list[list[list[int]]]:
        rows = []
        for rank in range(world):
            with Loader(
                source,
                Sampler(len(source), seed=1),
                global_batch_size=4,
                micro_batch_size=1,
                rank=rank,
                world_size=world,
                start_step=number,
            ) as loader:
                batches = next(loader)
            assert all(batch["document_lengths"].sum() <= 32 for batch in batches)
            rows += [[batch[name][0].tolist() for name in sorted(batch)] for batch in batches]
        return sorted(rows)

    for number in (0, 3):
        assert step(number, 1, dataset) == step(number, 2, again)
    assert step(0, 1, dataset) != step(3, 1, dataset)


def test_a_piece_of_which_nothing_is_learnt_is_left_out_and_counted(tmp_path: Path) -> None:
    """A chat whose answer was cut off, one that is all prompt, one whose first token is learnt."""
    shard = documents(tmp_path / "x", [6, 3, 4, 3])
    with mask_writer(tmp_path / "x") as writer:
        for values in ([0, 0, 0, 0, 1, 1], [0, 1, 1], [0, 0, 0, 0], [1, 0, 0]):
            writer.add(values)
    dataset = DocumentDataset(shard, 4, "none", "right")
    assert [row.input_ids.tolist() for row in dataset] == [[6, 7, 8]]
    assert str(dataset.packed).endswith("; 3 left out, of which nothing is learnt")
    assert (dataset.packed.documents, dataset.packed.lost_tokens) == (4, 2)
    kept_ends = DocumentDataset(shard, 4, "none", "left")
    assert [row.input_ids.tolist() for row in kept_ends] == [[2, 3, 4, 5], [6, 7, 8]]
    with mask_writer(tmp_path / "x") as writer:
        for size in (6, 3, 4, 3):
            writer.add([0] * size)
    with pytest.raises(
        DataError, match="nothing is learnt of what rows of 4 tokens hold"
    ) as caught:
        DocumentDataset(shard, 4, "best_fit", "right")
    assert 'or data.truncation to "left" to keep the ends of chats' in caught.value.remedy
