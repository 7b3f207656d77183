"""Memory is flat in the size of the input: the short form of `tests.campaigns.sources_memory`."""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest

from ds_llama.data.sources import Options, read
from tests.campaigns import sources_memory as campaign
from tests.unit.data.corpora import KINDS, ROW_BYTES, Kind

SMALL, LARGE = 1_500_000, 4_000_000
# Bytes held for each byte more of text. What is read whole has 1 or more.
MOST = 0.02


def held_bytes(path: Path, options: Options, size_bytes: int, keep: bool = False) -> int:
    """The most that Python and pyarrow held at once while a file's records went by."""
    gc.collect()
    pool = pa.default_memory_pool()
    before, most, count = pool.bytes_allocated(), 0, 0
    kept = []
    tracemalloc.start()
    try:
        for record in read(path, options):
            assert len(record.text) >= ROW_BYTES - 2
            most = max(most, pool.bytes_allocated() - before)
            count += 1
            if keep:
                kept.append(record)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == size_bytes // ROW_BYTES
    return peak + most


def slope(folder: Path, kind: Kind, keep: bool = False) -> float:
    name, write, documents = kind
    held = []
    for size in (SMALL, LARGE):
        write(folder / name, size)
        next(read(folder / name, Options(documents=documents)))  # what is imported is not counted
        held.append(held_bytes(folder / name, Options(documents=documents), size, keep))
    return (held[1] - held[0]) / (LARGE - SMALL)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind[0])
def test_memory_is_flat_in_the_size_of_the_input(tmp_path: Path, kind: Kind) -> None:
    assert slope(tmp_path, kind) < MOST


@pytest.mark.parametrize("kind", [KINDS[2], KINDS[5]], ids=lambda kind: kind[0])
def test_what_holds_all_of_it_would_be_seen(tmp_path: Path, kind: Kind) -> None:
    assert slope(tmp_path, kind, keep=True) > 0.9


def test_a_whole_row_group_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow's own default."""
    original = pa.parquet.ParquetFile
    monkeypatch.setattr(pa.parquet, "ParquetFile", lambda path, **options: original(path))
    assert slope(tmp_path, KINDS[5]) > 0.4


def test_a_process_of_the_campaign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    KINDS[2][1](tmp_path / "a.jsonl", 50_000)
    assert campaign.main(["--child", str(tmp_path / "a.jsonl"), "a.jsonl"]) == 0
    count, held = capsys.readouterr().out.split()
    assert (count, int(held) >= 0) == ("50", True)
