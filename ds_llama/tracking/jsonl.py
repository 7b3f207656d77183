"""metrics.jsonl: one JSON object a row, the record that every other view is made from.

JSON has no NaN and no infinity. Such a value is written as null, and the row says what it was:
`{"step": 7, "loss": null, "nonfinite": {"loss": "nan"}}` ("nan", "inf" or "-inf").
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ds_llama.errors import RunError
from ds_llama.tracking.base import Row

FILE_NAME = "metrics.jsonl"
NONFINITE = "nonfinite"


Amend = Callable[[Row], Row | None]


class JsonlTracker:
    """Appends rows to OUTPUT/metrics.jsonl, each flushed when written. Raises RunError."""

    name = FILE_NAME

    def __init__(self, start_step: int = 0, amend: Amend | None = None) -> None:
        """`amend` is shown the row of `start_step`, and says what becomes of it."""
        self._start_step, self._amend = start_step, amend
        self._file: IO[str] | None = None
        self._path = Path(FILE_NAME)

    def start(self, resolved: dict[str, Any], output: Path) -> None:
        """Cuts the rows of steps that will be made again, and opens the file for more."""
        self._path = output / FILE_NAME
        try:
            output.mkdir(parents=True, exist_ok=True)
            self._open_after(self._start_step, self._amend)
        except OSError as error:
            raise self._failed(error) from error

    def log(self, row: Row) -> None:
        assert self._file is not None, "start() comes before log()"
        try:
            self._file.write(to_line(row))
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def rewind(self, step: int) -> None:
        """Cuts the rows that will be made again."""
        try:
            if self._file is not None:
                self._file.close()
            self._open_after(step)
        except OSError as error:
            raise self._failed(error) from error

    def close(self, status: str) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            with file:
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def _open_after(self, step: int, amend: Amend | None = None) -> None:
        truncate_after(self._path, step, amend)
        self._file = self._path.open("a", encoding="utf-8")

    def _failed(self, error: OSError) -> RunError:
        return RunError(
            f"the run's metrics cannot be written: {error.strerror or error}",
            where=str(self._path),
            remedy="free space or mend the folder's permissions, then resume the run",
        )


def to_line(row: Row) -> str:
    """One line of JSON; floats that JSON does not have become null and are named in `nonfinite`."""
    odd = {
        key: str(value)
        for key, value in row.items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    if odd:
        row = {**row, **dict.fromkeys(odd), NONFINITE: odd}
    return json.dumps(row, allow_nan=False) + "\n"


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics file; a line that a killed run left torn is passed over."""
    with path.open("rb") as file:
        return [row for line in file if (row := _parse(line)) is not None]


def truncate_after(path: Path, step: int, amend: Amend | None = None) -> None:
    """Drop rows later than `step`, and lines that are no row (a killed run tears its last one).

    The row of `step` itself becomes what `amend` makes of it; None drops it too.
    The file is replaced as a whole or not at all, and untouched when there is nothing to drop.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        lines = file.readlines()
    kept = [line for line in lines if (row := _parse(line)) is not None and row["step"] <= step]
    if amend is not None and kept and (last := json.loads(kept[-1]))["step"] == step:
        amended = amend(last)
        if amended != last:
            kept[-1:] = [] if amended is None else [json.dumps(amended).encode() + b"\n"]
    if kept == lines:
        return
    staging = path.with_name(f".{path.name}.new")
    with staging.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(staging, path)


def _parse(line: bytes) -> Row | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
