"""Save an engine: every rank writes and hashes its files, rank 0 seals them into a checkpoint.

rank 0     begin ─┐                              ┌─ state and layout, seal, latest, prune
all ranks         └─ shards ─> checksums, generators ─> entries
                     (an error on any rank is raised on all, and nothing is sealed)

`background` does the same with a copy of the shards, and leaves the writing and what follows to
threads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ds_llama.checkpoint import checksums, ranks, shards
from ds_llama.checkpoint import state as states
from ds_llama.commit import disk, manifest, names, protocol
from ds_llama.commit.manifest import Entry
from ds_llama.commit.retention import prune
from ds_llama.errors import CheckpointError, DsLlamaError
from ds_llama.measure import accounting
from ds_llama.zero import world

log = logging.getLogger(__name__)
T = TypeVar("T")


@accounting.phase("save")
def save(
    engine: Any,
    root: str | Path,
    step: int,
    state: dict[str, Any],
    resolved: Any,
    *,
    keep_last: int | None = None,
    keep_every_steps: int | None = None,
    records: Sequence[Path] = (),
) -> Path:
    """Commit a checkpoint of `engine` after update `step` under the folder `root`; collective.

    state: the trainer's position (step, tokens_seen, samples_seen, …), JSON; `resume` gives it
    back. keep_last: remove older checkpoints afterwards (commit.retention). records: files that
    tell of the steps up to this one; what is in them is on the disk before it is committed. Returns
    the step folder. Raises CheckpointError on every rank when one of them fails: nothing is sealed
    then, what was staged is removed, and every checkpoint committed before is as it was.
    """
    target = Target(Path(root), names.step_name(step), keep_last, keep_every_steps, records)
    with target.or_nothing():
        mine, content = prepare(engine, target, step, state, resolved, shards.write)
        entries = [entry for written in ranks.gather(mine) for entry in written]
        return ranks.together(
            target.doing, target.root, lambda: target.commit(entries, content), only=0
        )


@dataclass(frozen=True)
class Target:
    """The checkpoint that is to come into being, and what may go once it is there."""

    root: Path
    name: str
    keep_last: int | None = None
    keep_every_steps: int | None = None
    records: Sequence[Path] = ()

    @property
    def doing(self) -> str:
        """What errors say was being done."""
        return f"saving {self.name}"

    @property
    def staged(self) -> Path:
        """Where the ranks' files go until it is sealed."""
        return names.staging(self.root, self.name)

    @contextmanager
    def or_nothing(self) -> Iterator[None]:
        """An error in the block, which has to be on all ranks, leaves nothing staged."""
        try:
            yield
        except DsLlamaError:
            if world.rank() == 0:
                protocol.discard(self.root, self.name)
            raise

    def commit(self, entries: list[Entry], content: states.Content) -> Path:
        """Seal what all ranks have written, and prune; on rank 0 alone, from any thread.

        entries: every file of every rank. content: of state.json and layout.json.
        """
        files = content.files()
        for name, data in files.items():
            disk.write(self.staged / name, data)
        entries = entries + manifest.entries(self.staged, [*files])
        meta = {key: content.state[key] for key in ("step", "world_size", "stage")}
        for path in self.records:
            disk.sync_record(path)
        final = protocol.seal(self.root, self.name, entries, meta)
        if self.keep_last is not None:
            _prune(self.root, self.keep_last, self.keep_every_steps)
        return final


def prepare(
    engine: Any,
    target: Target,
    step: int,
    state: dict[str, Any],
    resolved: Any,
    take: Callable[[Any, Path], list[T]],
) -> tuple[list[T], states.Content]:
    """What `take` makes of this rank's files, and what goes beside them; collective.

    To be called under `target.or_nothing`. Raises CheckpointError on all ranks.
    """
    root, doing = target.root, target.doing
    if resolved.unsaved is not None:
        raise CheckpointError(
            f"DeepSpeed cannot resume {resolved.unsaved}, so nothing was saved",
            where=str(root),
            remedy="export the weights, or offload to the host",
        )
    staged = ranks.together(doing, root, lambda: protocol.begin(root, target.name), only=0)
    ranks.together(doing, root, lambda: _require_seen(staged))
    mine = ranks.together(doing, root, lambda: take(engine, staged))
    sums = checksums.compute(engine)
    everyones = ranks.gather(states.of_rank(engine))
    content = states.build(engine, step, state, resolved, everyones, sums)
    return mine, states.Content.of(engine, content, everyones)


def _require_seen(staged: Path) -> None:
    if not staged.is_dir():
        raise CheckpointError(
            f"rank {world.rank()} does not see the folder that rank 0 made",
            where=str(staged),
            remedy="put the output folder on a file system that all hosts share",
        )


def _prune(root: Path, keep_last: int, keep_every_steps: int | None) -> None:
    try:
        prune(root, keep_last, keep_every_steps)
    except (DsLlamaError, OSError) as error:
        # The new checkpoint is committed: an old one too many is no reason to stop a run.
        log.warning("old checkpoints were not removed: %s", error)
