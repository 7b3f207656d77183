"""What this machine really does, measured in under a minute: a profile for `ds-llama plan`.

Every figure is a rate that was reached, so that the planner takes nothing off it. On a machine with
CUDA devices they are measured instead, with NCCL between all of them; that path has been written
after the CPU's and never run.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

_BUDGET_S = 1.0  # of one figure
_FILE_BYTES = 2**27
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def calibrate(folder: Path) -> dict[str, Any]:
    """The profile as `planner.hardware.read_profile` takes it. folder: where NVMe would be.

    Starts processes of its own for the collectives, so that this one has to be started from a file.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    peaks: dict[str, float | None] = {
        # A processor does fp16 one number at a time, seconds long; DeepSpeed refuses it there.
        name: matmul(device, dtype) / 1e12 if cuda or name != "float16" else None
        for name, dtype in _DTYPES.items()
    }
    best = "bfloat16" if cuda else max(peaks, key=lambda name: peaks[name] or 0.0)
    read, write = disk(folder)
    ranks = torch.cuda.device_count() if cuda else 2
    link, latency = collectives(ranks, "nccl" if cuda else "gloo")
    adam = adam_bandwidth()
    profile: dict[str, Any] = {
        "key": torch.cuda.get_device_name() if cuda else "cpu",
        "tflops": {**peaks, "tf32": None},
        "matmul_fraction": 1.0,
        "attention_fraction": attention(device, _DTYPES[best]) / ((peaks[best] or 1.0) * 1e12),
        "memory_bytes_per_s": memory(device),
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if cuda else None,
        "link_bytes_per_s": link,
        "collective_latency_s": latency,
        "internode_bytes_per_s": None,
        "host_link_bytes_per_s": host_link() if cuda else None,
        "host_memory_bytes_per_s": adam,
        "nvme_read_bytes_per_s": read,
        "nvme_write_bytes_per_s": write,
        "devices_per_node": ranks if cuda else os.cpu_count() or 1,
        "shared": not cuda,
        "launch_s": launch(device),
    }
    name = profile["key"] if cuda else f"{platform.processor() or platform.machine()} CPU"
    where = f"measured on {name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    profile["sources"] = {key: where for key in profile if key not in ("key", "shared")}
    return profile


def matmul(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product: 8192 on CUDA, 768 elsewhere."""
    size = 8192 if device.type == "cuda" else 768
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2.0 * size**3 / _least(lambda: a @ b, device)


def attention(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of causal attention forward and backward, half the square, 3.5 times the forward."""
    heads, tokens, width = (32, 4096, 128) if device.type == "cuda" else (4, 512, 64)
    q, k, v = (
        torch.randn(1, heads, tokens, width, device=device).to(dtype).requires_grad_()
        for _ in range(3)
    )

    def once() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()  # type: ignore[no-untyped-call]

    return 3.5 * 2.0 * heads * tokens * tokens * width / _least(once, device)


def memory(device: torch.device) -> float:
    """Bytes/s of a copy, read and written, of a tensor that no cache holds."""
    elements = 2**30 if device.type == "cuda" else 2**25
    source = torch.ones(elements, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 8.0 * elements / _least(lambda: target.copy_(source), device)


def host_link() -> float:
    """Bytes/s from pinned host memory to the device."""
    source = torch.ones(2**28, dtype=torch.uint8).pin_memory()
    target = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    return 2**28 / _least(lambda: target.copy_(source, non_blocking=True), target.device)


def launch(device: torch.device) -> float:
    """Seconds of one small operation, autograd's share included."""
    x = torch.ones(64, device=device, requires_grad=True)

    def once() -> None:
        y = x
        for _ in range(50):
            y = y * 1.01
        y.sum().backward()  # type: ignore[no-untyped-call]

    return _least(once, device) / 100


def adam_bandwidth(elements: int = 2**23) -> float:
    """Bytes/s of torch's fused AdamW on the host: it reads 16 and writes 12 bytes an element."""
    parameter = torch.zeros(elements, requires_grad=True)
    parameter.grad = torch.ones(elements)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    return 28.0 * elements / _least(optimizer.step, torch.device("cpu"))


def disk(folder: Path) -> tuple[float, float]:
    """Bytes/s of reading and of writing (synced) one file in `folder`, which is then removed."""
    size = _FILE_BYTES
    data = os.urandom(2**20) * (size // 2**20)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        start = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        write_s = time.perf_counter() - start
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        start = time.perf_counter()
        while file.read(2**24):
            pass
        return size / (time.perf_counter() - start), size / write_s


def collectives(ranks: int, backend: str) -> tuple[float, float]:
    """Bytes/s over each rank's link in a large all-reduce, and seconds of a small one.

    As nccl-tests counts bus bandwidth: twice the payload times (N - 1) / N over the time.
    """
    if ranks == 1:
        return 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_collective, (ranks, backend, folder), nprocs=ranks)  # type: ignore[no-untyped-call]
        large_s, small_s, size = map(float, (Path(folder) / "times").read_text().split())
    return 2 * size * (ranks - 1) / ranks / large_s, small_s


def _collective(rank: int, ranks: int, backend: str, folder: str) -> None:
    if backend != "nccl":
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks))
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    size = 2**28 if backend == "nccl" else 2**24
    large = torch.zeros(size // 4, device=device)
    small = torch.zeros(1024, device=device)
    # The same number of calls on every rank: a budget would stop them at different ones.
    times = [_least(lambda t=each: dist.all_reduce(t), device, calls=12) for each in (large, small)]
    if rank == 0:
        (Path(folder) / "times").write_text(f"{times[0]} {times[1]} {size}")
    dist.destroy_process_group()


def _least(call: Callable[[], Any], device: torch.device, calls: int | None = None) -> float:
    """Seconds of the fastest of several calls, the first two left out."""
    best, begun, done = float("inf"), time.perf_counter(), 0
    while done < (calls or 5) or (calls is None and time.perf_counter() - begun < _BUDGET_S):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if done >= 2:
            best = min(best, time.perf_counter() - start)
        done += 1
    return best
