"""What a run's `data.train` or `data.validation` names, opened: a dataset and its order."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ds_llama.data.mixing import ConcatenatedDataset, MixtureSampler
from ds_llama.data.packing import PackedDataset
from ds_llama.data.sampler import Sampler
from ds_llama.data.shards import Shard


class Dataset(Protocol):
    """Windows of equal length: int64 arrays of T tokens."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> npt.NDArray[np.int64]: ...


class Order(Protocol):
    """Dataset index of each sample since training began; `length` samples are an epoch."""

    length: int

    def index(self, global_sample_index: int) -> int: ...


Corpora = str | os.PathLike[str] | Sequence[Mapping[str, Any] | Any]


def open_data(paths: Corpora, sequence_length: int, seed: int) -> tuple[Dataset, Order]:
    """Open a shard prefix, or a weighted list of `{"path", "weight"}` (mappings or objects).

    Raises `DataError` for a shard that is missing or damaged, or too short for one window.
    """
    if isinstance(paths, (str, os.PathLike)):
        dataset = PackedDataset(Shard(paths), sequence_length)
        return dataset, Sampler(len(dataset), seed)
    entries = [_path_and_weight(entry) for entry in paths]
    parts = [PackedDataset(Shard(path), sequence_length) for path, _ in entries]
    order = MixtureSampler([len(part) for part in parts], [weight for _, weight in entries], seed)
    return ConcatenatedDataset(parts), order


def _path_and_weight(entry: Mapping[str, Any] | Any) -> tuple[str, float]:
    if isinstance(entry, Mapping):
        return str(entry["path"]), entry.get("weight", 1)
    return str(entry.path), entry.weight
