"""DeepSpeed's own files of a checkpoint, written so that a rank that fails does not hang the rest.

`engine.save_checkpoint` ends in a barrier: a rank whose write raises never gets there, and the
others wait for it until the process group times out. Here a write that fails is kept, the rank
goes on to the barrier, and the ranks compare notes afterwards. The same hook hashes each file as
it is written, so that nothing has to be read back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from deepspeed import comm
from deepspeed.checkpoint.constants import OPTIMIZER_STATE_DICT, ZERO_STAGE

from ds_llama.commit import manifest
from ds_llama.commit.manifest import Entry
from ds_llama.zero import world


def write(engine: Any, staged: Path) -> list[Entry]:
    """Have the engine write its files into `staged`; the entries of those that this rank wrote.

    Collective, and it returns or raises on each rank by itself: compare afterwards.
    """
    with _recorded(engine, staged) as recorder:
        try:
            # DeepSpeed's own `latest` is written before the other ranks have finished.
            engine.save_checkpoint(str(staged.parent), tag=staged.name, save_latest=False)
        except Exception as error:
            if not recorder.begun:
                raise
            recorder.errors.append(error)
            comm.barrier()  # the one that the others wait at
    if recorder.errors:
        raise recorder.errors[0]
    swapped = staged / "offloaded_tensors" / f"rank{world.rank():02d}"
    files = sorted(path for path in swapped.rglob("*") if path.is_file())
    return recorder.entries + manifest.entries(staged, files, rank=world.rank())


class _Recorder:
    """Stands in for the engine's checkpoint engine while it saves."""

    def __init__(self, wrapped: Any, staged: Path, stage: int) -> None:
        self._wrapped, self._staged, self._stage = wrapped, staged, stage
        self.begun = False
        self.entries: list[Entry] = []
        self.errors: list[Exception] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def create(self, info: Any) -> None:
        self.begun = True
        self._wrapped.create(info)

    def save(self, state_dict: Any, path: str) -> None:
        if self.errors:
            return
        try:
            self._name_stage(state_dict)
            self.entries.append(_save_hashed(state_dict, Path(path), self._staged))
        except Exception as error:
            self.errors.append(error)

    def _name_stage(self, state_dict: dict[str, Any]) -> None:
        """BF16_Optimizer does not say its stage, without which zero_to_fp32 reads nothing."""
        states = state_dict.get(OPTIMIZER_STATE_DICT)
        if self._stage > 0 and states is not None:
            states.setdefault(ZERO_STAGE, self._stage)


@contextmanager
def _recorded(engine: Any, staged: Path) -> Iterator[_Recorder]:
    wrapped = engine.checkpoint_engine
    recorder = _Recorder(wrapped, staged, engine.zero_optimization_stage())
    engine.checkpoint_engine = recorder
    # The recovery scripts would go beside the checkpoint and are in every DeepSpeed install.
    engine._copy_recovery_script = lambda save_path: None
    try:
        yield recorder
    finally:
        engine.checkpoint_engine = wrapped
        del engine._copy_recovery_script


def _save_hashed(state_dict: Any, path: Path, staged: Path) -> Entry:
    with path.open("wb") as raw:
        file = _HashingFile(raw)
        try:
            torch.save(state_dict, cast("IO[bytes]", file))
        except Exception:
            # torch reports a failed write as a position it did not expect.
            if file.error is not None:
                raise file.error from None
            raise
        raw.flush()
        os.fsync(raw.fileno())
    relative = path.relative_to(staged).as_posix()
    digest = file.digest.hexdigest()
    return {"path": relative, "size": file.size, "sha256": digest, "rank": world.rank()}


class _HashingFile:
    """A file that is only written to, from the front: its hash is known when it is finished."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            count = int(self._raw.write(data))
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        self.size += count
        return count

    def flush(self) -> None:
        self._raw.flush()
