"""A world of any size in one process: torch's fake process group, seen from one of its ranks."""

from __future__ import annotations

import os

import torch.distributed as dist


def join(rank: int, world_size: int) -> None:
    """Be rank `rank` of `world_size`, as a launcher's environment would say it.

    Collectives on the "fake" backend return at once and leave their outputs as they are. LOCAL_SIZE
    is 1: this process has one device, whatever the nodes of the simulated cluster have.
    """
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK="0",
        WORLD_SIZE=str(world_size),
        LOCAL_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )
    # Registers the backend; the only place where torch has it.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
