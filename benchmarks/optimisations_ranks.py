"""The rows of benchmarks/optimisations.py that take two processes: each rank of one launch.

    torchrun --nproc-per-node 2 benchmarks/optimisations_ranks.py FOLDER REPEATS

Rank 0 prints one line: base64 of a JSON list of [what is compared, before, after].
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from ds_llama.config import load_run
from ds_llama.config.resolve import Resolved
from ds_llama.measure.accounting import Account
from ds_llama.measure.traffic import Traffic
from ds_llama.model.traits import traits_of
from ds_llama.planner.memory import memory
from ds_llama.planner.traffic import traffic
from ds_llama.simulator.window import steady_steps
from ds_llama.zero import construct, register, world
from ds_llama.zero import engine as engines
from ds_llama.zero.step import Batch, take_step

MICRO, TOKENS, VOCABULARY = 2, 256, 4096
Found = tuple[dict[str, Any], list[float], list[float]]


def resolved_of(folder: str, stage: int, accumulation: int = 1, **zero: Any) -> Resolved:
    rows = MICRO * accumulation * world.world_size()
    run = {
        "model": {"preset": "quickstart"},
        "data": {"train": "none", "sequence_length": TOKENS},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 9, "micro_batch_size": MICRO, "global_batch_size": rows},
        "deepspeed": {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage, **zero}},
        "output": folder,
    }
    return register.resolve_here(load_run(run))


def window(resolved: Resolved) -> list[Batch]:
    ids = [
        torch.randint(0, VOCABULARY, (MICRO, TOKENS)) for _ in range(resolved.accumulation_steps)
    ]
    return [{"input_ids": each, "labels": each} for each in ids]


@contextmanager
def engine_of(resolved: Resolved) -> Iterator[Any]:
    model = construct.build(resolved)
    engine = register.initialize(model, resolved, resolved.deepspeed, traits_of(model))
    yield engine
    engines.destroy(engine)


def accumulation(folder: str, repeats: int) -> Iterator[Found]:
    """Gradients reduced once a window, where the stage lets them wait."""
    moved, planned = [], []
    for stage in (2, 1):
        resolved = resolved_of(folder, stage, accumulation=4)
        with engine_of(resolved) as engine, Traffic() as counted:
            for _ in range(steady_steps(resolved)):
                counted.reset()
                take_step(engine, window(resolved))
            moved.append(float(sum(counted.read().collectives.values())))
        planned.append(sum(traffic(resolved).collectives.values()))
    yield (
        {
            "name": "accumulation",
            "what": "what a rank moves in a step of four micro-batches: stage 1 reduces gradients "
            "once, stage 2 each time",
            "predicted": planned[1] / planned[0],
            "predicted_from": "the plan's traffic",
            "unit": "bytes",
        },
        moved[:1],
        moved[1:],
    )


def buckets(folder: str, repeats: int) -> Iterator[Found]:
    """Bucket sizes by the model, against DeepSpeed's defaults."""
    default = {"reduce_bucket_size": 5e8, "stage3_prefetch_bucket_size": 5e7}
    held, planned = [], []
    for zero in (default, {}):
        resolved, account = resolved_of(folder, 3, **zero), Account()
        with account, engine_of(resolved) as engine:
            take_step(engine, window(resolved))
        held.append(float(max(phase.total.peak_bytes for phase in account.phases)))
        planned.append(memory(resolved).total_peak_bytes)
    yield (
        {
            "name": "buckets",
            "what": "bucket sizes by the model at stage 3, quickstart, against DeepSpeed's 5e8",
            "predicted": planned[1] / planned[0],
            "predicted_from": "the plan's memory",
            "unit": "peak bytes",
        },
        held[:1],
        held[1:],
    )


class Reads(TorchDispatchMode):
    """How often this package's own code reads a number from the device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.seen(sys._getframe(1))
        return func(*args, **(kwargs or {}))

    def seen(self, frame: Any) -> None:
        while frame is not None:
            if frame.f_globals["__name__"].startswith("ds_llama"):
                # What is read of a window that is on the host waits for nothing.
                self.count += frame.f_code.co_name != "valid_tokens"
                return
            if frame.f_globals["__name__"].startswith("deepspeed"):
                return
            frame = frame.f_back


def reads(folder: str, repeats: int) -> Iterator[Found]:
    """Reads of a step whose row is not logged."""
    resolved, tolist = resolved_of(folder, 2), torch.Tensor.tolist
    with engine_of(resolved) as engine:
        take_step(engine, window(resolved))
        with Reads() as found:

            def counting(tensor: torch.Tensor) -> Any:
                found.seen(sys._getframe(1))
                return tolist(tensor)

            with mock.patch.object(torch.Tensor, "tolist", counting):
                take_step(engine, window(resolved))
    yield (
        {
            "name": "host reads",
            "what": "numbers read from the device in a step at stage 2 (before: counted so before "
            "the wish to stop went with the tokens, and the norm was read where it is logged)",
            "predicted": 2 / 5,
            "predicted_from": "the loss, and tokens with the wish to stop in one number, are left",
            "unit": "reads",
        },
        [5.0],
        [float(found.count)],
    )


def bind(cores: list[int]) -> None:
    """Every thread of this process."""
    for thread in os.listdir("/proc/self/task"):
        os.sched_setaffinity(int(thread), cores)


def binding(folder: str, repeats: int) -> Iterator[Found]:
    """Each rank on its share of the cores, against all ranks on all of them; step after step."""
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // world.world_size()
    own = cores[share * world.rank() : share * (world.rank() + 1)] or cores
    resolved = resolved_of(folder, 2)
    seconds: dict[str, tuple[list[float], list[float]]] = {"wall": ([], []), "CPU": ([], [])}
    with engine_of(resolved) as engine:
        for number in range(2 * repeats + 2):
            for side, mask in enumerate((cores, own)):
                bind(mask)
                batch = window(resolved)
                dist.barrier()
                wall, used = time.perf_counter(), time.process_time()
                take_step(engine, batch)
                dist.barrier()
                if number >= 2:
                    seconds["wall"][side].append(time.perf_counter() - wall)
                    seconds["CPU"][side].append(time.process_time() - used)
    bind(cores)
    for unit, (before, after) in seconds.items():
        yield (
            {
                "name": f"core binding {unit}",
                "what": f"each of {world.world_size()} ranks bound to its share of {len(cores)} "
                "cores in a step of stage 2 (not taken)",
                "predicted": 1.0,
                "predicted_from": "one thread a core, one NUMA node: the system moves neither",
                "unit": f"{unit} s",
            },
            before,
            after,
        )


def main(folder: str, repeats: int) -> None:
    torch.set_num_threads(1)
    world.join()
    torch.manual_seed(world.rank())
    parts = (accumulation, buckets, reads, binding)
    found = [row for part in parts for row in part(folder, repeats)]
    if world.rank() == 0:
        print(base64.b64encode(json.dumps(found).encode()).decode(), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(str(Path(sys.argv[1])), int(sys.argv[2]))
