"""Save while training goes on, from a copy in host memory.

main threads       finish the save before ─ begin, copy the shards, checksums ─> train on …
a thread a rank                                      └─ write, hash, fsync ─> written-RANK.json
and on rank 0                                              … of all ranks ─> seal, latest, prune

Everything that goes into a checkpoint is taken by the main threads between two steps, so it is of
one step. No thread takes part in a collective, whose order among ranks the main threads set: that a
rank's files are on the disk is said by a file beside the staged ones. A rank that fails writes none
and nothing is sealed; `finish`, where the main threads meet, raises it on all of them. That they
should meet is `failed` on that rank: the training loop stops all at the next step.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_llama.checkpoint import ranks, shards
from ds_llama.checkpoint.save import Target, prepare
from ds_llama.checkpoint.shards import Pending
from ds_llama.checkpoint.state import Content
from ds_llama.commit import names
from ds_llama.commit.manifest import Entry
from ds_llama.errors import DsLlamaError
from ds_llama.measure import accounting
from ds_llama.zero import world

log = logging.getLogger(__name__)

POLL_S = 0.05
PATIENCE_S = 20.0
"""How long `close` lets the other ranks write: less than what a launcher gives after a signal."""


class Background:
    """At most one save in progress. `save` and `finish` are collective."""

    def __init__(self) -> None:
        self._current: _Writing | None = None
        self._written: list[tuple[str, float]] = []

    @accounting.phase("save")
    def save(
        self,
        engine: Any,
        root: str | Path,
        step: int,
        state: dict[str, Any],
        resolved: Any,
        *,
        keep_last: int | None = None,
        keep_every_steps: int | None = None,
        records: Sequence[Path] = (),
    ) -> None:
        """As `save.save`, but returns when everything is copied; it is committed some time later.

        Takes as many bytes of each rank's host memory as the rank's files have, until they are
        written. Not for a run that offloads to NVMe. Raises CheckpointError on every rank, also for
        the save before, which is finished first.
        """
        self.finish()
        target = Target(Path(root), names.step_name(step), keep_last, keep_every_steps, records)
        with target.or_nothing():
            files, content = prepare(engine, target, step, state, resolved, shards.snapshot)
        # Parts of the content belong to the engine and to the caller, who go on.
        self._current = _Writing(target, files, copy.deepcopy(content))

    @property
    def failed(self) -> bool:
        """Whether this rank's part of the save in progress has failed, which `finish` raises."""
        return self._current is not None and self._current.failed

    def finish(self) -> None:
        """Wait until the save in progress, if there is one, is committed.

        Raises CheckpointError on every rank when one of them failed: nothing of it is left then,
        and what was committed before is as it was.
        """
        current, self._current = self._current, None
        if current is not None:
            with current.target.or_nothing():
                current.finish()
            self._note(current)

    def close(self) -> None:
        """Let the save in progress come to its end where ranks do not meet again: after an error.

        It is given up, as by a crash, when another rank does not write its part in time.
        """
        current, self._current = self._current, None
        if current is not None:
            current.close()

    def written(self) -> list[tuple[str, float]]:
        """What was committed since the last call, and the seconds that writing it took.

        Rank 0 knows as soon as it is, the others when it is finished.
        """
        if self._current is not None and self._current.committed:
            self._note(self._current)
        found, self._written = self._written, []
        return found

    def _note(self, done: _Writing) -> None:
        if not done.noted:
            done.noted = True
            self._written.append((done.target.name, done.seconds))


class _Writing:
    """One save after its copies were taken: a thread that writes and, on rank 0, seals."""

    def __init__(self, target: Target, files: list[Pending], content: Content) -> None:
        self.target = target
        self.seconds = 0.0
        self.committed = self.noted = False
        self._rank, self._world_size = world.rank(), world.world_size()
        self._files, self._content = files, content
        self._entries: list[Entry] = []
        self._everyones: list[Entry] | None = None
        self._problem: DsLlamaError | None = None
        self._given_up = False
        self._own_part_done, self._woken = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoint")
        self._thread.start()

    @property
    def failed(self) -> bool:
        return self._problem is not None

    def finish(self) -> None:
        """Collective; raises on all ranks."""
        self._own_part_done.wait()
        found = ranks.gather((self._problem, self._entries))
        problem = next((problem for problem, _ in found if problem is not None), None)
        # Rank 0 need not look for what the others' threads say in the folder any more.
        self._wake(None if problem else [entry for _, entries in found for entry in entries])
        if problem is not None:
            raise problem
        ranks.together(self.target.doing, self.target.root, self._require_no_problem)

    def close(self) -> None:
        """Not collective, raises nothing."""
        self._own_part_done.wait()
        self._thread.join(PATIENCE_S)
        self._wake(None)
        if self._rank == 0 and not self.committed and self._problem is None:
            log.warning(
                "%s was given up, since not every rank has written its part; the last complete "
                "checkpoint stands",
                self.target.name,
            )

    def _wake(self, everyones: list[Entry] | None) -> None:
        """Rank 0's thread waits no longer: it goes on with the entries of all, or ends."""
        self._everyones, self._given_up = everyones, everyones is None
        self._woken.set()
        self._thread.join()

    def _require_no_problem(self) -> None:
        if self._problem is not None:
            raise self._problem

    def _run(self) -> None:
        start = time.perf_counter()
        try:
            self._write()
            everyones = self._await_others() if self._rank == 0 else None
            if everyones is not None:
                self.target.commit(everyones, self._content)
            self.seconds = time.perf_counter() - start
            self.committed = everyones is not None
        except Exception as error:
            self._files.clear()
            self._problem = ranks.explained(error, self.target.doing, self.target.root)
            log.warning("%s; the run stops", self._problem.what)
        finally:
            self._own_part_done.set()

    def _write(self) -> None:
        while self._files:
            self._entries.append(self._files.pop(0).write())  # and its copy is given back
        # Not synced: it is for rank 0 as it runs, which removes the folder once it has seen it.
        note = self._note_of(self._rank)
        partial = note.with_suffix(".partial")
        partial.write_text(json.dumps(self._entries))
        partial.rename(note)
        self._own_part_done.set()

    def _await_others(self) -> list[Entry] | None:
        """The entries of all ranks when all have written; None when that is given up."""
        found: dict[int, list[Entry]] = {}
        while self._everyones is None and not self._given_up:
            for rank in {*range(self._world_size)} - found.keys():
                if (note := self._note_of(rank)).exists():
                    found[rank] = json.loads(note.read_bytes())
            if len(found) == self._world_size:
                return [entry for rank in sorted(found) for entry in found[rank]]
            self._woken.wait(POLL_S)
        return self._everyones

    def _note_of(self, rank: int) -> Path:
        """Where a rank says that its files are on the disk: beside them, gone when it is sealed."""
        return self.target.staged.parent / f"written-{rank:05d}.json"
