"""A disk of which only what was synced is certain, and what it may hold after the power is lost.

    a file's content    what was last synced; else that, or nothing, a beginning of what was
                        written, zeros of its length, or all of it
    a name in a folder  a change of it is certain once the folder was synced; of the others any
                        may be there and any not, in whatever order they were made
    a rename            one change of two names: certain when either folder was synced

This is what POSIX promises, less than what ext4, xfs and btrfs keep (they order changes of names).
"""

from __future__ import annotations

import itertools
import math
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.campaigns.recorded import Op

ROOT = 0
# What a path leads to: a folder's content is None.
State = tuple[tuple[str, bytes | None], ...]
Change = tuple[tuple[int, str, int | None], ...]  # (folder, name, what it leads to from now on)
Folders = dict[int, dict[str, int]]


@dataclass
class Disk:
    """What is certain, and what is pending. Things have numbers, as inodes do."""

    folders: Folders = field(default_factory=lambda: {ROOT: {}})  # as a living process sees them
    certain: Folders = field(default_factory=lambda: {ROOT: {}})
    pending: list[Change] = field(default_factory=list)
    content: dict[int, bytes] = field(default_factory=dict)
    synced: dict[int, bytes] = field(default_factory=dict)
    _next: int = 1

    def apply(self, op: Op) -> None:
        """Do what a call does; a mark and a mkdir that fails do nothing."""
        if op.kind == "mkdir" and not self._is_there(os.path.dirname(op.path)):
            return
        if op.kind == "write":
            self.content[self._find(op.path)] = op.data
        elif op.kind in ("sync", "sync_folder"):
            self._sync(self._find(op.path))
        elif op.kind in ("open", "mkdir"):
            self._make(*self._place(op.path), folder=op.kind == "mkdir")
        elif op.kind == "remove":
            self._change((*self._place(op.path), None))
        elif op.kind == "rename":
            moved = self._find(op.path)
            self._change((*self._place(op.path), None), (*self._place(op.target), moved))

    def states(self, most: int, draw: random.Random) -> Iterator[tuple[State, bool]]:
        """Everything that may be found after a power loss now, and whether that is all of it.

        More than `most` are sampled: all changes, none, and drawn ones. States may repeat.
        """
        seen = self._may_be_found()
        pending = [change for change in self.pending if any(f in seen for f, _, _ in change)]
        open_files = [
            (file, _contents(self.synced.get(file, b""), content))
            for file, content in self.content.items()
            if file in seen and content != self.synced.get(file)
        ]
        decisions = self._decisions(pending)
        count = math.prod(map(len, [*decisions, *(contents for _, contents in open_files)]))
        for picked, contents in _choices(decisions, open_files, count, most, draw):
            found = {folder: {**names} for folder, names in self.certain.items()}
            for index in sorted(picked):
                _apply(found, pending[index])
            yield tuple(self._walk(found, contents)), count <= most

    def _decisions(self, pending: list[Change]) -> list[list[int | None]]:
        """What may independently have happened: of each name one change, by index, or none.

        Changes of a name that a rename has to do with are decided one by one.
        """
        renamed = {part[:2] for change in pending if len(change) > 1 for part in change}
        decisions: dict[object, dict[int | None, int | None]] = {}
        for index, change in enumerate(pending):
            folder, name, number = change[0]
            if len(change) > 1 or (folder, name) in renamed:
                decisions[index] = {None: None, -index - 1: index}
            else:
                own = {self.certain[folder].get(name): None}
                decisions.setdefault((folder, name), own).setdefault(number, index)
        return [[*options.values()] for options in decisions.values()]

    def _make(self, parent: int, name: str, *, folder: bool) -> None:
        there = self.folders[parent].get(name)
        if there is not None:
            if not folder:
                self.content[there] = b""
            return
        number, self._next = self._next, self._next + 1
        if folder:
            self.folders[number], self.certain[number] = {}, {}
        else:
            self.content[number] = b""
        self._change((parent, name, number))

    def _change(self, *parts: tuple[int, str, int | None]) -> None:
        _apply(self.folders, parts)
        self.pending.append(parts)

    def _sync(self, number: int) -> None:
        if number in self.content:
            self.synced[number] = self.content[number]
            return
        names = {(f, n) for change in self.pending for f, n, _ in change if f == number}
        kept: list[Change] = []
        done: list[Change] = []
        for change in reversed(self.pending):  # with a change, the earlier ones of its names
            touched = {(folder, name) for folder, name, _ in change}
            (done if touched & names else kept).append(change)
            if touched & names:
                names |= touched
        for change in reversed(done):
            _apply(self.certain, change)
        self.pending = kept[::-1]

    def _may_be_found(self) -> set[int]:
        """Folders and files that have a name, certain or pending, from the root on."""
        names = [(f, n) for f, inside in self.certain.items() for n in inside.values()]
        names += [(f, n) for change in self.pending for f, _, n in change if n is not None]
        seen, todo = {ROOT}, [ROOT]
        while todo:
            folder = todo.pop()
            new = {number for inside, number in names if inside == folder} - seen
            seen |= new
            todo += new
        return seen

    def _walk(
        self, found: Folders, contents: dict[int, bytes]
    ) -> Iterator[tuple[str, bytes | None]]:
        todo = [("", ROOT)]
        while todo:
            prefix, folder = todo.pop()
            for name, number in sorted(found[folder].items()):
                if number in found:
                    yield prefix + name, None
                    todo.append((f"{prefix}{name}/", number))
                else:
                    yield prefix + name, contents.get(number, self.content[number])

    def _is_there(self, path: str) -> bool:
        with suppress(KeyError):
            return self._find(path) in self.folders
        return False

    def _place(self, path: str) -> tuple[int, str]:
        return self._find(os.path.dirname(path)), os.path.basename(path)

    def _find(self, path: str) -> int:
        number = ROOT
        for name in filter(None, path.split("/")):
            number = self.folders[number][name]
        return number


def _apply(folders: Folders, change: Change) -> None:
    moved = {number for _, _, number in change if number is not None}
    for folder, name, number in change:
        if number is not None:
            folders[folder][name] = number
        elif not moved or folders[folder].get(name) in moved:
            folders[folder].pop(name, None)


def _contents(synced: bytes, written: bytes) -> list[bytes]:
    """What a file may hold whose last writes were not synced."""
    size = len(written)
    torn = [written[: size * part // 4] for part in range(4)] + [written[:-1], bytes(size)]
    return list(dict.fromkeys([synced, *torn, written]))


def _choices(
    decisions: list[list[int | None]],
    files: list[tuple[int, list[bytes]]],
    count: int,
    most: int,
    draw: random.Random,
) -> Iterator[tuple[list[int], dict[int, bytes]]]:
    numbers = [number for number, _ in files]
    options = [contents for _, contents in files]
    if count <= most:
        for picked in itertools.product(*decisions):
            for contents in itertools.product(*options):
                yield (
                    [i for i in picked if i is not None],
                    dict(zip(numbers, contents, strict=True)),
                )
        return
    for trial in range(most):
        share = (1.0, 0.0)[trial] if trial < 2 else draw.random()
        picked = [draw.choice(own[1:]) for own in decisions if draw.random() < share and own[1:]]
        yield picked, {number: draw.choice(contents) for number, contents in files}


def build(state: State, folder: Path, store: Path) -> None:
    """Put a state on the real disk; contents are links into `store`, to be read only."""
    for path, content in state:
        if content is None:
            (folder / path).mkdir()
            continue
        kept = store / f"{hash(content):x}-{len(content)}"
        if not kept.exists():
            kept.write_bytes(content)
        os.link(kept, folder / path)
