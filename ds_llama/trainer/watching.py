"""The ranks of a run, watched (`measure.liveness`): who hangs is named, and the run ends."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import torch
from torch.distributed import distributed_c10d

from ds_llama.checkpoint import ranks
from ds_llama.config.run import Run
from ds_llama.measure import pulse
from ds_llama.measure.liveness import Watch
from ds_llama.trainer import events
from ds_llama.zero import world

FOLDER = ".ranks"


@contextmanager
def watched(run: Run) -> Iterator[None]:
    """Have the ranks of this run watched in here; collective.

    Nothing without `stability.hang_timeout_s`, and with one rank, for which nobody waits.
    """
    timeout_s, output = run.stability.hang_timeout_s, Path(run.output)
    if timeout_s is None or world.world_size() == 1:
        yield
        return
    pulse.HERE.of_this_thread()
    folder = ranks.together("watching the ranks", output, lambda: _fresh(output), only=0)
    watch = Watch(
        *(folder, world.rank(), world.world_size(), timeout_s),
        collectives=collectives_begun,
        ended=lambda what: events.append(output, "hang", pulse.HERE.step, what),
    )
    watch.start()
    try:
        yield
        with pulse.within("end"):  # who is late here is watched too
            torch.distributed.barrier()
    finally:
        watch.stop()


def collective_timeout(run: Run) -> timedelta:
    """What collectives wait: longer than it takes to name who hangs."""
    return max(world.TIMEOUT, timedelta(seconds=1.25 * (run.stability.hang_timeout_s or 0)))


def collectives_begun() -> int:
    """Of all process groups of this rank together; 0 where a backend does not count."""
    with suppress(RuntimeError, AttributeError):
        return sum(
            group._get_sequence_number_for_group() for group in list(distributed_c10d._world.pg_map)
        )
    return 0


def _fresh(output: Path) -> Path:
    """A folder of this attempt's own: others may have been killed, and have left theirs."""
    shutil.rmtree(output / FOLDER, ignore_errors=True)
    folder = output / FOLDER / uuid4().hex[:8]
    folder.mkdir(parents=True)
    return folder
