"""DeepSpeed's own files of a checkpoint, written so that a rank that fails does not hang the rest.

`engine.save_checkpoint` ends in a barrier: a rank whose write raises never gets there, and the
others wait for it until the process group times out. Here a write that fails is kept, the rank
goes on to the barrier, and the ranks compare notes afterwards. The same hook hashes each file as
it is written, so that nothing has to be read back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, cast

import torch
from deepspeed import comm
from deepspeed.checkpoint.constants import OPTIMIZER_STATE_DICT, ZERO_STAGE

from ds_llama.checkpoint import swapped
from ds_llama.checkpoint.snapshot import Snapshot
from ds_llama.commit import disk
from ds_llama.commit.manifest import Entry
from ds_llama.zero import swap, world

T = TypeVar("T")


def write(engine: Any, staged: Path) -> list[Entry]:
    """Have the engine write its files into `staged`; the entries of those that this rank wrote.

    Collective, and it returns or raises on each rank by itself: compare afterwards.
    """
    return _saved(
        engine,
        staged,
        lambda content, path: save_hashed(content, path, staged),
        first=lambda: swapped.write(engine, staged),
    )


@dataclass(frozen=True)
class Pending:
    """A file of this rank that is not written yet."""

    snapshot: Snapshot
    path: Path
    staged: Path

    def write(self) -> Entry:
        """Write and hash it, from any thread."""
        return save_hashed(self.snapshot.restore(), self.path, self.staged)


def snapshot(engine: Any, staged: Path) -> list[Pending]:
    """Copies in host memory of the files that `write` would write of the engine as it is now.

    Collective like `write`. Not for engines that swap to NVMe: it is not copied.
    """
    return _saved(engine, staged, lambda content, path: Pending(Snapshot(content), path, staged))


def _saved(
    engine: Any,
    staged: Path,
    keep: Callable[[Any, Path], T],
    first: Callable[[], list[T]] = list,
) -> list[T]:
    """What `first` gives, and what `keep` makes of the files that the engine saves on this rank."""
    with _recorded(engine, keep) as recorder:
        recorder.add(first)
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
    return recorder.kept


class _Recorder(Generic[T]):
    """Stands in for the engine's checkpoint engine while it saves."""

    def __init__(self, wrapped: Any, stage: int, keep: Callable[[Any, Path], T]) -> None:
        self._wrapped, self._stage, self._keep = wrapped, stage, keep
        self.begun = False
        self.kept: list[T] = []
        self.errors: list[Exception] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def create(self, info: Any) -> None:
        self.begun = True
        self._wrapped.create(info)

    def add(self, make: Callable[[], list[T]]) -> None:
        """Keep what is made, unless something has failed before."""
        if self.errors:
            return
        try:
            self.kept += make()
        except Exception as error:
            self.errors.append(error)

    def save(self, state_dict: Any, path: str) -> None:
        self._name_stage(state_dict)
        self.add(lambda: [self._keep(state_dict, Path(path))])

    def _name_stage(self, state_dict: dict[str, Any]) -> None:
        """BF16_Optimizer does not say its stage, without which zero_to_fp32 reads nothing."""
        states = state_dict.get(OPTIMIZER_STATE_DICT)
        if self._stage > 0 and states is not None:
            states.setdefault(ZERO_STAGE, self._stage)


@contextmanager
def _recorded(engine: Any, keep: Callable[[Any, Path], T]) -> Iterator[_Recorder[T]]:
    wrapped = engine.checkpoint_engine
    recorder = _Recorder(wrapped, engine.zero_optimization_stage(), keep)
    engine.checkpoint_engine = recorder
    # The recovery scripts would go beside the checkpoint and are in every DeepSpeed install.
    engine._copy_recovery_script = lambda save_path: None
    # Its copies of the swap files would fail before the collectives that follow (engine.py:4937).
    engine.zero_nvme_offload_optimizer = lambda: False
    engine._get_param_fragment_func = _frozen
    try:
        yield recorder
    finally:
        engine.checkpoint_engine = wrapped
        del engine._copy_recovery_script
        del engine.zero_nvme_offload_optimizer, engine._get_param_fragment_func


def _frozen(parameter: Any) -> torch.Tensor:
    """What DeepSpeed saves of a frozen parameter (engine.py:5430), from NVMe too."""
    if not hasattr(parameter, "ds_id"):
        return cast("torch.Tensor", parameter.detach().cpu())
    away = parameter.ds_tensor.status.name != "AVAILABLE"
    with swap.slice_of(parameter) as flat:
        return flat.detach().to("cpu", copy=away)


def save_hashed(state_dict: Any, path: Path, staged: Path) -> Entry:
    """torch.save, with the hash taken on the way and the file on the disk afterwards."""
    with disk.naming(path), path.open("wb") as raw:
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
