"""JSON lines, plain or gzip: each line is an object, its `text_field` one document."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ds_llama.data.sources.record import Options, Record
from ds_llama.errors import DataError

SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
_SURROGATES = re.compile("[\ud800-\udfff]")


def read(path: Path, options: Options) -> Iterator[Record]:
    """Lines that are blank are passed over; a broken one is a record with a problem."""
    with path.open("rb") as raw:
        zipped = path.name.lower().endswith(".gz")
        lines = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if zipped else raw
        number = 0
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    text, problem = _text_of(line, options.text_field)
                    yield Record(text, f"{path}:{number}", raw.tell(), problem)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"the gzip file is damaged after line {number}: {error}",
                where=str(path),
                remedy="fetch the file again; `gzip -t FILE` says whether it is whole",
            ) from error


def _text_of(line: bytes, field: str) -> tuple[str, str | None]:
    """The text and None, or "" and what is wrong with the line."""
    try:
        record = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        return "", f"not JSON: {error}"
    if not isinstance(record, dict):
        return "", f"not a JSON object but {type(record).__name__}"
    if field not in record:
        return "", f'no field "{field}"; it has {", ".join(sorted(record)[:8]) or "none"}'
    text = record[field]
    if not isinstance(text, str):
        return "", f'field "{field}" is not a string but {type(text).__name__}'
    # JSON may escape half a surrogate pair, which no encoder accepts.
    return _SURROGATES.sub("\ufffd", text), None
