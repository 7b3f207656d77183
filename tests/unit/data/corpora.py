"""A generated corpus of any size as each kind of source, written and read in flat memory."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import zstandard

from ds_llama.data.sources.record import Documents

ROW_BYTES = 1000


def rows(size_bytes: int) -> Iterator[str]:
    """Texts of about `size_bytes` together."""
    draw = random.Random(size_bytes)
    for _ in range(size_bytes // ROW_BYTES):
        yield draw.randbytes(ROW_BYTES // 2 - 1).hex() + " "


def _lines(path: Path, size_bytes: int, line: Callable[[str], str]) -> None:
    with _opened(path) as file:
        for row in rows(size_bytes):
            file.write(line(row).encode())


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "wb", 1)
    return zstandard.open(path, "wb") if path.suffix == ".zst" else path.open("wb")


def text(path: Path, size_bytes: int) -> None:
    _lines(path, size_bytes, lambda row: f"{row}\n\n")


def jsonl(path: Path, size_bytes: int) -> None:
    _lines(path, size_bytes, lambda row: f'{{"text": "{row}"}}\n')


def _tables(size_bytes: int, count: int) -> Iterator[Any]:
    batch = []
    for row in rows(size_bytes):
        batch.append(row)
        if len(batch) == count:
            yield pa.table({"text": batch, "id": range(count)})
            batch = []


def parquet(path: Path, size_bytes: int) -> None:
    """One row group, the worst case: by default pyarrow's reader holds all of it."""
    whole = pa.concat_tables(_tables(size_bytes, 250))
    pyarrow.parquet.write_table(whole, path, row_group_size=1 << 30, use_dictionary=False)


def arrow_file(path: Path, size_bytes: int) -> None:
    _arrow(pa.ipc.new_file, path, size_bytes)


def arrow_stream(path: Path, size_bytes: int) -> None:
    _arrow(pa.ipc.new_stream, path, size_bytes)


def _arrow(new: Any, path: Path, size_bytes: int) -> None:
    tables = _tables(size_bytes, 250)
    first = next(tables)
    with new(str(path), first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


Kind = tuple[str, Callable[[Path, int], None], Documents]
KINDS: list[Kind] = [
    ("lines.txt", text, "line"),
    ("paragraphs.txt.gz", text, "paragraph"),
    ("a.jsonl", jsonl, "file"),
    ("a.jsonl.gz", jsonl, "file"),
    ("a.jsonl.zst", jsonl, "file"),
    ("a.parquet", parquet, "file"),
    ("file.arrow", arrow_file, "file"),
    ("stream.arrow", arrow_stream, "file"),
]
