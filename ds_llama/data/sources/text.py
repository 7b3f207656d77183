"""Plain text: each file is one document. Bytes that are not UTF-8 become U+FFFD."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ds_llama.data.sources.record import Options, Record

SUFFIXES = (".txt", ".text", ".md", ".rst")


def read(path: Path, options: Options) -> Iterator[Record]:
    raw = path.read_bytes()
    yield Record(raw.decode("utf-8", errors="replace"), str(path), len(raw))
