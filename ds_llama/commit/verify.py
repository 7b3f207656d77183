"""Whether a sealed checkpoint is whole: every file there, with its size and content, no other."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ds_llama.commit import manifest, names
from ds_llama.commit.manifest import Entry, Manifest
from ds_llama.errors import CheckpointError

_STRAY = "is not in the manifest"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one file; `rank` wrote it, None when nobody vouches for it."""

    file: str
    rank: int | None
    what: str

    def __str__(self) -> str:
        who = "" if self.rank is None else f" (written by rank {self.rank})"
        return f"{self.file}{who} {self.what}"

    @property
    def stray(self) -> bool:
        """Whether this is a file too many: what was saved may be whole beside it."""
        return self.what == _STRAY

    def to_dict(self) -> dict[str, object]:
        """As `checkpoint verify --json` prints it."""
        return asdict(self)


def summary(problems: Sequence[Problem]) -> str:
    """The first problem, and how many more there are."""
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{next(iter(problems), 'is not complete')}{more}"


def require_whole(folder: Path, *, hashes: bool = True) -> None:
    """Raises CheckpointError for a folder that `verify` finds anything wrong with.

    The gate before DeepSpeed's shards are read: they are pickles.
    """
    problems = verify(folder, hashes=hashes)
    if problems:
        raise CheckpointError(
            f"the checkpoint is not whole: {problems[0]}",
            where=str(folder),
            remedy="take another one: ds-llama checkpoint list shows which are complete",
        )


def verify(folder: Path, *, hashes: bool = True, part: tuple[int, int] = (0, 1)) -> list[Problem]:
    """Everything that is wrong with a checkpoint folder; empty when it is whole.

    hashes: read every file too; otherwise only names and sizes. part: (index, count) divides the
    hashing among `count` callers; names and sizes are always checked.
    """
    try:
        found = manifest.read(folder)
    except CheckpointError as error:
        what = error.what.removeprefix(f"{manifest.NAME} ")
        return [Problem(manifest.NAME, None, what)]
    problems = [*_identity(folder, found), *_sizes(folder, found), *_extra(folder, found)]
    if hashes:
        broken = {problem.file for problem in problems}
        whole = [entry for entry in found.files if entry["path"] not in broken]
        problems += _contents(folder, whole[part[0] :: part[1]])
    return problems


def is_complete(folder: Path, found: Manifest) -> bool:
    """Whether the files that the manifest names are there in full; their content is not read.

    A stray file beside them does not make a checkpoint incomplete; `verify` names it.
    """
    return not any([*_identity(folder, found), *_sizes(folder, found)])


def _identity(folder: Path, found: Manifest) -> Iterator[Problem]:
    known = names.run_id(folder.parent)
    if known is not None and known != found.run_id:
        yield Problem(
            manifest.NAME, None, f"is of run {found.run_id}, this folder is of run {known}"
        )
    step = names.step_of(folder.name)
    if step is not None and step != found.step:
        yield Problem(manifest.NAME, None, f"is of step {found.step}, the folder says {step}")


def _sizes(folder: Path, found: Manifest) -> Iterator[Problem]:
    for entry in found.files:
        path, rank = folder / entry["path"], entry["rank"]
        try:
            status = path.lstat()
        except OSError:
            yield Problem(entry["path"], rank, "is missing")
            continue
        if not stat.S_ISREG(status.st_mode):
            yield Problem(entry["path"], rank, "is not a regular file")
        elif status.st_size != entry["size"]:
            what = f"has {status.st_size} bytes, the manifest says {entry['size']}"
            yield Problem(entry["path"], rank, what)


def _extra(folder: Path, found: Manifest) -> Iterator[Problem]:
    vouched = {manifest.NAME, *(entry["path"] for entry in found.files)}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and relative not in vouched:
            yield Problem(relative, None, _STRAY)


def _contents(folder: Path, files: list[Entry]) -> Iterator[Problem]:
    for entry in files:
        try:
            digest = manifest.sha256(folder / entry["path"])
        except OSError as error:
            yield Problem(entry["path"], entry["rank"], f"cannot be read: {error.strerror}")
            continue
        if digest != entry["sha256"]:
            yield Problem(entry["path"], entry["rank"], "has other content than when it was saved")
