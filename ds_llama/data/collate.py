"""Samples to the batch that a model is called with: the one place where rows are padded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ds_llama.data.sample import IGNORED, Row, Sample

Batch = dict[str, torch.Tensor]


def collate(samples: Sequence[Sample], block_causal: bool = False) -> Batch:
    """Rows of T tokens to int64 tensors (B, T) on the CPU, T the longest row's; 0 fills the others.

    `input_ids` and `labels`, -100 where nothing is learnt and where a row is filled. With
    `block_causal` also `position_ids`, which begin again at each document, and `document_lengths`
    (B, most documents of a row): the tokens of each, then zeros. That one stays on the host, where
    `Llama` reads it without waiting for a device. What fills a row is one more document.

        input_ids         5 6 7 8 9 3 4 0      lengths 5 and 2
        position_ids      0 1 2 3 4 0 1 0
        document_lengths  5 2 1
    """
    batch, width = len(samples), max(len(sample.input_ids) for sample in samples)
    ids = np.zeros((batch, width), np.int64)
    labels = np.full((batch, width), IGNORED, np.int64)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.input_ids)] = sample.input_ids
        labels[row, : len(sample.labels)] = sample.labels
    made = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
    if block_causal:
        lengths = [_filled(sample, width) for sample in samples]
        held = np.zeros((batch, max(map(len, lengths))), np.int64)
        for row, documents in enumerate(lengths):
            held[row, : len(documents)] = documents
        positions = np.stack([_positions(documents) for documents in lengths])
        made["position_ids"] = torch.from_numpy(positions)
        made["document_lengths"] = torch.from_numpy(held)
    return made


def _filled(sample: Sample, width: int) -> tuple[int, ...]:
    rest = width - len(sample.input_ids)
    return (*sample.lengths, rest) if rest else sample.lengths


def _positions(lengths: Sequence[int]) -> Row:
    """0, 1, 2, ... from the beginning of each document."""
    starts = np.cumsum(lengths) - lengths
    return np.arange(sum(lengths)) - np.repeat(starts, lengths)
