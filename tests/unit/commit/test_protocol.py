from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ds_llama.commit import disk, listing, manifest, names, protocol, retention
from ds_llama.commit.verify import verify
from ds_llama.errors import CheckpointError

META = {"step": 7, "world_size": 2, "stage": 3}
NAME = "step-00000007"


class Killed(BaseException):
    """Ends the process's work where it is: nothing catches it, nothing cleans up."""


def test_a_sealed_checkpoint_is_complete_and_latest_names_it(commit, root: Path) -> None:
    folder = commit(100)
    assert folder == root / "step-00000100"
    assert listing.latest(root) == "step-00000100"
    assert verify(folder) == []
    found = manifest.read(folder)
    assert (found.step, found.world_size, found.stage) == (100, 2, 3)
    assert [(entry["path"], entry["rank"]) for entry in found.files] == [
        ("rank_0.pt", 0),
        ("rank_1.pt", 1),
        ("state.json", 0),
    ]
    assert sorted(path.name for path in root.iterdir()) == [".run-id", "latest", "step-00000100"]


def test_staging_is_no_checkpoint_and_the_next_begin_removes_it(commit, root: Path) -> None:
    commit(1)
    staged = protocol.begin(root, "step-00000002")
    (staged / "rank_0.pt").write_text("half")
    assert [c.name for c in listing.checkpoints(root)] == ["step-00000001"]
    protocol.begin(root, "step-00000003")
    assert not staged.exists()


def test_discard_removes_the_staging_folder(root: Path) -> None:
    protocol.begin(root, NAME)
    protocol.discard(root, NAME)
    protocol.discard(root, NAME)
    assert [path.name for path in root.iterdir()] == [".run-id"]


@pytest.mark.parametrize("spoil", ["missing", "extra", "size", "twice"])
def test_seal_refuses_a_staging_folder_that_differs_from_the_entries(
    stage, root: Path, spoil: str
) -> None:
    files = stage(root, 7)
    staged = names.staging(root, NAME)
    if spoil == "missing":
        (staged / "rank_1.pt").unlink()
    elif spoil == "extra":
        (staged / "rank_9.pt").write_text("x")
    elif spoil == "size":
        (staged / "rank_1.pt").write_text("x")
    else:
        files.append(files[0])
    with pytest.raises(CheckpointError, match="entries differ in") as caught:
        protocol.seal(root, NAME, files, META)
    named = {"missing": "rank_1.pt", "extra": "rank_9.pt", "size": "rank_1.pt", "twice": "twice"}
    assert named[spoil] in caught.value.what
    assert "share" in caught.value.remedy
    assert listing.checkpoints(root) == []


def test_sealing_a_step_twice_replaces_it(commit, root: Path) -> None:
    commit(7, text="old")
    (root / names.LATEST).unlink()  # as after a crash between the rename and `latest`
    folder = commit(7, text="new")
    assert "new" in (folder / "rank_0.pt").read_text()
    assert listing.latest(root) == NAME
    assert verify(folder) == []
    assert sorted(path.name for path in root.iterdir()) == [".run-id", "latest", NAME]


def test_what_is_set_aside_is_kept_and_is_no_checkpoint(commit, root: Path) -> None:
    commit(1)
    for text in ("first", "again"):
        aside = protocol.set_aside(root, commit(2, text=text), "step-00000002")
        assert aside == root / "damaged-step-00000002"
        assert text in (aside / "rank_0.pt").read_text()
        assert [c.name for c in listing.checkpoints(root)] == ["step-00000001"]
    protocol.begin(root, "step-00000003")
    assert aside.exists()


@pytest.mark.parametrize("there", [True, False], ids=["reachable", "dangling"])
def test_a_step_that_was_moved_to_another_disk_and_linked(
    commit, root: Path, tmp_path: Path, there: bool
) -> None:
    """The link is replaced, removed and tidied up as a folder is; what it points at stays."""
    away = tmp_path / "away"
    away.mkdir()
    for step in (1, 2):
        commit(step)
        os.rename(root / names.step_name(step), away / names.step_name(step))
        target = away if there else tmp_path / "unmounted"
        (root / names.step_name(step)).symlink_to(target / names.step_name(step))
    assert [c.complete for c in listing.checkpoints(root)] == [there, there]
    assert verify(commit(2, text="new")) == []
    commit(3)
    assert retention.prune(root, 1) == [names.step_name(step) for step in (1, 2)[not there :]]
    for name in (".removing-step-00000009", ".replaced-step-00000003"):
        (root / name).symlink_to(away / "step-00000001")
    protocol.recover(root)
    left = {".run-id", "latest", "step-00000003"} | ({"step-00000001"} if not there else set())
    assert {path.name for path in root.iterdir()} == left
    assert [verify(away / names.step_name(step)) for step in (1, 2)] == [[], []]


