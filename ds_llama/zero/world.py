"""The process group that a run lives in: who we are, and how we joined."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch.distributed import distributed_c10d

from ds_llama.zero import compilers

TIMEOUT = timedelta(minutes=30)
_MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")


def join(timeout: timedelta = TIMEOUT) -> None:
    """Join the process group that the launcher described, or a world of one without a launcher.

    `timeout` is that of every group, of those that DeepSpeed makes without one too, which would
    have 10 minutes on NCCL (`torch.distributed.constants`): a hang is to be named before.
    """
    prepare()
    if not deepspeed.comm.is_initialized():
        distributed_c10d.default_pg_timeout = timeout
        if distributed_c10d.default_pg_nccl_timeout is not None:
            distributed_c10d.default_pg_nccl_timeout = timeout
        deepspeed.init_distributed(
            dist_backend=get_accelerator().communication_backend_name(),
            timeout=timeout,
            verbose=False,
        )


def prepare() -> None:
    """What DeepSpeed needs before it makes a process group, and torch's compiler put off.

    Without a launcher it looks for MPI, and dies for want of mpi4py: a plain `python train.py` is a
    world of one process instead. On CPU it compiles deepspeed_shm_comm, which takes a minute or
    more, in every rank, without a word (deepspeed/comm/torch.py:207). Only `inference_all_reduce`
    uses that op, and without it takes the group's own all-reduce.
    """
    if not _launched() and not torch.distributed.is_initialized():
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    compilers.spare()
    if not deepspeed.comm.is_initialized():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _launched() -> bool:
    """Whether a launcher, torch's, DeepSpeed's or MPI's, has said which rank this process is.

    Slurm's srun says it of a single task too, on clusters where that is MPI's way (PMI).
    """
    names = ("RANK", "WORLD_SIZE", *_MPI_RANKS)
    alone = os.environ.get("PMI_SIZE") == "1"
    return any(name in os.environ for name in names if not (alone and name == "PMI_RANK"))


def rank() -> int:
    """This process's rank; 0 before any process group exists."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else _env("RANK", 0)


def world_size() -> int:
    """Processes in the run, as the process group or the launcher says; 1 without either."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    return _env("WORLD_SIZE", 1)


def device() -> torch.device:
    """The device that this rank computes on."""
    return torch.device(get_accelerator().current_device_name())


def _env(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
