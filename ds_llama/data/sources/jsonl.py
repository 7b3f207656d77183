"""JSON lines, plain, gzip or zstd: each line is an object, its `text_field` one document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ds_llama.data.sources.opened import LONGEST_BYTES, read_lines
from ds_llama.data.sources.record import Options, Record, record_of
from ds_llama.units import format_bytes

SUFFIXES = tuple(name + packed for name in (".jsonl", ".ndjson") for packed in ("", ".gz", ".zst"))
_SHOWN_BYTES = 2000


def read(path: Path, options: Options) -> Iterator[Record]:
    """Lines that are blank are passed over; a broken one is a record with a problem."""
    for line in read_lines(path):
        where = f"{path}:{line.number}"
        if line.content is None:
            problem = f"the line is longer than {format_bytes(LONGEST_BYTES)}"
            yield Record("", where, line.position, problem)
        elif line.content.strip():
            record = _record(line.content, where, line.position, options)
            yield record._replace(raw=_shown(line.content)) if record.problem else record


def _shown(line: bytes) -> str:
    return line[:_SHOWN_BYTES].rstrip().decode("utf-8", errors="replace")


def _record(line: bytes, where: str, position: int, options: Options) -> Record:
    try:
        value = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError) as error:
        return Record("", where, position, f"not JSON: {error}")
    return record_of(value, where, position, options)
