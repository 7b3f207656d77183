"""The thread of one save, by itself; with an engine on two ranks: tests/distributed/cells."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ds_llama.checkpoint import background
from ds_llama.checkpoint.background import Background, _Writing
from ds_llama.checkpoint.save import Target
from ds_llama.checkpoint.state import Content
from ds_llama.commit import disk, listing, manifest, names, protocol
from ds_llama.commit.verify import verify
from ds_llama.errors import CheckpointError
from ds_llama.zero import world

CONTENT = Content({"step": 7, "world_size": 1, "stage": 2}, [], ["[[], []]"])


class File:
    """Stands in for `shards.Pending`: writes when it may."""

    def __init__(self, staged: Path, name: str = "rank_0.pt", rank: int = 0) -> None:
        self.staged, self.name, self.rank = staged, name, rank
        self.may_write, self.error = threading.Event(), None

    def write(self) -> manifest.Entry:
        assert self.may_write.wait(10)
        if self.error is not None:
            raise self.error
        (self.staged / self.name).write_text("content")
        return manifest.entries(self.staged, [self.name], rank=self.rank)[0]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    protocol.begin(tmp_path, names.step_name(7))
    return Target(tmp_path, names.step_name(7))


def _start(target: Target) -> tuple[Background, File]:
    saves, file = Background(), File(target.staged)
    saves._current = _Writing(target, [file], CONTENT)  # type: ignore[list-item]
    return saves, file


def _wait(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_it_is_committed_while_nobody_waits(target: Target) -> None:
    saves, file = _start(target)
    assert saves.written() == []
    assert not saves.failed
    assert listing.checkpoints(target.root) == []  # what a crash would leave now
    assert sorted(path.name for path in target.root.iterdir()) == [
        ".run-id",
        f".staging-{target.name}",
    ]
    file.may_write.set()
    _wait(lambda: listing.latest(target.root))
    assert verify(target.root / target.name) == []
    _wait(lambda: saves._current is None or saves._current.committed)
    [(name, seconds)] = saves.written()
    assert (name, seconds > 0) == (target.name, True)
    saves.finish()
    assert saves.written() == []
    assert sorted(path.name for path in target.root.iterdir()) == [".run-id", "latest", target.name]


def test_finish_waits_for_it(target: Target) -> None:
    saves, file = _start(target)
    threading.Timer(0.05, file.may_write.set).start()
    saves.finish()
    assert listing.latest(target.root) == target.name
    assert [name for name, _ in saves.written()] == [target.name]


def test_a_failed_write_is_told_at_once_and_raised_where_the_ranks_meet(
    target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    saves, file = _start(target)
    file.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target.staged / file.name))
    with caplog.at_level(logging.WARNING):
        file.may_write.set()
        _wait(lambda: caplog.messages)
    told = "saving step-00000007 failed on rank 0: No space left on device; nothing that was"
    assert caplog.messages[0].startswith(told)
    assert caplog.messages[0].endswith("; the run stops")
    assert saves.failed
    with pytest.raises(CheckpointError) as caught:
        saves.finish()
    assert caught.value.what.startswith(told)
    assert caught.value.where.endswith("rank_0.pt")
    assert "free space" in caught.value.remedy
    assert [path.name for path in target.root.iterdir()] == [".run-id"]
    saves.finish()  # nothing is in progress any more
    assert not saves.failed


def test_what_cannot_be_sealed_is_an_error_too(target: Target) -> None:
    saves, file = _start(target)
    (target.staged / "stray.pt").write_text("x")
    file.may_write.set()
    with pytest.raises(CheckpointError, match=r"entries differ in stray\.pt"):
        saves.finish()
    assert listing.checkpoints(target.root) == []


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 of two, whose other is played by the test."""
    monkeypatch.setattr(world, "world_size", lambda: 2)
    monkeypatch.setattr(background, "PATIENCE_S", 0.2)


@pytest.mark.usefixtures("two_ranks")
def test_rank_0_seals_when_the_other_says_that_it_has_written(target: Target) -> None:
    saves, file = _start(target)
    file.may_write.set()
    other = _Writing.__new__(_Writing)
    other.target, other._rank, other._entries = target, 1, []
    other._own_part_done = threading.Event()
    other._files = [theirs := File(target.staged, "rank_1.pt", 1)]  # type: ignore[list-item]
    theirs.may_write.set()
    time.sleep(0.1)
    assert listing.checkpoints(target.root) == []
    other._write()
    saves.close()
    assert verify(target.root / target.name) == []
    found = manifest.read(target.root / target.name)
    assert [(entry["path"], entry["rank"]) for entry in found.files] == [
        ("layout.json", 0),
        ("rank_0.pt", 0),
        ("rank_1.pt", 1),
        ("state.json", 0),
    ]


@pytest.mark.usefixtures("two_ranks")
def test_rank_0_may_be_done_with_everything_before_the_other_goes_on(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, file = _start(target)
    file.may_write.set()
    renamed = {name: getattr(module, name) for module, name in ((os, "rename"), (os, "replace"))}

    def then_all_is_done(source: Any, to: Any, real: Callable[..., None]) -> None:
        real(source, to)
        if Path(to).name == "written-00001.json":
            _wait(lambda: not target.staged.parent.exists())

    for name, real in renamed.items():
        monkeypatch.setattr(os, name, partial(then_all_is_done, real=real))
    other = _Writing.__new__(_Writing)
    other.target, other._rank, other._entries, other._files = target, 1, [], []
    other._own_part_done = threading.Event()
    other._write()
    assert other._own_part_done.is_set()
    saves.close()
    assert verify(target.root / target.name) == []


@pytest.mark.usefixtures("two_ranks")
def test_a_rank_that_never_writes_is_not_waited_for_without_end(
    target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    saves, file = _start(target)
    file.may_write.set()
    with caplog.at_level(logging.WARNING):
        saves.close()
    assert "step-00000007 was given up, since not every rank has written" in caplog.text
    assert listing.checkpoints(target.root) == []
    assert not target.staged.with_name(manifest.NAME).exists()
    protocol.begin(target.root, "step-00000008")
    assert not target.staged.exists()


def test_records_are_on_the_disk_before_it_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin that is not given them has not synced them."""
    rows = tmp_path / "metrics.jsonl"
    calls: list[Path] = []
    rows.write_text('{"step": 7}\n')
    sync, rename = os.fsync, disk.rename

    def noted(descriptor: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        calls.append(target)
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(disk, "rename", renamed)
    absent = tmp_path / "events.jsonl"
    for step, records in ((7, [rows, absent]), (8, [])):
        calls.clear()
        target = Target(tmp_path / "checkpoints", names.step_name(step), records=records)
        protocol.begin(target.root, target.name)
        final = target.commit([], CONTENT)
        before = calls[: calls.index(final)]
        assert (rows in before) is bool(records)
        assert not records or tmp_path in before[before.index(rows) :]
