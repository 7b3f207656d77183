"""Save an engine: every rank writes and hashes its files, rank 0 seals them into a checkpoint.

rank 0     begin ────────────┐             ┌─ state.json, seal, latest, prune
all ranks                    └─ shards ──> gather entries, generators, checksums
                                (an error on any rank is raised on all, and nothing is sealed)
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from ds_llama.checkpoint import checksums, ranks, shards
from ds_llama.checkpoint import state as states
from ds_llama.commit import disk, manifest, names, protocol
from ds_llama.commit.manifest import Entry
from ds_llama.commit.retention import prune
from ds_llama.errors import CheckpointError, DsLlamaError
from ds_llama.measure import accounting
from ds_llama.zero import world

log = logging.getLogger(__name__)


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
) -> Path:
    """Commit a checkpoint of `engine` after update `step` under the folder `root`; collective.

    state: the trainer's position (step, tokens_seen, samples_seen, …), JSON; `resume` gives it
    back. keep_last: remove older checkpoints afterwards (commit.retention). Returns the step
    folder. Raises CheckpointError on every rank when one of them fails: nothing is sealed then,
    what was staged is removed, and every checkpoint committed before is as it was.
    """
    if resolved.unsaved is not None:
        raise CheckpointError(
            f"DeepSpeed cannot resume {resolved.unsaved}, so nothing was saved",
            where=str(root),
            remedy="export the weights, or offload to the host",
        )
    root, name = Path(root), names.step_name(step)
    doing = f"saving {name}"
    staged = ranks.together(doing, root, lambda: protocol.begin(root, name), only=0)
    try:
        ranks.together(doing, root, lambda: _require_seen(staged))
        mine = ranks.together(doing, root, lambda: shards.write(engine, staged))
        sums = checksums.compute(engine)
        collected = ranks.gather((mine, states.of_rank(engine)))
        entries = [entry for written, _ in collected for entry in written]
        content = states.build(engine, step, state, resolved, [r for _, r in collected], sums)
        final = ranks.together(
            doing, root, lambda: _seal(root, name, entries, content, resolved), only=0
        )
    except DsLlamaError:
        if world.rank() == 0:
            protocol.discard(root, name)
        raise
    if keep_last is not None and world.rank() == 0:
        _prune(root, keep_last, keep_every_steps)
    return final


def _require_seen(staged: Path) -> None:
    if not staged.is_dir():
        raise CheckpointError(
            f"rank {world.rank()} does not see the folder that rank 0 made",
            where=str(staged),
            remedy="put the output folder on a file system that all hosts share",
        )


def _seal(
    root: Path, name: str, entries: list[Entry], content: dict[str, Any], resolved: Any
) -> Path:
    staged = names.staging(root, name)
    disk.write(staged / states.NAME, (json.dumps(content, indent=1) + "\n").encode())
    entries = entries + manifest.entries(staged, [states.NAME])
    meta = {"step": content["step"], "world_size": resolved.world_size, "stage": resolved.stage}
    return protocol.seal(root, name, entries, meta)


def _prune(root: Path, keep_last: int, keep_every_steps: int | None) -> None:
    try:
        prune(root, keep_last, keep_every_steps)
    except (DsLlamaError, OSError) as error:
        # The new checkpoint is committed: an old one too many is no reason to stop a run.
        log.warning("old checkpoints were not removed: %s", error)
