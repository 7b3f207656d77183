"""Which checkpoints may go."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from ds_llama.commit import disk, names, protocol
from ds_llama.commit.listing import Checkpoint, checkpoints, latest
from ds_llama.commit.verify import Problem, verify


def prune(
    root: Path,
    keep_last: int,
    keep_every_steps: int | None = None,
    *,
    damaged: Collection[str] = (),
) -> list[str]:
    """Remove complete checkpoints beyond the last `keep_last`; returns the names, oldest first.

    Those at multiples of `keep_every_steps` stay as well, and the newest complete one always does.
    A step folder that is not complete, or is named in `damaged`, is never counted and never
    removed: it may be all that is left of something. Raises CheckpointError when the disk refuses.
    """
    found = [
        replace(checkpoint, complete=checkpoint.complete and checkpoint.name not in damaged)
        for checkpoint in checkpoints(root)
    ]
    doomed = expendable(found, keep_last, keep_every_steps)
    if not doomed:
        return []
    with disk.explained("removing old checkpoints", root):
        disk.sync_folder(root)  # the newest's name, which a killed run may not have come to
        newest = next(c for c in reversed(found) if c.complete)
        if newest.path.name == newest.name and latest(root) != newest.name:
            protocol.point(root, newest.name)  # `latest` may name one that goes now
        for checkpoint in doomed:
            # Renamed first: a folder that a crash leaves half removed is no checkpoint any more.
            aside = root / f"{names.REMOVING}{checkpoint.name}"
            disk.remove_tree(aside)
            disk.rename(checkpoint.path, aside)
            disk.remove_tree(aside)
    return [checkpoint.name for checkpoint in doomed]


def damaged_newest(root: Path) -> dict[str, Problem]:
    """What is wrong with checkpoints that look complete, from the newest back to one that is whole.

    That one is read in full: nothing else says that a removal leaves something to go on from.
    """
    found: dict[str, Problem] = {}
    for checkpoint in reversed([c for c in checkpoints(root) if c.complete]):
        problems = verify(checkpoint.path)
        if not problems:
            break
        found[checkpoint.name] = problems[0]
    return found


def expendable(
    found: list[Checkpoint], keep_last: int, keep_every_steps: int | None
) -> list[Checkpoint]:
    """The checkpoints that `prune` would remove from a list that is in order of steps."""
    complete = [checkpoint for checkpoint in found if checkpoint.complete]
    old = complete[: -max(keep_last, 1)]
    return [c for c in old if not keep_every_steps or c.step % keep_every_steps]
