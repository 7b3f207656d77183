"""How long a step takes: a roofline of arithmetic, memory, links, host and disk, each on its own.

A step is its accumulated micro-batches, the collectives that they could not hide, and the update.
Nothing is fitted per model or per machine: FLOPs and bytes come from `work.py` and `traffic.py`,
peaks from `hardware.py`, and `Assumptions` holds every fraction of a peak that is assumed, with
where it is from. What a figure is missing for is None, never a guess.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ds_llama.config.resolve import Resolved
from ds_llama.planner import work
from ds_llama.planner.hardware import Hardware
from ds_llama.planner.traffic import Traffic, element_bytes


@dataclass(frozen=True)
class Assumptions:
    """Shares of a peak that running programs get, and what can be hidden behind what.

    Chosen by `benchmarks/published_error.py --fit`, which holds half of the published rows out:
    matmul: of the fastest matmul that the device was measured to do, what the matmuls of a
        training step do, beside the traffic of their operands (`work.product`).
    unhidden: of the collectives that run beside computation, what they cost all the same (they
        take processors and memory bandwidth from it), as a share of their time inside a node.

    Measured by others on one 8 x H100 node (Voltage Park with Georgia Tech, vpbenchmarking, 2025):
    memory: 2,903 of 3,350 GB/s, copying; host_link: 54.8 of 64 GB/s; host: STREAM triad, 486.7 of
        614 GB/s.
    link: of NVLink, 380 of 450 GB/s one way between two H100 (NVIDIA/nccl issue 1264).
    attention_half_tokens: the sequence length at which attention gets half of its share, after
        FlashAttention-2's figure 5 (A100, causal, head 128: 2k gets 0.8 of what 16k gets).
    network: 0.8 of the adapters' rate; attention: 0.34 where the device's row says nothing
        (FlashAttention-2 on H100, the lowest that its paper reports); assumed.
    collective_latency_s: of one collective on NCCL, start to end; assumed.
    """

    matmul: float = 0.85
    attention_half_tokens: float = 512.0
    unhidden: float = 0.5
    memory: float = 0.867
    host_link: float = 0.856
    host: float = 0.793
    link: float = 0.844
    network: float = 0.8
    attention: float = 0.34
    collective_latency_s: float = 3e-5


DEFAULT = Assumptions()
# Of a measured profile, whose rates were reached; what is hidden stays as it is.
_REACHED = Assumptions(
    matmul=1.0, memory=1.0, host_link=1.0, host=1.0, link=1.0, network=1.0, attention=1.0,
    attention_half_tokens=0.0,
)  # fmt: skip


# Collectives of a few bytes in each step (the tokens of the global batch, its loss, the gradients'
# norm): three all-reduces and an all-gather, as counted in steps of stages 1 and 3 on two ranks.
_SMALL_CALLS = 4


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, and what they are made of.

    total_s = compute_s + collectives_s + host_link_s + optimizer_s + nvme_s. compute_s is the
    larger of launching (launch_s) and matmul_s + attention_s + elementwise_s; recompute_s is the
    part of it that runs again. collectives_s is what is not hidden of collectives_busy_s.
    mfu and hfu: 0 to 1, of the model's own FLOPs and of those with what is recomputed; None where
    the peak is not known. limit: the largest of the parts.
    """

    total_s: float
    compute_s: float
    matmul_s: float
    attention_s: float
    elementwise_s: float
    launch_s: float
    recompute_s: float
    collectives_s: float
    collectives_busy_s: float
    host_link_s: float
    optimizer_s: float
    nvme_s: float
    tokens_per_s: float
    tokens_per_s_per_device: float
    mfu: float | None
    hfu: float | None
    limit: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def step_time(
    resolved: Resolved,
    hardware: Hardware | None,
    traffic: Traffic,
    *,
    gpus_per_node: int | None = None,
    fused: bool | None = None,
    repeated: float = 1.0,
    assumptions: Assumptions | None = None,
) -> StepTime | None:
    """The predicted time of one optimizer step; None where the hardware lacks a figure for it.

    gpus_per_node: ranks that share a host; the hardware's own number when None. fused: whether
    elementwise work is compiled; None asks the run (`train.compile`, DeepCompile). repeated: the
    share of the recomputed parts that runs again, for programs that keep some of its results.
    assumptions: DEFAULT, or everything reached for a measured profile, when None.
    """
    if hardware is None:
        return None
    if assumptions is None:
        assumptions = _REACHED if hardware.measured else DEFAULT
    try:
        model = _Model(resolved, hardware, traffic, gpus_per_node, fused, assumptions)
        return model.step(repeated)
    except _Unknown:
        return None


