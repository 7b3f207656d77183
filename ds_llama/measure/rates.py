"""How fast one process does one thing: the figures that a hardware profile is made of."""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

BUDGET_S = 1.0  # of one figure
FILE_BYTES = 2**27


def matmul(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product: 8192 on CUDA, 768 elsewhere."""
    size = 8192 if device.type == "cuda" else 768
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2.0 * size**3 / least(lambda: a @ b, device)


def best_matmul(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several square products: what an MFU is a share of.

    One size would flatter where that one does not fill the device. Larger ones are left out where
    they would take too long, as in a dtype that the device has no fast product for, or do not fit.
    """
    best = 0.0
    for size in (4096, 8192, 16384) if device.type == "cuda" else (512, 1024, 2048, 3072):
        flops = 2.0 * size**3
        if best and 5 * flops / best > 2 * BUDGET_S:
            break
        try:
            a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
            best = max(best, flops / least(functools.partial(torch.mm, a, b), device, calls=5))
        except torch.OutOfMemoryError:
            if not best:
                raise
            break
    return best


def attention(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of causal attention forward and backward, half the square, 3.5 times the forward."""
    heads, tokens, width = (32, 4096, 128) if device.type == "cuda" else (4, 512, 64)
    q, k, v = (
        torch.randn(1, heads, tokens, width, device=device).to(dtype).requires_grad_()
        for _ in range(3)
    )

    def once() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()  # type: ignore[no-untyped-call]

    return 3.5 * 2.0 * heads * tokens * tokens * width / least(once, device)


def memory(device: torch.device) -> float:
    """Bytes/s of a copy, read and written, of a tensor that no cache holds."""
    elements = 2**30 if device.type == "cuda" else 2**25
    source = torch.ones(elements, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 8.0 * elements / least(lambda: target.copy_(source), device)


def host_link() -> float:
    """Bytes/s from pinned host memory to the device."""
    source = torch.ones(2**28, dtype=torch.uint8).pin_memory()
    target = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    return 2**28 / least(lambda: target.copy_(source, non_blocking=True), target.device)


class _Counter(TorchDispatchMode):
    """Operations as `planner.work` counts them, views included."""

    operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


def launch(once: Callable[[], None], device: torch.device) -> float:
    """Seconds of one operation of `once`, a model so small that its arithmetic is nothing.

    A real model's, since modules and autograd functions written in Python cost as much again as
    the operations in them.
    """
    with _Counter() as counter:
        once()
    return least(once, device) / counter.operations


def adam_bandwidth(elements: int = 2**23) -> float:
    """Bytes/s of torch's fused AdamW on the host: it reads 16 and writes 12 bytes an element."""
    parameter = torch.zeros(elements, requires_grad=True)
    parameter.grad = torch.ones(elements)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    return 28.0 * elements / least(optimizer.step, torch.device("cpu"))


def disk(folder: Path) -> tuple[float, float]:
    """Bytes/s of reading and of writing (synced) one file in `folder`, which is then removed."""
    size = FILE_BYTES
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


def least(call: Callable[[], Any], device: torch.device, calls: int | None = None) -> float:
    """Seconds of the fastest of several calls, the first two left out."""
    best, begun, done = float("inf"), time.perf_counter(), 0
    while done < (calls or 5) or (calls is None and time.perf_counter() - begun < BUDGET_S):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if done >= 2:
            best = min(best, time.perf_counter() - start)
        done += 1
    return best
