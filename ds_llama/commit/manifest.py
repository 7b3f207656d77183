"""MANIFEST.json: which files a checkpoint consists of, with the size and hash of each.

    {"format": 1, "name": "step-00000100", "run_id": "…", "step": 100, "world_size": 2, "stage": 2,
     "created": "2026-01-31T12:00:00Z",
     "files": [{"path": "state.json", "size": 512, "sha256": "…", "rank": 0}, …],
     "sha256": "…"}

The last value is the hash of all the others, so that damage to the manifest itself shows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from ds_llama.commit import disk
from ds_llama.errors import CheckpointError

NAME = "MANIFEST.json"
FORMAT = 1
_CHUNK_BYTES = 1 << 20


class Entry(TypedDict):
    """One file: its path relative to the checkpoint, bytes, hash, and the rank that wrote it."""

    path: str
    size: int
    sha256: str
    rank: int


@dataclass(frozen=True)
class Manifest:
    """What a sealed checkpoint vouches for."""

    name: str
    run_id: str
    step: int
    world_size: int
    stage: int
    created: str
    files: tuple[Entry, ...]

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(entry["size"] for entry in self.files)


def entries(folder: Path, files: Iterable[str | Path], *, rank: int = 0) -> list[Entry]:
    """Hash each file of `folder` and wait until it is on the disk.

    files: relative to `folder` or inside it. Raises OSError as the disk gives it.
    """
    found: list[Entry] = []
    for file in files:
        path = folder / file
        digest = sha256(path)
        disk.sync_file(path)
        relative = path.relative_to(folder).as_posix()
        size = path.stat().st_size
        found.append({"path": relative, "size": size, "sha256": digest, "rank": rank})
    return found


def sha256(path: Path) -> str:
    """Hash of a file's content, read a piece at a time."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def write(folder: Path, name: str, files: Iterable[Entry], meta: Mapping[str, Any]) -> None:
    """Write MANIFEST.json durably. meta: run_id, step, world_size and stage."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "run_id": str(meta["run_id"]),
        "step": int(meta["step"]),
        "world_size": int(meta["world_size"]),
        "stage": int(meta["stage"]),
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "files": sorted(files, key=lambda entry: entry["path"]),
    }
    content["sha256"] = _own_hash(content)
    disk.write(folder / NAME, (json.dumps(content, indent=1) + "\n").encode())


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises CheckpointError when it is missing, damaged, of a later format, or names files outside
    the folder. The files themselves are not looked at.
    """
    path = folder / NAME
    if path.exists() and not path.is_file():
        raise _bad(path, "is not a regular file")
    try:
        content = json.loads(path.read_bytes())
        stated = content.pop("sha256")
        if content.get("format", 0) > FORMAT:
            raise _bad(path, f"has format {content['format']}, this version reads up to {FORMAT}")
        if stated != _own_hash(content):
            raise _bad(path, "does not match its own hash")
        found = Manifest(
            **{key: content[key] for key in ("name", "run_id", "step", "world_size", "stage")},
            created=content["created"],
            files=tuple(content["files"]),
        )
        escaping = next((entry for entry in found.files if not _is_inside(entry["path"])), None)
    except FileNotFoundError:
        raise _bad(path, "is missing: the checkpoint was never sealed") from None
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad(path, f"is damaged ({type(error).__name__}: {error})") from error
    if escaping:
        raise _bad(path, f"names a file outside the checkpoint: {escaping['path']!r}")
    return found


def _own_hash(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _is_inside(path: str) -> bool:
    pure = PurePosixPath(path)
    return bool(pure.parts) and not pure.is_absolute() and ".." not in pure.parts


def _bad(path: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{NAME} {what}",
        where=str(path),
        remedy="take another checkpoint of the run (ds-llama checkpoint list)",
    )