class _Unknown(Exception):
    """A figure that the hardware's row does not have."""


def _known(value: float | None) -> float:
    if not value:
        raise _Unknown
    return value


class _Model:
    """One prediction; every method is seconds of one rank."""

    def __init__(
        self,
        resolved: Resolved,
        hardware: Hardware,
        traffic: Traffic,
        gpus_per_node: int | None,
        fused: bool | None,
        assumptions: Assumptions,
    ) -> None:
        self.resolved, self.traffic, self.assumed = resolved, traffic, assumptions
        usual = resolved.world_size if hardware.shared else hardware.devices_per_node
        self.per_node = min(gpus_per_node or usual, resolved.world_size)
        self.hardware = hardware.one_of(self.per_node)
        self.zero = resolved.deepspeed["zero_optimization"]
        if fused is None:
            whole = bool(resolved.deepspeed.get("compile", {}).get("deepcompile"))
            fused = whole or resolved.run.train.compile
        self.fused = fused
        self.length = resolved.run.data.sequence_length
        self.element = element_bytes(resolved.dtype) or 4
        self.peak = _known(self.hardware.peak_flops(resolved.dtype))

    def step(self, repeated: float) -> StepTime:
        passes = work.micro_batch(
            self.resolved.model,
            self.resolved.micro_batch_size,
            self.length,
            self.resolved.run.train.recompute,
            element_bytes=self.element,
            fused=self.fused,
        )
        forward, backward, again = (each * self.resolved.accumulation_steps for each in passes)
        again *= repeated
        backward += self.buffers()
        whole = forward + backward + again + self.engine()
        compute, again_s = self.compute(whole), self.compute(again)
        busy = self.collectives()
        exposed = self.exposed(busy, self.compute(backward) + again_s, compute)
        parts = {
            "compute": compute,
            "collectives": exposed,
            "host link": self.host_link(),
            "optimizer": self.optimizer(),
            "nvme": self.nvme(),
        }
        total = sum(parts.values())
        rate = self.resolved.micro_batch_size * self.length * self.resolved.accumulation_steps
        per_token = self.resolved.model.flops_per_token(self.length)
        mfu = rate / total * per_token / self.peak
        return StepTime(
            total_s=total,
            compute_s=compute,
            matmul_s=self.matmul(whole),
            attention_s=self.attention(whole),
            elementwise_s=self.elementwise(whole),
            launch_s=self.launch(whole),
            recompute_s=again_s,
            collectives_s=exposed,
            collectives_busy_s=busy,
            host_link_s=parts["host link"],
            optimizer_s=parts["optimizer"],
            nvme_s=parts["nvme"],
            tokens_per_s=rate * self.resolved.world_size / total,
            tokens_per_s_per_device=rate / total,
            mfu=mfu,
            hfu=mfu + again.flops / (total * self.peak),
            limit=max(parts, key=lambda name: parts[name]),
        )

    def engine(self) -> work.Work:
        resolved = self.resolved
        steps, recompute = resolved.accumulation_steps, resolved.run.train.recompute
        leaves = resolved.run.train.compile
        return work.engine(resolved.model, resolved.stage, steps, recompute, leaves=leaves)

    def buffers(self) -> work.Work:
        """Each gradient's way through a bucket: copied in, averaged, added to what was there."""
        if self.resolved.world_size == 1:
            return work.Work()
        copied = 2 * self.element + 2 * self.element + 2 * self.element
        elements = self.resolved.model.num_parameters
        return work.Work(0.0, 0.0, float(elements * copied * self.resolved.accumulation_steps))

    def compute(self, amount: work.Work) -> float:
        """Launching runs ahead of a GPU; what is slower counts. A CPU does both itself."""
        busy = self.matmul(amount) + self.attention(amount) + self.elementwise(amount)
        if self.hardware.shared:
            return busy + self.launch(amount)
        return max(busy, self.launch(amount))

    def matmul(self, amount: work.Work) -> float:
        share = _known(self.hardware.matmul_fraction) * self.assumed.matmul
        return amount.matmul_flops / (self.peak * share)

    def attention(self, amount: work.Work) -> float:
        share = self.hardware.attention_fraction or self.assumed.attention
        share *= self.length / (self.length + self.assumed.attention_half_tokens)
        return amount.attention_flops / (self.peak * share)

    def elementwise(self, amount: work.Work) -> float:
        bandwidth = _known(self.hardware.memory_bytes_per_s) * self.assumed.memory
        return amount.memory_bytes / bandwidth

    def launch(self, amount: work.Work) -> float:
        return amount.operations * (self.hardware.launch_s or 0.0)

    def collectives(self) -> float:
        """Rings over all ranks, by the slowest link that they cross, if nothing is hidden."""
        world = self.resolved.world_size
        if world == 1:
            return 0.0
        link = _known(self.hardware.link_bytes_per_s) * self.assumed.link
        if world > self.per_node:
            network = _known(self.hardware.internode_bytes_per_s) * self.assumed.network
            link = min(link, network * self.per_node) if self.per_node > 1 else network
        latency = self.hardware.collective_latency_s or self.assumed.collective_latency_s
        return self.ring(self.sent(), link) + latency * (self.traffic.calls + _SMALL_CALLS)

    def ring(self, payload: float, link: float) -> float:
        world = self.resolved.world_size
        return payload * (world - 1) / world / link

    def sent(self, without: str | None = None) -> float:
        """Payloads of the collectives, an all-reduce's twice; at least a byte."""
        sizes = {k: n for k, n in self.traffic.collectives.items() if k != without}
        return max(1.0, sum(sizes.values()) + sizes.get("all_reduce", 0))

    def exposed(self, busy: float, backward_s: float, compute_s: float) -> float:
        """What of the collectives the step waits for; a CPU carries them itself.

        Those that run beside computation slow it as they pass through this device, which is the
        same work on a slow network, only longer: what they would take inside the node counts.
        """
        if not self.zero.get("overlap_comm") or self.hardware.shared:
            return busy
        hidden, window = self.sent(), compute_s
        if self.resolved.stage < 3:
            # Gradients alone have something to hide behind, at stage 1 the last micro-batch's.
            hidden, window = self.sent(without="all_gather"), backward_s
            if self.resolved.stage == 1:
                window /= self.resolved.accumulation_steps
        during = busy * hidden / self.sent()
        inside = self.ring(hidden, _known(self.hardware.link_bytes_per_s) * self.assumed.link)
        slowed = min(during, inside) * self.assumed.unhidden
        return busy - during + max(during - window, slowed)

    def host_link(self) -> float:
        """What an offload moves; token ids alone are nothing, and a CPU has no link to itself."""
        offloads = self.resolved.offload_optimizer or self.resolved.offload_param
        if self.hardware.shared or not offloads or not self.traffic.host_link_bytes:
            return 0.0
        link = _known(self.hardware.host_link_bytes_per_s) * self.assumed.host_link
        return self.traffic.host_link_bytes / link

    def optimizer(self) -> float:
        """Adam over this rank's share: device memory, or the host's, shared by its ranks."""
        world = self.resolved.world_size if self.resolved.stage else 1
        elements = self.resolved.model.num_parameters / world
        if self.resolved.offload_optimizer is None:
            bandwidth = _known(self.hardware.memory_bytes_per_s) * self.assumed.memory
            return elements * (46 + 3 * self.element) / bandwidth
        bandwidth = _known(self.hardware.host_memory_bytes_per_s) * self.assumed.host
        return elements * self.per_node * (32 + self.element) / bandwidth

    def nvme(self) -> float:
        total = 0.0
        if self.traffic.nvme_read_bytes:
            total += self.traffic.nvme_read_bytes / _known(self.hardware.nvme_read_bytes_per_s)
        if self.traffic.nvme_write_bytes:
            total += self.traffic.nvme_write_bytes / _known(self.hardware.nvme_write_bytes_per_s)
        return total * self.per_node
