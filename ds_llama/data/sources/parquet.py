"""Parquet, when pyarrow is installed: each row's text column is one document."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_llama.data.sources.columns import ROWS, check_text, reading, records, require
from ds_llama.data.sources.record import Options, Record

SUFFIXES = (".parquet",)
_BUFFER_BYTES = 1 << 20


def read(path: Path, options: Options) -> Iterator[Record]:
    parquet = require("pyarrow.parquet", path)
    with (
        reading(path, "Parquet") as done,
        # Buffered, page by page: by default a column's whole row group is read at once.
        parquet.ParquetFile(str(path), buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
    ):
        check_text(file.schema_arrow, path, options)
        yield from records(_batches(file, path, options), path, options, done)


def _batches(file: Any, path: Path, options: Options) -> Iterator[tuple[Any, int]]:
    """Where in the file a row lies is not told: its share of the rows stands for it."""
    columns = None if options.objects else [options.text_field]
    size_bytes, rows = path.stat().st_size, 0
    for batch in file.iter_batches(batch_size=ROWS, columns=columns, use_threads=False):
        rows += batch.num_rows
        yield batch, size_bytes * rows // file.metadata.num_rows
