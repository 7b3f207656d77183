from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.data.collate import collate
from ds_llama.data.sample import IGNORED, Sample


def sample(lengths: tuple[int, ...], first: int = 1) -> Sample:
    """Ids that count on from `first`, those of each document but its first learnt."""
    ids = np.arange(first, first + sum(lengths))
    labels = ids.copy()
    labels[np.cumsum(lengths) - lengths] = IGNORED
    return Sample(ids, labels, lengths)


def test_a_batch_of_documents() -> None:
    batch = collate([sample((5, 2)), sample((8,), 50)], block_causal=True)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 2, 3, 4, 5, 6, 7, 0], [50, 51, 52, 53, 54, 55, 56, 57]],
        "labels": [[-100, 2, 3, 4, 5, -100, 7, -100], [-100, 51, 52, 53, 54, 55, 56, 57]],
        "position_ids": [[0, 1, 2, 3, 4, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6, 7]],
        "document_lengths": [[5, 2, 1], [8, 0, 0]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_without_borders_there_are_ids_and_labels_in_memory_of_their_own() -> None:
    ids = np.arange(4)
    batch = collate([Sample(ids, ids, (4,))])
    assert set(batch) == {"input_ids", "labels"}
    batch["labels"][0, 0] = 9
    assert batch["input_ids"][0, 0] == ids[0] == 0


ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4)


@given(rows=ROWS)
def test_nothing_is_lost_and_positions_begin_again_at_each_document(rows: list[list[int]]) -> None:
    samples = [sample(tuple(row), 100 * i + 1) for i, row in enumerate(rows)]
    batch = collate(samples, block_causal=True)
    width = batch["input_ids"].shape[1]
    assert width == max(sum(row) for row in rows)
    for i, made in enumerate(samples):
        held = len(made.input_ids)
        assert batch["input_ids"][i, :held].tolist() == made.input_ids.tolist()
        assert batch["labels"][i, :held].tolist() == made.labels.tolist()
        assert (batch["labels"][i, held:] == IGNORED).all()
        lengths = [n for n in batch["document_lengths"][i].tolist() if n]
        assert lengths == [*made.lengths, *([width - held] if held < width else [])]
        expected = [position for length in lengths for position in range(length)]
        assert batch["position_ids"][i].tolist() == expected
