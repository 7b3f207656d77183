from __future__ import annotations

from pathlib import Path

import pytest

from ds_llama.commit import listing, names
from ds_llama.errors import CallError, CheckpointError


def test_list_is_in_step_order_with_what_each_is(commit, root: Path) -> None:
    commit(20), commit(100_000_000), commit(3)
    found = listing.checkpoints(root)
    assert [c.step for c in found] == [3, 20, 100_000_000]
    assert found[0].to_dict() == {
        "name": "step-00000003",
        "step": 3,
        "complete": True,
        "bytes": found[0].bytes,
        "world_size": 2,
        "stage": 3,
    }
    files = [path for path in found[0].path.iterdir() if path.name != "MANIFEST.json"]
    assert found[0].bytes == sum(path.stat().st_size for path in files)


@pytest.mark.parametrize(
    "content", [None, "", "step-00000099", "step-00000001", "../..", "\xff\x00"]
)
def test_latest_pointing_anywhere_is_tolerated(commit, root: Path, content: str | None) -> None:
    commit(1), commit(2)
    if content is None:
        (root / names.LATEST).unlink()
    else:
        (root / names.LATEST).write_text(content, encoding="latin-1")
    newest = listing.latest_complete(root)
    assert newest is not None
    assert newest.step == 2
    assert listing.latest(root) == (content if content == "step-00000001" else None)


def test_the_newest_complete_one_is_found_from_every_path(commit, root: Path) -> None:
    older, newer = commit(1), commit(2)
    run = root.parent
    assert listing.find(older) == listing.Found("step", older)
    for path in (root, run, str(run), newer):
        assert listing.find(path) == listing.Found("step", newer)
    (newer / "rank_1.pt").unlink()
    assert listing.find(run).path == older
    assert [c.complete for c in listing.checkpoints(root)] == [True, False]


def test_a_broken_step_folder_named_outright_is_an_error(commit) -> None:
    folder = commit(1)
    (folder / "rank_1.pt").unlink()
    with pytest.raises(
        CheckpointError, match=r"rank_1.pt \(written by rank 1\) is missing"
    ) as caught:
        listing.find(folder)
    assert caught.value.where == str(folder)
    assert "checkpoint list" in caught.value.remedy


def test_no_complete_checkpoint_names_the_newest_and_its_damage(commit, root: Path) -> None:
    (commit(4) / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        listing.find(root.parent)
    assert (
        "none of 1 checkpoints is complete; step-00000004: MANIFEST.json is missing"
        in caught.value.what
    )
    (checkpoint,) = listing.checkpoints(root)
    assert (checkpoint.world_size, checkpoint.stage) == (None, None)
    assert checkpoint.bytes > 0


def test_what_resume_refuses_and_takes(commit, root: Path) -> None:
    for word in ("auto", "never"):
        assert listing.to_resume(root, word) is None
    with pytest.raises(CheckpointError, match="no complete checkpoint to resume from"):
        listing.to_resume(root, "required")
    older, newer = commit(1), commit(2)
    for word in ("auto", "required"):
        assert listing.to_resume(root, word).path == newer
    with pytest.raises(CheckpointError, match="holds a committed checkpoint") as caught:
        listing.to_resume(root, "never")
    assert "another output folder" in caught.value.remedy

    (newer / "rank_1.pt").unlink()
    assert listing.to_resume(root, "auto").path == older
    with pytest.raises(CheckpointError) as caught:
        listing.to_resume(root, "required")
    assert caught.value.what == (
        "the checkpoint is not whole: rank_1.pt (written by rank 1) is missing"
    )
    assert caught.value.where == str(newer)
    assert "--resume auto" in caught.value.remedy

    (older / "MANIFEST.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        listing.to_resume(root, "auto")  # a run is not begun anew in silence
    assert caught.value.what == (
        "none of 2 checkpoints is whole; step-00000002: rank_1.pt (written by rank 1) is missing"
    )
    assert "another output folder" in caught.value.remedy


def test_exported_folders_and_runs_that_have_only_an_export(tmp_path: Path) -> None:
    export = tmp_path / "run" / "export"
    export.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="there is no checkpoint here"):
        listing.find(export)
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_text("")
    assert listing.find(export) == listing.Found("export", export)
    assert listing.find(tmp_path / "run") == listing.Found("export", export)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="there is no such folder") as caught:
        listing.find(tmp_path / "none")
    assert caught.value.exit_code == 2
    assert listing.checkpoints(tmp_path / "none") == []
    assert listing.latest_complete(tmp_path / "none") is None
    (tmp_path / "file").write_text("")
    with pytest.raises(CallError, match="this is not a folder"):
        listing.find(tmp_path / "file")
