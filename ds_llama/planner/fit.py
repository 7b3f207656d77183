"""Whether what a rank holds fits the machine, with what is neither a tensor nor ours kept free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ds_llama.planner.memory import Memory

Verdict = Literal["fits", "tight", "no"]
Resource = Literal["device", "host", "nvme"]

# What a plan counts is live tensors; these lie beside them. Published figures, per GPU:
# Driver, CUDA context and kernels: 0.95 GiB of 79.18 GiB were in use outside PyTorch in a report of
# github.com/vllm-project/compressed-tensors pull 587 (1.3 GB before kernels were loaded lazily:
# Hugging Face, "Model training anatomy").
CUDA_CONTEXT_BYTES = 2**30
# The first all-reduce of a communicator over a node: github.com/NVIDIA/nccl issue 864. None for a
# world of one, which starts no collective.
NCCL_BYTES = 1_600_000_000
# Blocks that the caching allocator holds and cannot give out, as a share of the live peak: 2.4 %
# in the report above, whose remedy reserves 5 %; 15 % on average without expandable segments in
# eight LLM trainings (GMLake, arXiv 2401.08156). PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.
FRAGMENTATION = 0.05
# Host memory of a process that uses CUDA, before any tensor: github.com/pytorch/pytorch issue
# 113326 (2,056,600 kB).
HOST_PROCESS_BYTES = 2_100_000_000


@dataclass(frozen=True)
class Machine:
    """What there is; None for what is not known. Host memory and NVMe are those of one node.

    device: what torch calls it.
    """

    world_size: int
    gpus_per_node: int
    gpu_bytes: int | None = None
    host_bytes: int | None = None
    nvme_bytes: int | None = None
    device: str = "cuda"

    @property
    def ranks_per_node(self) -> int:
        """Ranks on the fullest node."""
        return min(self.gpus_per_node, self.world_size)

    @property
    def nodes(self) -> int:
        return -(-self.world_size // self.gpus_per_node)

    def to_dict(self) -> dict[str, Any]:
        return {
            "gpus_per_node": self.gpus_per_node,
            "nodes": self.nodes,
            "gpu_bytes": self.gpu_bytes,
            "host_bytes": self.host_bytes,
            "nvme_bytes": self.nvme_bytes,
        }


@dataclass(frozen=True)
class Fit:
    """`limit` is what takes the most of the memory that is exceeded.

    It is the largest term of the device's peak, "host" or "nvme", or "reserve" where what is kept
    free is more than what is used. `verdict` is None where the device's memory is not known.
    """

    verdict: Verdict | None
    resource: Resource | None = None
    limit: str | None = None


def device_reserve(peak_bytes: int, world_size: int) -> int:
    """Bytes of a device to keep free beside a peak of live tensors."""
    nccl = NCCL_BYTES if world_size > 1 else 0
    return CUDA_CONTEXT_BYTES + nccl + round(FRAGMENTATION * peak_bytes)


def room(machine: Machine) -> int | None:
    """Bytes of a device for tensors, as DeepSpeed finds them free; None where it is not known."""
    if machine.gpu_bytes is None:
        return None
    return machine.gpu_bytes - device_reserve(machine.gpu_bytes, machine.world_size)


def host_reserve(machine: Machine) -> int:
    """Bytes of a node's memory that its ranks' processes take beside their tensors."""
    return HOST_PROCESS_BYTES * machine.ranks_per_node


def fit(memory: Memory, machine: Machine) -> Fit:
    """The worst verdict of device, host and NVMe; among equals that which is exceeded the most."""
    exceeded = [need for need in needs(memory, machine) if need.left < 0]
    if exceeded:
        worst = max(exceeded, key=lambda need: (need.used > need.capacity, need.share))
        limit = worst.resource if worst.resource != "device" else largest(memory)
        if worst.reserve > worst.used:
            limit = "reserve"
        return Fit("no" if worst.used > worst.capacity else "tight", worst.resource, limit)
    return Fit(None if machine.gpu_bytes is None else "fits")


def headroom(memory: Memory, machine: Machine) -> int:
    """Bytes that are left where the least are left; negative where `memory` does not fit."""
    return min(need.left for need in needs(memory, machine))


@dataclass(frozen=True)
class Need:
    """Bytes used and kept free of one kind of memory, beside what there is."""

    resource: Resource
    used: int
    reserve: int
    capacity: int

    @property
    def left(self) -> int:
        return self.capacity - self.used - self.reserve

    @property
    def share(self) -> float:
        return (self.used + self.reserve) / self.capacity


def needs(memory: Memory, machine: Machine) -> list[Need]:
    """Of the kinds of memory whose size is known, those that are used."""
    ranks, peak = machine.ranks_per_node, memory.device_peak.total
    found: list[tuple[Resource, int, int, int | None]] = [
        ("device", peak, device_reserve(peak, machine.world_size), machine.gpu_bytes),
        ("host", ranks * memory.host_peak_bytes, host_reserve(machine), machine.host_bytes),
        ("nvme", ranks * memory.nvme_bytes, 0, machine.nvme_bytes),
    ]
    return [
        Need(resource, used, reserve, capacity)
        for resource, used, reserve, capacity in found
        if capacity is not None and used
    ]


def largest(memory: Memory) -> str:
    """The largest term of the device's peak."""
    terms = memory.device_peak.to_dict()
    return max(terms, key=lambda name: terms[name])