@pytest.mark.parametrize("left", [None, b"", b"\xff\xfe"], ids=["missing", "empty", "garbage"])
def test_a_copy_without_the_run_id_stays_the_same_run(
    commit, root: Path, left: bytes | None
) -> None:
    """`cp -r run/checkpoints/* …` leaves it behind, and a save may not make strangers of them."""
    commit(1), commit(2)
    known = names.run_id(root)
    (root / names.RUN_ID).unlink()
    if left is not None:
        (root / names.RUN_ID).write_bytes(left)
    assert names.run_id(root) is None
    assert [c.complete for c in listing.checkpoints(root)] == [True, True]
    protocol.begin(root, "step-00000003")
    assert names.run_id(root) == known
    assert [c.complete for c in listing.checkpoints(root)] == [True, True]


def test_a_pointer_that_cannot_be_replaced_is_named_and_costs_no_checkpoint(
    stage, commit, root: Path
) -> None:
    commit(6)
    (root / names.LATEST).unlink()
    (root / names.LATEST).mkdir()
    with pytest.raises(CheckpointError, match="sealing step-00000007 failed: ") as caught:
        protocol.seal(root, NAME, stage(root, 7), META)
    assert caught.value.where == str(root / names.LATEST)
    assert not list(root.glob("*.partial"))
    assert [c.step for c in listing.checkpoints(root) if c.complete] == [6, 7]


def _operations(monkeypatch: pytest.MonkeyPatch, before: Callable[[str], None]) -> None:
    """Call `before(name)` ahead of each operation that changes the disk."""

    def guard(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def guarded(*args: Path) -> None:
            before(name)
            real(*args)

        return guarded

    for name in ("write", "sync_file", "sync_folder", "make_folder", "rename", "remove_tree"):
        monkeypatch.setattr(disk, name, guard(name, getattr(disk, name)))


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step again"])
def test_killed_at_any_operation_leaves_the_old_or_the_new_checkpoint(
    stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """A kill before each single disk operation of a save, until one save gets through."""
    for survived in range(1000):
        root = tmp_path / str(survived)
        first = stage(root, 7 if again else 6, text="old")
        protocol.seal(
            root, names.step_name(7 if again else 6), first, {**META, "step": 7 - (not again)}
        )
        left = iter(range(survived))

        def strike(_: str, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Killed

        with monkeypatch.context() as patch:
            _operations(patch, strike)
            try:
                protocol.seal(root, NAME, stage(root, 7, text="new"), META)
                finished = True
            except Killed:
                finished = False
        newest = listing.latest_complete(root)
        assert newest is not None
        assert verify(newest.path) == []
        assert listing.find(root).path == newest.path
        _check_that_the_run_goes_on(stage, root)
        if finished:
            assert survived > 10
            return
    pytest.fail("the save never got through")


def _check_that_the_run_goes_on(stage, root: Path) -> None:
    folder = protocol.seal(root, "step-00000008", stage(root, 8), {**META, "step": 8})
    assert [c.complete for c in listing.checkpoints(root)] == [True] * len(
        listing.checkpoints(root)
    )
    assert verify(folder) == []
    assert listing.latest(root) == "step-00000008"
    assert not [path for path in root.iterdir() if path.name.startswith((".st", ".rep", ".rem"))]


def test_seal_writes_durably_in_the_order_that_a_power_loss_needs(
    stage, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = stage(root, 7)
    seen: list[str] = []
    _operations(monkeypatch, seen.append)
    protocol.seal(root, NAME, files, META)
    order = [name for name in seen if name not in ("remove_tree",)]
    manifest_at, rename_at = order.index("write"), order.index("rename")
    assert "sync_folder" in order[manifest_at:rename_at]  # names inside, before the rename
    assert "sync_folder" in order[rename_at:]  # the rename itself
    assert order.index("write", rename_at) > rename_at  # `latest` last


def test_a_full_disk_harms_nothing_that_is_committed(stage, commit, root: Path) -> None:
    commit(6)
    files = stage(root, 7)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limits[1]))
    try:
        with pytest.raises(CheckpointError) as caught:
            protocol.seal(root, NAME, files, META)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "sealing step-00000007 failed: File too large" in caught.value.what
    assert "nothing that was committed before is harmed" in caught.value.what
    assert "free space" in caught.value.remedy
    assert caught.value.where == str(names.staging(root, NAME) / manifest.NAME)
    assert [c.name for c in listing.checkpoints(root) if c.complete] == ["step-00000006"]


def test_a_root_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="preparing step-00000007 failed: ") as caught:
        protocol.begin(tmp_path / "file" / "checkpoints", NAME)
    assert str(tmp_path / "file") in caught.value.where


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free space"), (errno.EROFS, "writable"), (errno.EIO, "file system")],
)
def test_each_disk_failure_has_its_remedy(number: int, remedy: str) -> None:
    error = disk.failure(OSError(number, os.strerror(number)), "saving step-1", "run", rank=3)
    assert error.what.startswith(f"saving step-1 failed on rank 3: {os.strerror(number)}")
    assert error.where == "run"
    assert remedy in error.remedy


def test_manifest_meta_is_written_as_given(commit, root: Path) -> None:
    content = json.loads((commit(3) / "MANIFEST.json").read_text())
    assert content["format"] == 1
    assert content["run_id"] == names.run_id(root)
    assert content["created"].endswith("Z")
