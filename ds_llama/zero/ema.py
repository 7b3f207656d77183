"""An exponential moving average of the fp32 weights, kept where the optimizer keeps its moments.

    average <- average + (1 - decay) * (master - average)        after every update that was made

torch calls the hook after each step of the inner optimizer, and DeepSpeed makes one such step for
each flat fp32 partition of this rank (runtime/zero/stage_1_and_2.py:2983, stage3.py:1245): the hook
meets what has just been updated, nothing is gathered, and an update that is skipped calls nothing.
The average is one more tensor in the optimizer's state of that partition. So it is divided and
offloaded as the moments are, DeepSpeed saves and loads it with them, and it costs 4 bytes a
parameter, divided among the ranks.

The first update that is seen starts it as a copy, as `torch.optim.swa_utils.AveragedModel` does:
in a run that is resumed from a checkpoint without one, the first update after that.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed import distributed_c10d

from ds_llama.zero import engine as engines
from ds_llama.zero import world

KEY = "ema"
_CHUNK = 1 << 22  # elements held beside the model while two tensors are exchanged: 16 MiB
_PATIENCE_S = 10.0
_entered = itertools.count()  # the same on every rank, which enter together


def keep(engine: Any, decay: float) -> None:
    """Average the masters of `engine` from its next update on, whoever's loop steps it."""
    base = _base(engine)

    @torch.no_grad()
    def average(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for master in group["params"]:
                # A part of the optimizer that stays on the device (offload ratio below 1) has an
                # optimizer of its own, whose state DeepSpeed does not save.
                state = base.state[master]
                if KEY not in state:
                    state[KEY] = master.detach().clone()
                else:
                    state[KEY].lerp_(master.detach(), 1 - decay)

    for optimizer in (base, getattr(engine.optimizer, "backup_optimizer", None)):
        if optimizer is not None:
            optimizer.register_step_post_hook(average)


def drop(engine: Any) -> None:
    """Forget an average that was loaded and that this run does not go on with."""
    for state in _base(engine).state.values():
        state.pop(KEY, None)


@contextmanager
def averaged(engine: Any) -> Iterator[None]:
    """The model with averaged weights while the context is open; afterwards as before, bit for bit.

    Masters and averages change places, and the weights that forward uses are refreshed from the
    masters as after an update: all-gathered at stages 1 and 2, each rank's slices and the
    persistent parameters at stage 3, nothing at stage 0. Not for updates: only evaluate and export
    in it. Before the first update the average is the weights. Collective; an error that
    ends it restores everything if all ranks have met it.
    """
    key = f"ds_llama/ema/failed/{next(_entered)}"
    _exchange(engine)
    try:
        engines.refresh_weights(engine)
        yield
    except BaseException:
        _exchange(engine)
        if _on_all_ranks(key):
            engines.refresh_weights(engine)
        raise
    _exchange(engine)
    engines.refresh_weights(engine)


def _base(engine: Any) -> torch.optim.Optimizer:
    base: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return base


@torch.no_grad()
def _exchange(engine: Any) -> None:
    """Contents, not storages: other views of both exist (`_hp_mapping`; fp32 at stage 3)."""
    for master, state in _base(engine).state.items():
        if KEY in state:
            pairs = (master.data.view(-1), state[KEY].view(-1))
            for one, other in zip(*(tensor.split(_CHUNK) for tensor in pairs), strict=True):
                held = one.clone()
                one.copy_(other)
                other.copy_(held)


def _on_all_ranks(key: str) -> bool:
    """Whether every rank comes here with `key` within 10 s: a collective would find them all."""
    if world.world_size() == 1:
        return True
    store = distributed_c10d._get_default_store()
    arrived = store.add(key, 1)
    end = time.monotonic() + _PATIENCE_S
    while arrived < world.world_size() and time.monotonic() < end:
        time.sleep(0.05)
        arrived = store.add(key, 0)
    return bool(arrived >= world.world_size())
