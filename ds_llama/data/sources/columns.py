"""Rows of tables (Parquet, Arrow) as records, by pyarrow, a few at a time."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_llama.data.sources.record import Options, Record, record_of
from ds_llama.errors import DataError, MachineError

# A document may have megabytes.
ROWS = 64


def require(module: str, path: Path) -> Any:
    """A module of pyarrow. Raises `MachineError` where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MachineError(
            f"pyarrow, which reads this file, is not installed ({error})",
            where=str(path),
            remedy='pip install "ds_llama[datasets]"',
        ) from error


@dataclass
class Reading:
    """How many rows were passed on."""

    rows: int = 0


@contextmanager
def reading(path: Path, kind: str) -> Iterator[Reading]:
    """Turn what pyarrow says of a damaged file into a `DataError` with the row."""
    done, arrow = Reading(), require("pyarrow", path)
    try:
        yield done
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # of the system: the file is not there, or may not be read
        why = str(error).partition("\n")[0].strip(" .")
        raise DataError(
            f"the {kind} file is damaged after row {done.rows}: {why}",
            where=str(path),
            remedy="fetch or write the file again, or leave it out with --exclude",
        ) from error


def records(
    batches: Iterable[tuple[Any, int]], path: Path, options: Options, done: Reading
) -> Iterator[Record]:
    """The records of record batches, each with the bytes of the file that are read by its end."""
    for batch, position in batches:
        for start in range(0, batch.num_rows, ROWS):
            part = batch.slice(start, ROWS)
            values = _objects(part) if options.objects else _texts(part, options.text_field)
            for value in values:
                done.rows += 1
                yield _record(value, f"{path}:{done.rows}", position, options)


def _record(value: object, where: str, position: int, options: Options) -> Record:
    if isinstance(value, str):
        return Record(value, where, position)
    if value is None:
        return Record("", where, position, f'field "{options.text_field}" is null')
    if isinstance(value, UnicodeDecodeError):
        return Record("", where, position, f"not UTF-8: {value}")
    return record_of(value, where, position, options)


def check_text(schema: Any, path: Path, options: Options) -> None:
    """Raises `DataError` for a table without the column that holds the text."""
    field = options.text_field
    if options.objects:
        return
    if field not in schema.names:
        raise DataError(
            f'there is no column "{field}"; it has {", ".join(schema.names) or "none"}',
            where=str(path),
            remedy="--text-field says which column holds the text",
        )
    kind = _value_type(schema.field(field).type)
    if not _is_text(kind):
        raise DataError(
            f'column "{field}" is not text but {kind}',
            where=str(path),
            remedy="--text-field says which column holds the text",
        )


def _value_type(kind: Any) -> Any:
    return getattr(kind, "value_type", kind) if str(kind).startswith("dictionary") else kind


def _is_text(kind: Any) -> bool:
    return str(kind) in {"string", "large_string", "string_view", "binary", "large_binary"}


def _texts(batch: Any, field: str) -> list[str | None]:
    """A column's texts; its bytes are decoded here, since Arrow's strings may be no UTF-8."""
    arrow = importlib.import_module("pyarrow")
    column = batch.column(batch.schema.get_field_index(field))
    if str(column.type).startswith("dictionary"):
        column = column.dictionary_decode()
    if str(column.type) == "string_view":
        column = column.cast(arrow.large_string())
    raw = column.cast(arrow.large_binary()).to_pylist()
    return [None if text is None else text.decode("utf-8", errors="replace") for text in raw]


def _objects(batch: Any) -> list[Any]:
    """Rows as dicts; in the place of one that holds a broken string, what is wrong with it."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [error]
    return [_objects(batch.slice(row, 1))[0] for row in range(batch.num_rows)]
