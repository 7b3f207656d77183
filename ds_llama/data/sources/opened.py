"""A file's plain bytes, whether it is plain, gzip (.gz) or zstd (.zst), and its lines."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from ds_llama.errors import DataError, MachineError

# More is not held at once: of a document of n bytes, its ids take about 10 n.
LONGEST_BYTES = 1 << 28
_CHUNK_BYTES = 1 << 16
# What `zstd --long=31` needs; a frame takes as much as it says that it needs.
_ZSTD_WINDOW_BYTES = 1 << 31


class Line(NamedTuple):
    """A line with its end, or None for one longer than `LONGEST_BYTES`; `number` is from 1."""

    content: bytes | None
    number: int
    position: int


@dataclass
class Opened:
    """`stream` gives plain bytes, `raw` is the file below; `line` counts what was passed on."""

    stream: BinaryIO
    raw: BinaryIO
    line: int = 0


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a file to read. Raises `DataError` when it is damaged, `MachineError` without zstd."""
    kind = path.suffix.lower()
    with path.open("rb") as raw:
        if kind == ".gz":
            file = Opened(cast(BinaryIO, gzip.GzipFile(fileobj=raw)), raw)
        elif kind == ".zst":
            zstd = io.BufferedReader(_Zstd(raw, path), _CHUNK_BYTES)
            file = Opened(cast(BinaryIO, zstd), raw)
        else:
            file = Opened(raw, raw)
        try:
            yield file
        except (EOFError, gzip.BadGzipFile, zlib.error, _ZstdDamaged) as error:
            name = {".gz": "gzip", ".zst": "zstd"}[kind]
            raise DataError(
                f"the {name} file is damaged after line {file.line}: {error}",
                where=str(path),
                remedy=f"fetch the file again; `{name} -t FILE` says whether it is whole",
            ) from error


def read_lines(path: Path) -> Iterator[Line]:
    with opened(path) as file:
        readline, tell = file.stream.readline, file.raw.tell
        while line := readline(LONGEST_BYTES + 1):
            file.line += 1
            if len(line) <= LONGEST_BYTES or line.endswith(b"\n"):
                yield Line(line, file.line, tell())
                continue
            while (rest := readline(_CHUNK_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield Line(None, file.line, tell())


class _ZstdDamaged(Exception):
    pass


class _Zstd(io.RawIOBase):
    """Frame after frame. zstandard's own reader takes a file that was cut off for a whole one."""

    def __init__(self, raw: BinaryIO, path: Path) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MachineError(
                "zstandard, which reads this file, is not installed",
                where=str(path),
                remedy='pip install "ds_llama[datasets]", or decompress the file: `zstd -d FILE`',
            ) from error
        self._raw, self._error = raw, zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._decompress():
                return 0
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self) -> bool:
        """Make more bytes ready, perhaps none; False at the end of the file."""
        left = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
        chunk = left or self._raw.read(_CHUNK_BYTES)
        if not chunk:
            if self._frame is not None and not self._frame.eof:
                raise _ZstdDamaged("it ends inside a frame")
            return False
        if self._frame is None or self._frame.eof:
            self._frame = self._decompressor.decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(chunk))
        except self._error as error:
            raise _ZstdDamaged(str(error)) from error
        return True
