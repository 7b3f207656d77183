"""Shards against megatron-core's own IndexedDataset, both ways, where it is installed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ds_llama.data.shards import Shard, ShardWriter

if importlib.util.find_spec("megatron") is None:
    pytest.skip("needs megatron-core (pip install --no-deps)", allow_module_level=True)

DOCUMENTS = [[1, 2, 3], [9], list(range(50)), [4, 5]]

# In a process of its own: megatron-core warns at import about what it would like to have as well.
READ = """
import json, sys
from megatron.core.datasets.indexed_dataset import IndexedDataset
data = IndexedDataset(sys.argv[1])
print(json.dumps([[data[i].tolist() for i in range(len(data))], data.document_indices.tolist()]))
"""
WRITE = """
import json, sys, numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
builder = IndexedDatasetBuilder(sys.argv[1] + ".bin", dtype=getattr(numpy, sys.argv[3]))
for ids in json.loads(sys.argv[2]):
    builder.add_document(torch.tensor(ids), [len(ids)])
builder.finalize(sys.argv[1] + ".idx")
"""


def megatron(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("vocab_size", [100, 128256])
def test_megatron_reads_ours(tmp_path: Path, vocab_size: int) -> None:
    with ShardWriter(tmp_path / "ours", vocab_size=vocab_size) as writer:
        for ids in DOCUMENTS:
            writer.add(ids)
    read = json.loads(megatron(READ, str(tmp_path / "ours")).splitlines()[-1])
    assert read == [DOCUMENTS, list(range(len(DOCUMENTS) + 1))]


@pytest.mark.parametrize("dtype", ["uint16", "int32", "int64"])
def test_ours_reads_megatron(tmp_path: Path, dtype: str) -> None:
    megatron(WRITE, str(tmp_path / "theirs"), json.dumps(DOCUMENTS), dtype)
    shard = Shard(tmp_path / "theirs")
    assert shard.dtype.name == dtype
    assert [shard[i].tolist() for i in range(len(shard))] == DOCUMENTS
