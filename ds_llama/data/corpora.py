"""What a run's `data.train` or `data.validation` names, opened: a dataset and its order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ds_llama.config.run import DataConfig
from ds_llama.data.documents import DocumentDataset
from ds_llama.data.mixing import ConcatenatedDataset, MixtureSampler
from ds_llama.data.packing import PackedDataset
from ds_llama.data.sample import Dataset
from ds_llama.data.sampler import Order, Sampler
from ds_llama.data.shards import Shard

Corpora = str | os.PathLike[str] | Sequence[Mapping[str, Any] | Any]


def open_data(
    paths: Corpora,
    sequence_length: int,
    seed: int,
    *,
    packing: str = "windows",
    block_causal: bool = False,
    truncation: str = "right",
    temperature: float | None = None,
) -> tuple[Dataset, Order]:
    """Open a shard prefix, or a list of `{"path", "weight", "max_epochs"}` (mappings or objects).

    The other words are those of `DataConfig`. Raises `DataError` for a shard that is missing or
    damaged, or that does not fill one row.
    """

    def dataset(path: str | os.PathLike[str]) -> Dataset:
        if packing == "windows":
            return PackedDataset(Shard(path), sequence_length, block_causal=block_causal)
        return DocumentDataset(Shard(path), sequence_length, packing, truncation)

    if isinstance(paths, (str, os.PathLike)):
        single = dataset(paths)
        return single, Sampler(len(single), seed)
    entries = [_read(entry) for entry in paths]
    parts = [dataset(entry.path) for entry in entries]
    order = MixtureSampler(
        [len(part) for part in parts],
        [entry.weight for entry in entries],
        seed,
        temperature=temperature,
        max_epochs=[entry.max_epochs for entry in entries],
    )
    return ConcatenatedDataset(parts), order


def open_corpora(data: DataConfig, paths: Corpora, seed: int) -> tuple[Dataset, Order]:
    """`open_data` as a run's `data` section says; `paths` is its `train` or its `validation`."""
    return open_data(
        paths,
        data.sequence_length,
        seed,
        packing=data.packing,
        block_causal=data.block_causal,
        truncation=data.truncation,
        temperature=data.temperature,
    )


def packed_lines(dataset: Dataset) -> list[str]:
    """What was made of each shard's documents, for a person; empty for windows."""
    parts = dataset.parts if isinstance(dataset, ConcatenatedDataset) else [dataset]
    held = [part for part in parts if isinstance(part, DocumentDataset)]
    return [f"{part.shard.prefix}: {part.packed}" for part in held]


class _Entry(NamedTuple):
    path: str
    weight: float
    max_epochs: float | None


def _read(entry: Mapping[str, Any] | Any) -> _Entry:
    words = entry if isinstance(entry, Mapping) else vars(entry)
    return _Entry(str(words["path"]), words.get("weight", 1), words.get("max_epochs"))
