"""What one rank does from joining the world to its exit code."""

from __future__ import annotations

import atexit
import hashlib
import signal
import time
from contextlib import suppress

import torch
from torch.distributed import distributed_c10d

from ds_llama.config.run import Run
from ds_llama.errors import DsLlamaError
from ds_llama.trainer.account import Recording
from ds_llama.trainer.build import construct
from ds_llama.trainer.job import run_lock
from ds_llama.trainer.state import TrainState
from ds_llama.trainer.train import train_locked
from ds_llama.trainer.watching import collective_timeout, watched
from ds_llama.zero import world
from ds_llama.zero.register import register

_STAY_S = 2.0
"""How long rank 0 stays for ranks that may never meet the error that it has met."""


def run_rank(run: Run, resume: str) -> TrainState:
    """Construct, register and train as one rank of the launcher's world.

    Raises SystemExit, without a word, on a rank that meets a mistake that another rank has
    reported already: a wrong path is one message and not one for every process.
    """
    try:
        world.join(collective_timeout(run))
        # The lock before `register` writes into the folder.
        with run_lock(run), watched(run), Recording.of(run) as recording:
            state = train_locked(register(construct(run), run), run, resume, recording)
    except DsLlamaError as error:
        if _reported_elsewhere(error):
            raise SystemExit(error.exit_code) from error
        raise
    # All ranks together: the launcher takes the first non-zero exit, which a stop has, as a failure
    # and ends the others, one of which may still be writing its last rows; all has been done, so
    # nobody's exit code is to be that of the SIGTERM.
    if state.stopped_by:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return state


def _reported_elsewhere(error: DsLlamaError) -> bool:
    """Whether another rank was first to report an error of this kind and place.

    The numbers in it may differ: every rank meets another token that is too large for the model.
    False when nobody can be asked.
    """
    if not torch.distributed.is_initialized():
        return False
    kind = f"{type(error).__name__} at {error.where}"
    key = f"ds_llama/reported/{hashlib.sha256(kind.encode()).hexdigest()}"
    try:
        store = distributed_c10d._get_default_store()
        first = bool(store.add(key, 1) == 1)
    except (RuntimeError, ValueError):
        return False
    if world.rank() == 0:
        atexit.register(_stay_until_all_asked, store, key)
    return not first


def _stay_until_all_asked(store: torch.distributed.Store, key: str) -> None:
    """Rank 0 is the store: a rank that asks when it is gone prints a stack of C++ frames."""
    end = time.monotonic() + _STAY_S
    with suppress(RuntimeError):
        while store.add(key, 0) < world.world_size() and time.monotonic() < end:
            time.sleep(0.02)
