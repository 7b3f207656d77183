"""Which checkpoint a run goes on from: the newest whose every byte is as it was saved.

    newest ─> examine (names, sizes; each rank hashes its part) ─> whole: go on from it
       └─ damaged ─> "required": stop     "auto": the one before it, and this one is set aside

A damaged one must not stay where it was: retention goes by names and sizes, would count it as the
newest and remove what the run goes on to save.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ds_llama.checkpoint import ranks
from ds_llama.commit import listing, protocol
from ds_llama.commit.listing import Checkpoint
from ds_llama.commit.verify import Problem, summary, verify
from ds_llama.errors import CheckpointError
from ds_llama.zero import world

Damaged = list[tuple[Checkpoint, list[Problem]]]


def choose(root: Path, resume: str) -> Path | None:
    """The step folder that a run with this `--resume` goes on from, examined. Collective.

    None: from the beginning. What a killed run left half done is put right first. Damage is named,
    with the file and the rank that wrote it: as a warning under "auto", which takes the newest
    checkpoint that is whole. Raises CheckpointError on every rank for what `listing.to_resume`
    refuses; for damage under "required", and under "auto" when no checkpoint is whole; and for a
    file that the manifest does not know.
    """
    doing = "looking for a checkpoint"
    if ranks.together(doing, root, lambda: _begin(root, resume), only=0) is None:
        return None
    found = ranks.together(doing, root, lambda: listing.checkpoints(root), only=0)
    damaged: Damaged = []
    for checkpoint in reversed(found):
        problems = examine(checkpoint.path)
        if not problems:
            ranks.together(doing, root, lambda: _leave(root, damaged, checkpoint), only=0)  # noqa: B023
            return checkpoint.path
        if resume == "required" or all(problem.stray for problem in problems):
            raise _stop(checkpoint, problems)
        damaged.append((checkpoint, problems))
    raise listing.none_whole(root, len(found), damaged[0][0].name, damaged[0][1])


def _begin(root: Path, resume: str) -> Checkpoint | None:
    newest = listing.to_resume(root, resume)
    if root.is_dir():
        protocol.recover(root)  # a killed run's half a checkpoint may be what fills the disk
    return newest


def examine(folder: Path) -> list[Problem]:
    """Everything that is wrong with a step folder, the same on every rank. Collective.

    Each rank hashes a part of the files. Raises CheckpointError when one does not see the folder.
    """
    doing = f"verifying {folder.name}"
    mine = ranks.together(doing, folder, lambda: _examine_part(folder))
    return list(dict.fromkeys(problem for part in ranks.gather(mine) for problem in part))


def _examine_part(folder: Path) -> list[Problem]:
    if not os.path.lexists(folder):
        raise CheckpointError(
            f"rank {world.rank()} does not see the folder that other ranks see",
            where=str(folder),
            remedy="put the output folder on a file system that all hosts share",
        )
    return verify(folder, part=(world.rank(), world.world_size()))


def _stop(checkpoint: Checkpoint, problems: list[Problem]) -> CheckpointError:
    if any(not problem.stray for problem in problems):
        return listing.not_whole(checkpoint.path, problems)
    return CheckpointError(
        f"the checkpoint holds what was not saved with it: {summary(problems)}",
        where=str(checkpoint.path),
        remedy="move that file elsewhere: nothing is read that the manifest does not vouch for",
    )


def _leave(root: Path, damaged: Damaged, chosen: Checkpoint) -> None:
    for checkpoint, problems in damaged:
        aside = protocol.set_aside(root, checkpoint.path, checkpoint.name)
        print(
            f"warning: {checkpoint.name} is not whole: {summary(problems)}; kept as {aside.name}, "
            f"the run goes on from {chosen.name}",
            file=sys.stderr,
        )
    if damaged and chosen.path.name == chosen.name:
        protocol.point(root, chosen.name)
