"""Every operation that changes the disk for a commit, each durable when it returns.

They are few and all here so that what a save does to the disk can be recorded and replayed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ds_llama.errors import CheckpointError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
# Some network file systems cannot fsync a folder; they order its entries themselves.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def write(path: Path, data: bytes) -> None:
    """Write a file whole and wait until it is on the disk; its name is not yet (sync_folder)."""
    with naming(path), path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Wait until a file that somebody else wrote is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_record(path: Path) -> None:
    """Wait until a file that is added to, if it is there, and its name are on the disk."""
    if path.exists():
        sync_file(path)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """`sync_folder` of a folder and all folders in it."""
    for folder, _, _ in os.walk(path):
        sync_folder(Path(folder))


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, each name synced.

    That of one which is there is synced too: who made it may have been killed before he had.
    """
    missing = [path, *path.parents]
    missing = missing[: next(i for i, folder in enumerate(missing) if folder.is_dir())]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
    if not missing:
        with contextlib.suppress(PermissionError):  # somebody else's folder, and made by him
            sync_folder(path.parent)


def rename(source: Path, target: Path) -> None:
    """Rename a folder; the names of both parents are on the disk afterwards."""
    os.rename(source, target)
    sync_folder(target.parent)
    if source.parent != target.parent:
        sync_folder(source.parent)


def replace(path: Path, data: bytes) -> None:
    """Give a file new content at once: a reader sees the old content or the new, never a part."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial, data)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    sync_folder(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a folder; one that is not there is fine. Of a link, what it points at stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError say which file it is of, which a failed write does not."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextlib.contextmanager
def explained(doing: str, where: Path | str, *, rank: int | None = None) -> Iterator[None]:
    """Turn an OSError into a CheckpointError that says what failed and that it harmed nothing."""
    try:
        yield
    except OSError as error:
        raise failure(error, doing, where, rank=rank) from error


def failure(
    error: OSError, doing: str, where: Path | str, *, rank: int | None = None
) -> CheckpointError:
    """The CheckpointError for an OSError met while `doing` ("saving step-00000100")."""
    who = "" if rank is None else f" on rank {rank}"
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        remedy = "free space there, or keep fewer checkpoints (checkpoint.keep_last)"
    elif error.errno in _FORBIDDEN:
        remedy = "make the folder writable, or write elsewhere (output)"
    else:
        remedy = "see to the file system there, then run the command again"
    return CheckpointError(
        f"{doing} failed{who}: {reason}; nothing that was committed before is harmed",
        where=str(error.filename2 or error.filename or where),
        remedy=remedy,
    )
