"""What this machine really does, measured in about a minute: a profile for `ds-llama plan`.

Every figure is a rate that was reached, so that the planner takes nothing off it. A processor is
measured by 1, 2, 4 and 8 processes at a time, as far as it has cores: ranks that train on it share
its caches and its memory, and halves of what one process gets are not what two get. On a machine
with CUDA devices they are measured instead, with NCCL between all of them; that path has been
written after the CPU's and never run.
"""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ds_llama.measure import bus, rates

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_RANKS = (1, 2, 4, 8)

Model = Callable[[torch.device], Callable[[], None]]


def calibrate(folder: Path, model: Model) -> dict[str, Any]:
    """The profile as `planner.hardware.read_profile` takes it.

    folder: where NVMe would be. model: makes a very small model on a device and returns one
    forward and backward pass of it, for the time of an operation; defined at the top of a module.
    Starts processes of its own, so that this one has to be started from a file.
    """
    cuda = torch.cuda.is_available()
    cores = _cores()
    ranks = torch.cuda.device_count() if cuda else cores
    if cuda:
        figures = _cuda(ranks, model)
    else:
        sizes = [n for n in _RANKS if n <= max(2, cores)]
        by_ranks = {str(n): _together(n, model) for n in sizes[1:]}
        link = {name: by_ranks["2"][name] for name in ("link_bytes_per_s", "collective_latency_s")}
        figures = {**_alone(model), **link, "by_ranks": by_ranks}
    read, write = rates.disk(folder)
    profile: dict[str, Any] = {
        "key": torch.cuda.get_device_name() if cuda else "cpu",
        "matmul_fraction": 1.0,
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "internode_bytes_per_s": None,
        "host_link_bytes_per_s": rates.host_link() if cuda else None,
        "nvme_read_bytes_per_s": read,
        "nvme_write_bytes_per_s": write,
        "devices_per_node": ranks,
        "shared": not cuda,
        **figures,
    }
    name = profile["key"] if cuda else f"{platform.processor() or platform.machine()} CPU"
    where = f"measured on {name}, {_threads(1)} threads for one rank, torch {torch.__version__}"
    profile["sources"] = {key: where for key in profile if key not in ("key", "shared")}
    return profile


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(ranks: int) -> int:
    """Of each of so many ranks, as `launcher.environment` gives them."""
    return int(os.environ.get("OMP_NUM_THREADS", "0")) or max(1, _cores() // ranks)


def _figures(
    device: torch.device, model: Model, ready: Callable[[], None], names: tuple[str, ...]
) -> dict[str, Any]:
    """What this process reaches; `ready` is called before each figure."""

    def when_ready(figure: Callable[..., float], *args: Any) -> float:
        ready()
        return figure(*args)

    tflops: dict[str, float | None] = dict.fromkeys((*_DTYPES, "tf32"))
    for name in names:
        tflops[name] = when_ready(rates.matmul, device, _DTYPES[name]) / 1e12
    best = max(names, key=lambda name: tflops[name] or 0.0)
    reached = when_ready(rates.attention, device, _DTYPES[best])
    return {
        "tflops": tflops,
        "attention_fraction": reached / ((tflops[best] or 1.0) * 1e12),
        "memory_bytes_per_s": when_ready(rates.memory, device),
        "host_memory_bytes_per_s": when_ready(rates.adam_bandwidth),
        "launch_s": when_ready(rates.launch, model(device), device),
    }


# A processor does fp16 one number at a time, seconds long; DeepSpeed refuses it there.
_ON_CPU = ("bfloat16", "float32")


def _alone(model: Model) -> dict[str, Any]:
    """What this process reaches with all threads that one rank has."""
    before = torch.get_num_threads()
    torch.set_num_threads(_threads(1))
    try:
        return _figures(torch.device("cpu"), model, lambda: None, _ON_CPU)
    finally:
        torch.set_num_threads(before)


def _cuda(ranks: int, model: Model) -> dict[str, Any]:
    figures = _figures(torch.device("cuda"), model, lambda: None, tuple(_DTYPES))
    figures["link_bytes_per_s"] = figures["collective_latency_s"] = None
    if ranks > 1:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(_nccl, (ranks, folder), nprocs=ranks)  # type: ignore[no-untyped-call]
            figures.update(torch.load(Path(folder) / "figures"))
    return figures


def _nccl(rank: int, ranks: int, folder: str) -> None:
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("nccl", store=store, rank=rank, world_size=ranks)
    found = _collectives(torch.device("cuda", rank), 2**28)
    if rank == 0:
        torch.save(found, Path(folder) / "figures")
    dist.destroy_process_group()


def _together(ranks: int, model: Model) -> dict[str, Any]:
    """What each of so many processes reaches while the others do the same, on average; host
    memory, which is the node's, all of them together."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ranks, model, folder, rates.BUDGET_S
        torch.multiprocessing.spawn(_one, arguments, nprocs=ranks)  # type: ignore[no-untyped-call]
        found = [torch.load(Path(folder) / f"figures-{rank}") for rank in range(ranks)]
    figures = {
        name: statistics.mean(each[name] for each in found) for name in found[0] if name != "tflops"
    }
    figures["host_memory_bytes_per_s"] *= ranks
    figures["tflops"] = {
        name: None if value is None else statistics.mean(each["tflops"][name] for each in found)
        for name, value in found[0]["tflops"].items()
    }
    return figures


def _one(rank: int, ranks: int, model: Model, folder: str, budget_s: float) -> None:
    rates.BUDGET_S = budget_s
    torch.set_num_threads(_threads(ranks))
    device = torch.device("cpu")
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    found = {**_figures(device, model, dist.barrier, _ON_CPU), **_collectives(device, 2**24)}
    torch.save(found, Path(folder) / f"figures-{rank}")
    dist.destroy_process_group()


def _collectives(device: torch.device, size: int) -> dict[str, float]:
    """Bytes/s over each rank's link in an all-reduce of `size` bytes, and seconds of a small one.

    Bus bandwidth as `measure.bus` counts it; `ds-llama bench comm` measures every collective.
    """
    large = torch.zeros(size // 4, device=device)
    small = torch.zeros(1024, device=device)
    # The same number of calls on every rank: a budget would stop them at different ones.
    large_s, small_s = (
        rates.least(lambda t=each: dist.all_reduce(t), device, calls=12) for each in (large, small)
    )
    return {
        "link_bytes_per_s": bus.factor("all_reduce", dist.get_world_size()) * size / large_s,
        "collective_latency_s": small_s,
    }
