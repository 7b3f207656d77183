from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_llama.commit import disk, listing, names, protocol
from ds_llama.commit.listing import Checkpoint
from ds_llama.commit.retention import damaged_newest, expendable, prune
from ds_llama.commit.verify import verify


def _steps(root: Path) -> list[int]:
    return [c.step for c in listing.checkpoints(root)]


def test_keep_last_and_keep_every(commit, root: Path) -> None:
    for step in range(1, 8):
        commit(step)
    assert prune(root, 2, 3) == [names.step_name(s) for s in (1, 2, 4, 5)]
    assert _steps(root) == [3, 6, 7]
    assert prune(root, 2, 3) == []


def test_the_newest_complete_one_always_stays(commit, root: Path) -> None:
    commit(1), commit(2)
    (commit(3) / "rank_0.pt").unlink()
    (root / names.LATEST).write_text("step-00000001")
    assert prune(root, 0) == ["step-00000001"]
    assert _steps(root) == [2, 3]  # the damaged one is left alone
    assert listing.latest(root) == "step-00000002"


def test_killed_while_removing_leaves_no_half_checkpoint(
    commit, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(1), commit(2)
    real = disk.rename

    def rename_then_die(source: Path, target: Path) -> None:
        real(source, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(disk, "rename", rename_then_die)
        with pytest.raises(KeyboardInterrupt):
            prune(root, 1)
    assert _steps(root) == [2]
    protocol.begin(root, "step-00000003")
    assert not list(root.glob(".removing-*"))


@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), unique_by=lambda pair: pair[0]),
    st.integers(-1, 5),
    st.none() | st.integers(1, 7),
)
def test_what_may_go(steps: list[tuple[int, bool]], keep_last: int, every: int | None) -> None:
    found = [
        Checkpoint(names.step_name(s), Path(), s, complete, 0, 1, 0)
        for s, complete in sorted(steps)
    ]
    gone = expendable(found, keep_last, every)
    complete = [c for c in found if c.complete]
    kept = [c for c in complete if c not in gone]
    assert all(c.complete for c in gone)
    assert complete[-max(keep_last, 1) :] == kept[-max(keep_last, 1) :]
    assert not every or all(c.step % every for c in gone)
    assert len(kept) <= max(keep_last, 1) + (
        sum(c.step % every == 0 for c in complete) if every else 0
    )


def _spoil(folder: Path, how: str) -> None:
    if how == "truncated":
        (folder / "rank_1.pt").write_text("x")
    elif how == "flipped":
        content = (folder / "rank_1.pt").read_bytes()
        (folder / "rank_1.pt").write_bytes(content[:-1] + b"?")
    elif how == "without a manifest":
        (folder / "MANIFEST.json").unlink()
    elif how == "killed while sealed anew":
        folder.rename(folder.with_name(f"{names.REPLACED}{folder.name}"))


HOWS = ("whole", "whole", "truncated", "flipped", "without a manifest", "killed while sealed anew")


@pytest.fixture(scope="module")
def sealed(stage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five checkpoints, sealed once: a copy of them costs no fsync."""
    root = tmp_path_factory.mktemp("sealed") / "checkpoints"
    for step in range(1, 6):
        meta = {"step": step, "world_size": 2, "stage": 3}
        protocol.seal(root, names.step_name(step), stage(root, step), meta)
    return root


@given(
    st.lists(st.sampled_from(HOWS), max_size=5),
    st.integers(1, 3),
    st.none() | st.integers(2, 3),
    st.sampled_from(["step-00000001", "step-00000005", "step-00000099", ""]),
)
@settings(max_examples=30, deadline=None)
def test_what_a_run_goes_on_from_is_never_removed(
    sealed: Path, hows: list[str], keep_last: int, every: int | None, pointer: str
) -> None:
    """On a disk, with damaged, half replaced and incomplete ones between and after."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkpoints"
        root.mkdir()
        shutil.copy(sealed / names.RUN_ID, root)
        for step, how in enumerate(hows, 1):
            shutil.copytree(sealed / names.step_name(step), root / names.step_name(step))
            _spoil(root / names.step_name(step), how)
        (root / names.LATEST).write_text(pointer)
        before = {c.name: (c.complete, verify(c.path) == []) for c in listing.checkpoints(root)}
        removed = prune(root, keep_last, every, damaged=damaged_newest(root))
        after = {c.name: c for c in listing.checkpoints(root)}
        assert before.keys() == {*after, *removed}
        whole = [name for name, (_, whole) in before.items() if whole]
        assert whole[-1:] == [name for name in whole if name in after][-1:]
        assert all(before[name][0] for name in removed)
        assert len(after) >= min(len(before), keep_last)
        if removed and after[whole[-1]].path.name == whole[-1]:
            assert listing.latest(root) == whole[-1]
