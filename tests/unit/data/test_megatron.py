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

DTYPES = ["uint16", "int32", "int64"]
SIZES = [100, 128256]

# In a process of its own, the same for all: megatron-core takes seconds to import, and warns about
# what it would like to have as well.
READ_AND_WRITE = """
import json, sys, numpy, torch
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
ours, theirs, documents = map(json.loads, sys.argv[1:])
for path, dtype in theirs.items():
    builder = IndexedDatasetBuilder(path + ".bin", dtype=getattr(numpy, dtype))
    for ids in documents:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(path + ".idx")
found = {}
for path in ours:
    data = IndexedDataset(path)
    found[path] = [data[i].tolist() for i in range(len(data))], data.document_indices.tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ours as `ours-SIZE`, megatron's as `theirs-DTYPE`, and what megatron read in `found.json`."""
    folder = tmp_path_factory.mktemp("megatron")
    ours = [str(folder / f"ours-{size}") for size in SIZES]
    for path, size in zip(ours, SIZES, strict=True):
        with ShardWriter(Path(path), vocab_size=size) as writer:
            for ids in DOCUMENTS:
                writer.add(ids)
    theirs = {str(folder / f"theirs-{dtype}"): dtype for dtype in DTYPES}
    command = [sys.executable, "-W", "ignore", "-c", READ_AND_WRITE]
    command += [json.dumps(value) for value in (ours, theirs, DOCUMENTS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    (folder / "found.json").write_text(done.stdout.splitlines()[-1])
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_megatron_reads_ours(folder: Path, size: int) -> None:
    read = json.loads((folder / "found.json").read_text())[str(folder / f"ours-{size}")]
    assert read == [DOCUMENTS, list(range(len(DOCUMENTS) + 1))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_ours_reads_megatron(folder: Path, dtype: str) -> None:
    shard = Shard(folder / f"theirs-{dtype}")
    assert shard.dtype.name == dtype
    assert [shard[i].tolist() for i in range(len(shard))] == DOCUMENTS
