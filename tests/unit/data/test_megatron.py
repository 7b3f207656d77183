"""Shards against megatron-core's own IndexedDataset, both ways, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds_llama.data.shards import Shard, ShardWriter

if importlib.util.find_spec("megatron") is None:
    pytest.skip("needs megatron-core (pip install --no-deps)", allow_module_level=True)

DOCUMENTS = [[1, 2, 3], [], [9], list(range(50)), [4, 5], []]
# What a document may consist of at Megatron: here sentences, one of them empty.
SENTENCES = [[[1, 2], [3]], [[7]], [[], [8, 9], [250]]]

DTYPES = ["uint8", "uint16", "int32", "int64"]
OURS = {"uint8": 2**8, "uint16": 100, "int32": 128256}

# In a process of its own, the same for all: megatron-core takes seconds to import, and warns about
# what it would like to have as well.
READ_AND_WRITE = """
import json, sys, numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
ours, theirs, documents = map(json.loads, sys.argv[1:])
for path, dtype in theirs.items():
    builder = IndexedDatasetBuilder(path + ".bin", dtype=getattr(numpy, dtype))
    for sentences in documents:
        ids = [i for sentence in sentences for i in sentence]
        builder.add_document(torch.tensor(ids), [len(sentence) for sentence in sentences])
    builder.finalize(path + ".idx")
found = {}
for path in [*ours, *theirs]:
    data = IndexedDataset(path)
    sequences = [data[i].tolist() for i in range(len(data))]
    borders, sizes = data.document_indices.tolist(), data.sequence_lengths.tolist()
    found[path] = {"sequences": sequences, "borders": borders, "sizes": sizes}
    found[path]["dtype"] = data[0].dtype.name
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ours as `ours-DTYPE`, megatron's as `theirs-DTYPE`; `found.json`: what megatron read."""
    folder = tmp_path_factory.mktemp("megatron")
    for name, size in OURS.items():
        dtype = np.dtype("u1") if name == "uint8" else None
        with ShardWriter(folder / f"ours-{name}", vocab_size=size, dtype=dtype) as writer:
            for ids in DOCUMENTS:
                writer.add(ids)
    ours = [str(folder / f"ours-{name}") for name in OURS]
    theirs = {str(folder / f"theirs-{dtype}"): dtype for dtype in DTYPES}
    command = [sys.executable, "-W", "ignore", "-c", READ_AND_WRITE]
    command += [json.dumps(value) for value in (ours, theirs, SENTENCES)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (folder / "found.json").write_text(done.stdout.splitlines()[-1])
    return folder


def found(folder: Path, name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "found.json").read_text())[str(folder / name)]
    return read


@pytest.mark.parametrize("name", OURS)
def test_megatron_reads_ours(folder: Path, name: str) -> None:
    assert found(folder, f"ours-{name}") == {
        "sequences": DOCUMENTS,
        "borders": list(range(len(DOCUMENTS) + 1)),
        "sizes": [len(ids) for ids in DOCUMENTS],
        "dtype": name,
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_ours_reads_megatron(folder: Path, dtype: str) -> None:
    shard, theirs = Shard(folder / f"theirs-{dtype}"), found(folder, f"theirs-{dtype}")
    sequences = [sentence for sentences in SENTENCES for sentence in sentences]
    assert shard.dtype.name == theirs["dtype"] == dtype
    assert [shard[i].tolist() for i in range(len(shard))] == theirs["sequences"] == sequences
    assert shard.document_starts.tolist() == theirs["borders"] == [0, 2, 3, 6]
    assert shard.sizes.tolist() == theirs["sizes"] == [2, 1, 1, 0, 2, 1]
    assert (shard.num_documents, shard.num_tokens) == (3, 7)
