"""Which checkpoints a folder has, and which one a path that the user typed means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ds_llama.commit import manifest, names
from ds_llama.commit.verify import Problem, is_complete, require_whole, summary, verify
from ds_llama.errors import CallError, CheckpointError

CHECKPOINTS, EXPORT = "checkpoints", "export"


@dataclass(frozen=True)
class Checkpoint:
    """One step folder. `world_size` and `stage` are None when no manifest can be read."""

    name: str
    path: Path
    step: int
    complete: bool
    bytes: int
    world_size: int | None
    stage: int | None

    def to_dict(self) -> dict[str, Any]:
        """As `checkpoint list --json` prints it: everything but the path."""
        return {key: value for key, value in asdict(self).items() if key != "path"}


@dataclass(frozen=True)
class Found:
    """What a path means: a step folder of a training run, or an exported Hugging Face folder."""

    kind: Literal["step", "export"]
    path: Path


def checkpoints(root: Path) -> list[Checkpoint]:
    """Every step folder under a `checkpoints` folder, oldest step first; none when it is missing.

    Content is not read: `complete` says that the manifest is sound and the files have its sizes.
    """
    if not root.is_dir():
        return []
    found = [_look(path, path.name) for path in root.iterdir()]
    present = {checkpoint.name for checkpoint in found if checkpoint}
    # A run killed while it sealed a step anew: the former content still counts (protocol.recover).
    for path in root.glob(f"{names.REPLACED}*"):
        name = path.name.removeprefix(names.REPLACED)
        if name not in present:
            found.append(_look(path, name))
    return sorted((c for c in found if c), key=lambda checkpoint: checkpoint.step)


def latest_complete(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint, whatever `latest` says; None when there is none."""
    return next((c for c in reversed(checkpoints(root)) if c.complete), None)


def to_resume(root: Path, resume: str) -> Checkpoint | None:
    """The checkpoint that a run with this `--resume` goes on from; None: from the beginning.

    By names and sizes; `checkpoint.choose` reads the content too. "auto" takes the newest complete
    one. Raises CheckpointError under "auto" when there are checkpoints and none is complete, under
    "required" without a checkpoint or when the newest is not complete, and under "never" with any:
    a run is never begun anew in silence, nor written over.
    """
    found = checkpoints(root)
    newest = next((c for c in reversed(found) if c.complete), None)
    if resume == "never" and found:
        raise CheckpointError(
            f"the folder holds a committed checkpoint ({found[-1].name})",
            where=str(root),
            remedy="give the run another output folder, or say --resume auto to go on",
        )
    if resume == "required" and not found:
        raise CheckpointError(
            "no complete checkpoint to resume from",
            where=str(root),
            remedy="check the run's output folder, or say --resume auto",
        )
    if resume == "required" and newest is not found[-1]:
        raise not_whole(found[-1].path, verify(found[-1].path, hashes=False))
    if resume == "auto" and found and newest is None:
        raise none_whole(root, len(found), found[-1].name, verify(found[-1].path, hashes=False))
    return newest


def not_whole(folder: Path, problems: Sequence[Problem]) -> CheckpointError:
    """What a run says that must go on from `folder` and may not."""
    return CheckpointError(
        f"the checkpoint is not whole: {summary(problems)}",
        where=str(folder),
        remedy="say --resume auto to go on from the one before it, which sets this one aside",
    )


def none_whole(root: Path, count: int, newest: str, problems: Sequence[Problem]) -> CheckpointError:
    """What a run says that finds `count` checkpoints and cannot go on from any."""
    which = f"none of {count} checkpoints is" if count > 1 else "the only checkpoint is not"
    return CheckpointError(
        f"{which} whole; {newest}: {summary(problems)}",
        where=str(root),
        remedy="see ds-llama checkpoint verify; restore one from a copy, or give the run another "
        "output folder to begin anew",
    )


def latest(root: Path) -> str | None:
    """The name in `latest`, None when the file is missing or names no step folder."""
    try:
        name = (root / names.LATEST).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return name if names.step_of(name) is not None and (root / name).is_dir() else None


def find(path: str | Path) -> Found:
    """What CHECKPOINT on the command line means.

    path: a step folder, a `checkpoints` folder or a run folder (newest complete one of either), or
    an exported folder. A run folder without a complete checkpoint means its export. Raises
    CallError when there is nothing at `path`, CheckpointError when there is no complete checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        raise CallError(
            "there is no such folder" if not path.exists() else "this is not a folder",
            where=str(path),
            remedy="give a step folder, a checkpoints folder, a run folder or an exported folder",
        )
    if (path / manifest.NAME).exists() or names.step_of(path.name) is not None:
        return _whole(path)
    if _is_export(path):
        return Found("export", path)
    for root in (path / CHECKPOINTS, path):
        newest = latest_complete(root)
        if newest:
            return Found("step", newest.path)
    if _is_export(path / EXPORT):
        return Found("export", path / EXPORT)
    raise _nothing(path)


def _look(path: Path, name: str) -> Checkpoint | None:
    step = names.step_of(name)
    if step is None:
        return None
    try:
        found = manifest.read(path)
    except CheckpointError:
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        return Checkpoint(name, path, step, False, size, None, None)
    complete = is_complete(path, found) and found.step == step
    return Checkpoint(name, path, step, complete, found.size_bytes, found.world_size, found.stage)


def _whole(path: Path) -> Found:
    require_whole(path, hashes=False)
    return Found("step", path)


def _is_export(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def _nothing(path: Path) -> CheckpointError:
    root = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    broken = checkpoints(root)
    what = "there is no checkpoint here"
    if broken:
        problem = next(iter(verify(broken[-1].path, hashes=False)), "is not complete")
        what = f"none of {len(broken)} checkpoints is complete; {broken[-1].name}: {problem}"
    return CheckpointError(
        what,
        where=str(root),
        remedy="give a folder that ds-llama checkpoint list shows as complete, or train anew",
    )
