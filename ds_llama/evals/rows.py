"""A file of questions with known answers, one a line (`data/rows.py`), all of one kind."""

from __future__ import annotations

import json
from pathlib import Path

from ds_llama.data.rows import FORMS, Row, row_of
from ds_llama.errors import DataError
from ds_llama.evals.windows import read_bytes

__all__ = ["Row", "read_rows"]


def read_rows(path: str | Path) -> list[Row]:
    """Every row of a file; blank lines are passed over.

    Raises CallError when there is no file, DataError, with the line, for what is not as above.
    """
    lines = read_bytes(Path(path)).split(b"\n")
    rows = [_row(str(path), number, raw) for number, raw in enumerate(lines, 1) if raw.strip()]
    for row in rows:
        if bool(row.choices) != bool(rows[0].choices):
            has, others = ("", "no ") if row.choices else ("no ", "")
            raise DataError(
                f"this row has {has}choices, and the first one has {others}choices",
                where=row.where,
                remedy="put rows with choices and rows with free answers into files of their own",
            )
    return rows


def _row(path: str, line: int, raw: bytes) -> Row:
    try:
        found = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise _wrong(f"the line is not JSON ({error})", path, line) from error
    if not isinstance(found, dict):
        raise _wrong(f"the line is no JSON object but {type(found).__name__}", path, line)
    return row_of(found, path, line)


def _wrong(what: str, path: str, line: int) -> DataError:
    return DataError(what, where=f"{path}:{line}", remedy=FORMS)
