"""A file that grows at its end only, and is taken up again where it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20


class AppendedFile:
    """Appends to `path`, hashing what comes in; `kept` is what `save` gave, to go on from there.

    What lies behind that point is cut off. Raises `ValueError` when the bytes before it are not
    those that were saved, `FileNotFoundError` when there are none. The first `head` bytes are left
    to be written last (`close`), and belong to neither size nor hash.
    """

    def __init__(self, path: Path, kept: Mapping[str, Any] | None = None, *, head: int = 0) -> None:
        self.path, self.head, self.bytes = path, head, 0
        self.hash = hashlib.sha256()
        self._file = path.open("wb" if kept is None else "r+b")
        try:
            if kept is None:
                self._file.write(bytes(head))
            else:
                self._go_on(int(kept["bytes"]), kept["sha256"])
        except BaseException:
            self._file.close()
            raise

    def _go_on(self, size: int, digest: str) -> None:
        self._file.seek(self.head)
        while block := self._file.read(min(_BLOCK_BYTES, size - self.bytes)):
            self.hash.update(block)
            self.bytes += len(block)
        if self.bytes != size or self.hash.hexdigest() != digest:
            raise ValueError(f"{self.path} is not what it was")
        self._file.seek(self.head + size)
        self._file.truncate()

    def write(self, raw: bytes) -> None:
        self._file.write(raw)
        self.hash.update(raw)
        self.bytes += len(raw)

    def save(self) -> dict[str, Any]:
        """Have all of it on the disk; returns what a later one goes on from."""
        self.flush()
        return {"bytes": self.bytes, "sha256": self.hash.hexdigest()}

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, head: bytes = b"") -> None:
        """The last word, `head`, is said at the beginning; then all is on the disk."""
        if head:
            self._file.seek(0)
            self._file.write(head)
        self.flush()
        self._file.close()

    def leave(self) -> None:
        """Close the file as it is."""
        self._file.close()
