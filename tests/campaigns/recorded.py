"""What a process really does to the files under a folder: every call, in order, as it is made.

Python's audit events tell of open, rename, mkdir, remove and rmdir whoever calls them; os.fsync has
no event and is stood in for. What was written is read back before the next call, so a file's
content is known as far as it had come then.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_NEVER = {"os.link", "os.symlink", "os.truncate"}  # a save does none of these
_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", *_NEVER}
_active: Recorder | None = None
_hooked = False


class Killed(BaseException):
    """Ends the work where it is, as SIGKILL does: nothing catches it, nothing cleans up."""


@dataclass(frozen=True)
class Op:
    """One call; paths are relative to the folder, "" is the folder itself.

    kind: open (new or emptied), write (`data` is the whole content), sync (a file), sync_folder,
    rename, mkdir, remove, or mark: the save of `step` has returned. site: who asked for a sync.
    """

    kind: str
    path: str = ""
    target: str = ""
    data: bytes = b""
    step: int = 0
    site: str = ""
    at_ns: int = 0


@dataclass
class Recorder:
    """Records into `ops` while it is active; raises Killed ahead of call number `kill_at`."""

    base: Path
    kill_at: int | None = None
    ops: list[Op] = field(default_factory=list)
    _dirty: dict[str, bytes] = field(default_factory=dict)
    _calls: int = 0
    _inside: bool = False

    @contextmanager
    def active(self) -> Iterator[Recorder]:
        """Record what this process does from here on."""
        global _active, _hooked
        if not _hooked:
            sys.addaudithook(_hook)
            _hooked = True
        real, self.base = os.fsync, self.base.resolve()

        def fsync(descriptor: Any) -> None:
            path = self._relative(_path_of(getattr(descriptor, "fileno", lambda: descriptor)()))
            if path is not None:
                self._before()
            real(descriptor)
            if path is not None:
                kind = "sync_folder" if (self.base / path).is_dir() else "sync"
                self._add(kind, path, site=_site())

        _active, os.fsync = self, fsync
        try:
            yield self
        finally:
            _active, os.fsync = None, real
            self._see_writes()

    def mark(self, step: int) -> None:
        """The save of `step` has returned: from now on it must not be lost."""
        self._see_writes()
        self.ops.append(Op("mark", step=step, at_ns=time.monotonic_ns()))

    def event(self, name: str, given: tuple[Any, ...]) -> None:
        """One audit event; those of other folders, and reads, are passed over."""
        if self._inside or (name == "open" and not _writes(given[2])):
            return
        path = self._relative(_absolute(given[0], _folder_of(name, given)))
        target = self._relative(_absolute(given[1], given[3])) if name == "os.rename" else None
        if path is None and target is None:
            return
        assert name not in _NEVER, (name, given)
        assert path is not None, given
        self._before()
        if name == "open":
            assert given[2] & os.O_TRUNC, ("only whole files are written", given)
            self._add("open", path)
            self._dirty[path] = b""
        elif name == "os.rename":
            assert target is not None, given
            self._add("rename", path, target)
            if path in self._dirty:
                self._dirty[target] = self._dirty.pop(path)
        else:
            self._add("mkdir" if name == "os.mkdir" else "remove", path)

    def _before(self) -> None:
        self._see_writes()
        if self._calls == self.kill_at:
            raise Killed
        self._calls += 1

    def _see_writes(self) -> None:
        self._inside = True
        try:
            for path, known in [*self._dirty.items()]:
                file = self.base / path
                content = file.read_bytes() if file.is_file() else known
                if content != known:
                    self._dirty[path] = content
                    self._add("write", path, data=content)
        finally:
            self._inside = False

    def _add(
        self, kind: str, path: str, target: str = "", *, data: bytes = b"", site: str = ""
    ) -> None:
        if kind == "sync":
            self._dirty.pop(path, None)
        self.ops.append(Op(kind, path, target, data, site=site, at_ns=time.monotonic_ns()))

    def _relative(self, path: str) -> str | None:
        if path == str(self.base):
            return ""
        inside = path.startswith(f"{self.base}{os.sep}")
        return os.path.relpath(path, self.base) if inside else None


def _hook(name: str, given: tuple[Any, ...]) -> None:
    if _active is not None and name in _EVENTS:
        _active.event(name, given)


def _writes(flags: int) -> bool:
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


def _folder_of(name: str, given: tuple[Any, ...]) -> int:
    """The descriptor that a relative path is relative to; -1 is the working directory."""
    place = {"os.rename": 2, "os.mkdir": 2, "os.remove": 1, "os.rmdir": 1}.get(name)
    return -1 if place is None else int(given[place])


def _absolute(path: Any, folder: int) -> str:
    if isinstance(path, int):
        return _path_of(path)
    base = os.getcwd() if folder == -1 else _path_of(folder)
    return os.path.normpath(os.path.join(base, os.fsdecode(path)))


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}")


def _site() -> str:
    """The function outside commit/disk.py that had something synced."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.endswith("disk.py"):
        frame = frame.f_back
    return frame.f_code.co_name
