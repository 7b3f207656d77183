"""Arrow, when pyarrow is installed: the file format, and the stream that `datasets` writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_llama.data.sources.columns import check_text, reading, records, require
from ds_llama.data.sources.record import Options, Record
from ds_llama.errors import DataError

SUFFIXES = (".arrow",)
_FILE_MAGIC = b"ARROW1"
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read(path: Path, options: Options) -> Iterator[Record]:
    arrow = require("pyarrow", path)
    ipc = require("pyarrow.ipc", path)
    with reading(path, "Arrow") as done, arrow.OSFile(str(path)) as file:
        is_file = file.read(len(_FILE_MAGIC)) == _FILE_MAGIC
        if not is_file:
            _check_end(path)
        file.seek(0)
        with (ipc.open_file if is_file else ipc.open_stream)(file) as reader:
            check_text(reader.schema, path, options)
            batches = _batches(reader, path.stat().st_size) if is_file else _stream(reader, file)
            yield from records(batches, path, options, done)


def _batches(reader: Any, size_bytes: int) -> Iterator[tuple[Any, int]]:
    """Batches are read by their place, in any order: their share stands for the bytes read."""
    for number in range(reader.num_record_batches):
        yield reader.get_batch(number), size_bytes * (number + 1) // reader.num_record_batches


def _stream(reader: Any, file: Any) -> Iterator[tuple[Any, int]]:
    for batch in reader:
        yield batch, file.tell()


def _check_end(path: Path) -> None:
    """A stream that was cut between two batches reads as a whole one, but for its last bytes."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - len(_END_OF_STREAM)))
        end = file.read()
    if end != _END_OF_STREAM:
        raise DataError(
            "the Arrow stream has no end: it was cut off, or is no Arrow file",
            where=str(path),
            remedy="fetch or write the file again, or leave it out with --exclude",
        )
