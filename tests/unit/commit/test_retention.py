from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_llama.commit import disk, listing, names, protocol
from ds_llama.commit.listing import Checkpoint
from ds_llama.commit.retention import expendable, prune


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
