"""How a checkpoint comes into being: staged, sealed, renamed, and only then pointed at.

    begin ─> ranks write into the staging folder ─> entries (hash, fsync) ─> seal
    seal:   MANIFEST.json, fsync ─> fsync folders ─> rename to its name ─> latest by os.replace

A crash before the rename leaves a dot folder that no reader takes for a checkpoint and the next
start, save or `checkpoint prune` removes; a crash after it leaves a complete checkpoint, pointed at
or not. Callers hold the run's lock; one process calls, whichever ranks wrote the files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ds_llama.commit import disk, manifest, names
from ds_llama.commit.manifest import Entry
from ds_llama.errors import CheckpointError


def begin(root: Path, name: str) -> Path:
    """An empty staging folder for checkpoint `name`; what dead runs left behind is removed.

    The folder is on the file system of `root` and its last component is `name`. Raises
    CheckpointError when the disk refuses.
    """
    with disk.explained(f"preparing {name}", root):
        disk.make_folder(root)
        recover(root)
        if names.run_id(root) is None:
            names.ensure_run_id(root, _former_run_id(root))
        staged = names.staging(root, name)
        disk.make_folder(staged)
        return staged


def seal(root: Path, name: str, entries: Iterable[Entry], meta: Mapping[str, Any]) -> Path:
    """Make the staged checkpoint the committed one and return its folder.

    entries: every file of every rank, hashed and synced (`manifest.entries`). meta: step,
    world_size, stage, and run_id unless it is the folder's own. A step that was sealed before
    (a crash between the rename and `latest`, or a run taken up again from an earlier step) is
    replaced; its former content counts until the new one has its name. Raises CheckpointError when
    the staging folder holds something else than the entries, or when the disk refuses.
    """
    staged, final, files = names.staging(root, name), root / name, list(entries)
    _check_staged(staged, files)
    with disk.explained(f"sealing {name}", root):
        manifest.write(staged, name, files, {"run_id": names.ensure_run_id(root), **meta})
        disk.sync_tree(staged)
        former = root / f"{names.REPLACED}{name}"
        if os.path.lexists(final):  # a link to a disk that is not there, too
            disk.remove_tree(former)
            disk.rename(final, former)
        disk.rename(staged, final)
        point(root, name)
    # What is left to do is tidying: the checkpoint is committed, and `begin` does it as well.
    with contextlib.suppress(OSError):
        disk.remove_tree(former)
        disk.remove_tree(staged.parent)
    return final


def point(root: Path, name: str) -> None:
    """Make `latest` name a sealed checkpoint."""
    disk.replace(root / names.LATEST, f"{name}\n".encode())


def discard(root: Path, name: str) -> None:
    """Remove what was staged for `name`; a disk that refuses even that is left to `begin`."""
    with contextlib.suppress(OSError):
        disk.remove_tree(names.staging(root, name).parent)


def set_aside(root: Path, folder: Path, name: str) -> Path:
    """Take a damaged checkpoint out of the list, so that retention does not count it; its new path.

    Nothing of it is deleted, but for one of the same name that was set aside before.
    """
    aside = root / f"{names.DAMAGED}{name}"
    with disk.explained(f"setting {name} aside", root):
        disk.remove_tree(aside)
        disk.rename(folder, aside)
    return aside


def recover(root: Path) -> list[str]:
    """Put right what a killed run left: staged, half removed and half replaced; the folders' names.

    Its last renames may not be on the disk yet: until they are, what they replaced must stay. Not
    while another process may be saving there. Raises OSError as the disk gives it.
    """
    left = sorted(path for path in root.iterdir() if names.is_unfinished(path.name))
    disk.sync_folder(root)
    for path in left:
        final = root / path.name.removeprefix(names.REPLACED)
        if path.name.startswith(names.REPLACED) and not os.path.lexists(final):
            disk.rename(path, final)
        else:
            disk.remove_tree(path)
    return [path.name for path in left]


def _former_run_id(root: Path) -> str | None:
    """What the newest readable manifest says: a copy of what is in the folder, made with a `*`,
    has no `.run-id`, and its checkpoints must not become those of another run."""
    steps = [path for path in root.iterdir() if names.step_of(path.name) is not None]
    for folder in sorted(steps, key=lambda path: names.step_of(path.name) or 0, reverse=True):
        with contextlib.suppress(CheckpointError):
            return manifest.read(folder).run_id
    return None


def _check_staged(staged: Path, files: list[Entry]) -> None:
    listed = {entry["path"]: entry["size"] for entry in files}
    present = {
        path.relative_to(staged).as_posix(): path.stat().st_size
        for path in staged.rglob("*")
        if not path.is_dir() and path.relative_to(staged).as_posix() != manifest.NAME
    }
    if listed == present and len(listed) == len(files):
        return
    wrong = sorted(path for path in {*listed, *present} if listed.get(path) != present.get(path))
    raise CheckpointError(
        f"the staging folder and the entries differ in {', '.join(wrong) or 'a file named twice'}",
        where=str(staged),
        remedy="put the output folder on a file system that all ranks share; nothing was committed",
    )
