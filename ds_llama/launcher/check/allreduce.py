"""`python -m ds_llama.launcher.check.allreduce MARK`: one rank of a real all-reduce over all ranks.

Started as a training's ranks are. Rank 0 prints what was measured as JSON behind the mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from ds_llama.launcher import slurm
from ds_llama.launcher.check.limits import Limits
from ds_llama.launcher.environment import has_device
from ds_llama.launcher.marks import report_finished
from ds_llama.launcher.orphan import die_with_parent

LOGS = "ds-llama-check-"  # what the ranks of one check print; of older ones, nothing is kept
_OLD_S = 3600.0
_ELEMENTS = 2**20  # 4 MiB of fp32: more than latency, and no time at all on a slow link
_ROUNDS = 5


def main(mark: str) -> None:
    """Join, add up, compare with the sum that must come out, leave."""
    slurm.become_rank()
    die_with_parent()
    began = time.monotonic()
    import torch
    import torch.distributed as dist

    device = torch.device("cpu")
    if has_device() and torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    backend = "gloo" if device.type == "cpu" else "nccl"
    imported_s = time.monotonic() - began
    dist.init_process_group(backend, timeout=timedelta(seconds=Limits.of(os.environ).join_s))
    rank, ranks = dist.get_rank(), dist.get_world_size()
    took = []
    for _ in range(_ROUNDS):
        values = torch.full((_ELEMENTS,), float(rank + 1), device=device)
        dist.barrier()
        round_began = time.monotonic()
        dist.all_reduce(values)
        total = float(values[-1])  # waits for the device
        took.append(time.monotonic() - round_began)
        if total != ranks * (ranks + 1) / 2:
            raise SystemExit(f"error: the sum over {ranks} ranks is {total}")
    chosen = os.environ.get("GLOO_SOCKET_IFNAME" if backend == "gloo" else "NCCL_SOCKET_IFNAME")
    told: list[Any] = [None] * ranks
    dist.all_gather_object(told, (socket.gethostname(), chosen))
    if rank == 0:
        seconds = statistics.median(took)
        moved_bytes = values.numel() * values.element_size()
        row = {
            "backend": backend,
            "ranks": ranks,
            "interfaces": dict(told),
            "import_s": round(imported_s, 3),
            "join_s": round(time.monotonic() - began - imported_s - sum(took), 3),
            "bytes": moved_bytes,
            "allreduce_s": seconds,
            # as nccl-tests has it: what each link carries of a ring
            "bus_bytes_per_s": moved_bytes / seconds * 2 * (ranks - 1) / ranks,
        }
        print(mark, json.dumps(row), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    report_finished()
    if os.environ["LOCAL_RANK"] == "0":
        _tidy()


def _tidy() -> None:
    """Remove from this host what earlier checks of this user have left."""
    for folder in Path(tempfile.gettempdir()).glob(LOGS + "*"):
        with contextlib.suppress(OSError):
            status = folder.stat()
            if status.st_uid == os.getuid() and time.time() - status.st_mtime > _OLD_S:
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[-1])
