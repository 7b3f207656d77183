"""Collectives timed on the links that this process group really has.

A sample is so many calls one after the other that it takes `SAMPLE_S`, between edges at which
ranks and device are waited for; its time is the slowest rank's. All ranks decide by the same
numbers, the largest over them, so that none makes a call more than another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
import torch.distributed as dist

from ds_llama.measure.timers import synchronize_of
from ds_llama.units import format_bytes, format_duration

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
WARM_UP, SAMPLES = 2, 7
SAMPLE_S = 0.01
# What a clock or another process adds to a call as long as this is small: fewer samples do.
SLOW_S, SLOW_SAMPLES = 0.05, 5
_MOST_CALLS = 1000
_BUFFERS = 3  # of a payload: two of ours, and what gloo copies


@dataclass(frozen=True)
class Timed:
    """One collective at one size. `bytes` is the payload, a whole number of elements a rank.

    samples_s: seconds of a call, one figure a sample; None where it was left out, for `reason`.
    """

    collective: str
    dtype: str
    bytes: int
    calls: int = 0
    samples_s: tuple[float, ...] | None = None
    reason: str | None = None


class Links:
    """The links between the ranks of the default group; every call is collective."""

    def __init__(self, device: torch.device, budget_s: float = math.inf) -> None:
        """budget_s: of all series together; sizes beyond a series' share of it are left out, but
        for the smallest."""
        self.device, self.ranks = device, dist.get_world_size()
        self._synchronize = synchronize_of(device)
        self._begun, self._budget_s = time.perf_counter(), budget_s

    def measure(
        self,
        series: Sequence[tuple[str, str]],
        sizes: Sequence[int],
        say: Callable[[str], None] = lambda line: None,
    ) -> Iterator[Timed]:
        """Every (collective, dtype) at every size, smaller sizes first."""
        for number, (kind, dtype) in enumerate(series):
            say(f"{number + 1}/{len(series)} {kind} {dtype}")
            spent_s = self._largest(time.perf_counter() - self._begun)
            share_s = (self._budget_s - spent_s) / (len(series) - number)
            yield from self._series(kind, dtype, sorted(sizes), share_s)

    def _series(
        self, kind: str, dtype: str, sizes: Sequence[int], share_s: float
    ) -> Iterator[Timed]:
        timed: list[tuple[int, float]] = []
        for size in sizes:
            whole = self._whole(size, DTYPES[dtype])
            free, need = self._free_bytes(), _BUFFERS * whole
            call_s = expected(timed, whole)
            expected_s = call_s * (WARM_UP + samples_of(call_s))
            if need > free:
                reason = f"needs {format_bytes(need)} a rank, and {format_bytes(free)} are free"
                yield Timed(kind, dtype, whole, reason=reason)
            elif timed and expected_s > share_s:
                reason = f"would take about {format_duration(expected_s)}"
                yield Timed(kind, dtype, whole, reason=reason)
            else:
                begun = time.perf_counter()
                calls, samples = self._samples(kind, whole, DTYPES[dtype])
                yield Timed(kind, dtype, whole, calls, tuple(samples))
                timed.append((whole, sorted(samples)[len(samples) // 2]))
                share_s = self._smallest(share_s - (time.perf_counter() - begun))

    def _samples(self, kind: str, size: int, dtype: torch.dtype) -> tuple[int, list[float]]:
        """Calls in a sample, and what one of them takes in each."""
        call = _collective(kind, size, dtype, self.device)
        for _ in range(WARM_UP):
            once_s = self._sample(call, 1)
        least = max(self._largest(once_s), 1e-7)
        calls = min(_MOST_CALLS, max(1, math.ceil(SAMPLE_S / least)))
        own = [self._sample(call, calls) for _ in range(samples_of(least))]
        slowest = torch.tensor(own, dtype=torch.float64, device=self.device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        return calls, [seconds / calls for seconds in slowest.tolist()]

    def _sample(self, call: Callable[[], Any], calls: int) -> float:
        dist.barrier()
        self._synchronize()
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        self._synchronize()
        return time.perf_counter() - begun

    def _whole(self, size: int, dtype: torch.dtype) -> int:
        """As many bytes as divide among the ranks, at least an element for each."""
        step = self.ranks * dtype.itemsize
        return max(1, size // step) * step

    def _free_bytes(self) -> int:
        """Of one rank. A host's memory is counted as if all ranks were on it."""
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info()[0]
        else:
            free = psutil.virtual_memory().available // self.ranks
        return int(self._smallest(free))

    def _largest(self, value: float) -> float:
        agreed = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(agreed, dist.ReduceOp.MAX)
        return float(agreed.item())

    def _smallest(self, value: float) -> float:
        return -self._largest(-value)


def expected(timed: Sequence[tuple[int, float]], size: int) -> float:
    """Seconds of a call, by those of smaller sizes (bytes, seconds): on the line through the last
    two of them, since what a small one takes is latency."""
    if len(timed) < 2:
        return timed[0][1] if timed else 0.0
    (small, small_s), (large, large_s) = timed[-2:]
    return large_s + max(0.0, large_s - small_s) / max(1, large - small) * (size - large)


def samples_of(call_s: float) -> int:
    """How often a collective is timed of which one call takes so long."""
    return SLOW_SAMPLES if call_s >= SLOW_S else SAMPLES


def _collective(
    kind: str, size: int, dtype: torch.dtype, device: torch.device
) -> Callable[[], Any]:
    """One call with a payload of `size` bytes, over buffers that are written and stay zero."""
    elements, ranks = size // dtype.itemsize, dist.get_world_size()
    whole, other = (torch.full((elements,), 0.0, dtype=dtype, device=device) for _ in range(2))
    part = other[: elements // ranks]
    calls: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
        "broadcast": lambda: dist.broadcast(whole, 0),
        "reduce": lambda: dist.reduce(whole, 0),
        "all_to_all": lambda: dist.all_to_all_single(other, whole),
        "send_recv": lambda: _pass_on(whole, other),
    }
    return calls[kind]


def _pass_on(sent: torch.Tensor, received: torch.Tensor) -> None:
    """A ring's step: every rank to the next, from the one before, both ways at a time."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    both = [
        dist.P2POp(dist.isend, sent, (rank + 1) % ranks),
        dist.P2POp(dist.irecv, received, (rank - 1) % ranks),
    ]
    for work in dist.batch_isend_irecv(both):
        work.wait()
