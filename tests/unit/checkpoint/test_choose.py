"""Which checkpoint a run goes on from when some are damaged; on two ranks in the cells."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ds_llama.checkpoint.choose import choose
from ds_llama.commit import disk, listing, manifest, names, protocol
from ds_llama.commit.retention import prune
from ds_llama.errors import CheckpointError

SHARD = "rank_0.pt"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three checkpoints of one rank."""
    for step in (1, 2, 3):
        _commit(tmp_path / "checkpoints", step)
    return tmp_path / "checkpoints"


def _commit(root: Path, step: int) -> None:
    staged = protocol.begin(root, names.step_name(step))
    disk.write(staged / SHARD, f"step {step} ".encode() * 9)
    entries = manifest.entries(staged, [SHARD])
    protocol.seal(root, staged.name, entries, {"step": step, "world_size": 1, "stage": 2})


def _flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[20] ^= 1
    (folder / SHARD).write_bytes(content)


def _truncate(folder: Path) -> None:
    (folder / SHARD).write_bytes(b"step")


def _lose_a_file(folder: Path) -> None:
    (folder / SHARD).unlink()


def _lose_the_manifest(folder: Path) -> None:
    (folder / manifest.NAME).unlink()


def _take_another_runs(folder: Path) -> None:
    other = folder.parents[1] / "other"
    _commit(other, 3)
    (folder / manifest.NAME).write_bytes((other / folder.name / manifest.NAME).read_bytes())


DAMAGE: dict[Callable[[Path], None], str] = {
    _flip_a_bit: "rank_0.pt (written by rank 0) has other content than when it was saved",
    _truncate: "rank_0.pt (written by rank 0) has 4 bytes, the manifest says 63",
    _lose_a_file: "rank_0.pt (written by rank 0) is missing",
    _lose_the_manifest: "MANIFEST.json is missing: the checkpoint was never sealed",
    _take_another_runs: "MANIFEST.json is of run ",
}


def test_the_newest_is_taken_when_nothing_is_wrong(root: Path, tmp_path: Path) -> None:
    assert choose(tmp_path / "none", "auto") is None
    for word in ("auto", "required"):
        assert choose(root, word) == root / "step-00000003"


def test_what_a_kill_left_is_put_right_first(root: Path, tmp_path: Path) -> None:
    protocol.begin(root, "step-00000004")
    (root / "step-00000003").rename(root / ".replaced-step-00000003")
    assert choose(root, "required") == root / "step-00000003"
    assert not list(root.glob(".[rs]*-step-*"))
    first = protocol.begin(tmp_path / "first", "step-00000001")  # killed in its first save
    assert choose(tmp_path / "first", "auto") is None
    assert not first.parent.exists()


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_auto_takes_the_one_before_a_damaged_one(
    root: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    damage(root / "step-00000003")
    (root / names.LATEST).write_text("step-00000003\n")
    with pytest.raises(CheckpointError) as caught:
        choose(root, "required")
    assert caught.value.what.startswith(f"the checkpoint is not whole: {DAMAGE[damage]}")
    assert caught.value.where == str(root / "step-00000003")
    assert (root / "step-00000003").exists()

    assert choose(root, "auto") == root / "step-00000002"
    said = capsys.readouterr().err
    assert said.startswith(f"warning: step-00000003 is not whole: {DAMAGE[damage]}")
    assert "kept as damaged-step-00000003, the run goes on from step-00000002" in said
    assert (root / "damaged-step-00000003").is_dir()
    assert listing.latest(root) == "step-00000002"
    assert choose(root, "required") == root / "step-00000002"
    _commit(root, 3)
    assert prune(root, 1) == ["step-00000001", "step-00000002"]
    assert choose(root, "required") == root / "step-00000003"


def test_nothing_is_touched_when_none_is_whole(root: Path) -> None:
    for folder in root.glob("step-*"):
        _flip_a_bit(folder)
    with pytest.raises(CheckpointError) as caught:
        choose(root, "auto")
    assert caught.value.what.startswith("none of 3 checkpoints is whole; step-00000003: rank_0.pt")
    assert "restore one from a copy" in caught.value.remedy
    assert len(listing.checkpoints(root)) == 3


@pytest.mark.parametrize("what", ["file", "dangling link", "empty folder", "pipe"])
def test_whatever_bears_the_name_of_a_step_is_not_passed_over(
    root: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    path = root / "step-00000003"
    path.rename(root / "elsewhere")
    if what == "file":
        path.write_text("")
    elif what == "dangling link":
        path.symlink_to(root / "unmounted")
    else:
        path.mkdir()
    if what == "pipe":  # reading it would never end
        os.mkfifo(path / manifest.NAME)
    with pytest.raises(CheckpointError, match=r"is not whole: MANIFEST\.json"):
        choose(root, "required")
    assert choose(root, "auto") == root / "step-00000002"
    assert "warning: step-00000003 is not whole: MANIFEST.json " in capsys.readouterr().err
    assert os.path.lexists(root / "damaged-step-00000003")
    _commit(root, 3)
    assert choose(root, "required") == path


def test_the_only_checkpoint_is_damaged(root: Path) -> None:
    """A run is not begun anew in its place."""
    for step in (1, 2):
        shutil.rmtree(root / names.step_name(step))
    _flip_a_bit(root / "step-00000003")
    with pytest.raises(CheckpointError) as caught:
        choose(root, "auto")
    assert caught.value.what.startswith("the only checkpoint is not whole; step-00000003: rank_0")
    assert "ds-llama checkpoint verify" in caught.value.remedy
    assert (root / "step-00000003").is_dir()


def test_a_file_too_many_is_named_and_costs_no_checkpoint(root: Path) -> None:
    (root / "step-00000003" / "notes.txt").write_text("x")
    for word in ("auto", "required"):
        with pytest.raises(CheckpointError) as caught:
            choose(root, word)
        assert caught.value.what.endswith("saved with it: notes.txt is not in the manifest")
        assert "move that file elsewhere" in caught.value.remedy
    (root / "step-00000003" / "notes.txt").unlink()
    assert choose(root, "auto") == root / "step-00000003"
