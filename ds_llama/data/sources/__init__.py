"""Corpus sources: one module each, found by itself.

A module says which file names are its own (`SUFFIXES`) and reads one file as a stream of records
(`read(path, options)`). Files that no module claims are read as plain text when they are named, or
when `--suffix` asks for them. A folder that `datasets` saved says itself which files are its own.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from ds_llama.data.sources.record import Options, Record
from ds_llama.data.sources.saved_dataset import files_of
from ds_llama.errors import CallError, DataError

__all__ = ["Options", "Record", "find_files", "read"]


class Source(Protocol):
    """What each module of this folder offers."""

    SUFFIXES: tuple[str, ...]

    def read(self, path: Path, options: Options) -> Iterator[Record]: ...


@lru_cache(maxsize=1)
def sources() -> dict[str, Source]:
    """Every source by module name."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    return {m.__name__.rpartition(".")[2]: m for m in modules if hasattr(m, "SUFFIXES")}


def source_of(path: Path) -> Source:
    claimed = (source for source in sources().values() if _ends(path, source.SUFFIXES))
    return next(claimed, sources()["text"])


def read(path: Path, options: Options) -> Iterator[Record]:
    """The records of one file, in order. Raises `DataError` when the file cannot be read."""
    try:
        yield from source_of(path).read(path, options)
    except OSError as error:
        raise DataError(
            f"the file cannot be read: {error.strerror or error}",
            where=str(path),
            remedy="check the file and its permissions, or leave it out with --exclude",
        ) from error


def find_files(paths: Iterable[str | os.PathLike[str]], options: Options) -> list[Path]:
    """Files of the given files and folders, in the order given, each folder's sorted by path.

    In folders: the suffixes of `options`, or those that a source claims; hidden names, excluded
    names and links to folders are passed over. Raises `CallError` for a path that is not there,
    `DataError` when there is no file at all.
    """
    given = [Path(path) for path in paths]
    found: list[Path] = []
    for path in given:
        if not path.exists():
            raise CallError(
                f"there is no file or folder {path}",
                where=str(path),
                remedy="name text files, .jsonl, .parquet or .arrow files, or folders that hold "
                "them",
            )
        found.extend(_walk(path, options) if path.is_dir() else [path])
    if not found:
        suffixes = options.suffixes or _claimed_suffixes()
        raise DataError(
            f"no file ends in {', '.join(suffixes)}",
            where=", ".join(map(str, given)),
            remedy="say which files hold text, such as --suffix .py, or name the files",
        )
    return found


def _claimed_suffixes() -> tuple[str, ...]:
    return tuple(suffix for source in sources().values() for suffix in source.SUFFIXES)


def _walk(root: Path, options: Options) -> list[Path]:
    suffixes = options.suffixes or _claimed_suffixes()
    found = []
    for folder, folders, names in os.walk(root):
        files = files_of(Path(folder), lambda name: _wanted(name, options))
        if files is None:
            folders[:] = [name for name in folders if _wanted(name, options)]
            files = [Path(folder, name) for name in names]
        else:
            folders.clear()
        found += [f for f in files if _wanted(f.name, options) and _ends(f, suffixes)]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def _ends(path: Path, suffixes: tuple[str, ...]) -> bool:
    return path.name.lower().endswith(suffixes)


def _wanted(name: str, options: Options) -> bool:
    return not name.startswith(".") and not any(fnmatch(name, p) for p in options.exclude)
