"""What a run will hold in memory, per rank, in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ds_llama.config.resolve import Resolved
from ds_llama.planner.terms import Moment, PhaseMemory, Terms, phase

__all__ = ["Memory", "PhaseMemory", "Terms", "memory"]


@dataclass(frozen=True)
class Memory:
    """One rank's memory. `phases`: construct, initialise, forward, backward, step, in that order.

    `device_steady` is what stays between two steps. Pinned bytes are part of the host's.
    """

    device_peak: Terms
    device_steady: Terms
    peak_phase: str
    phases: dict[str, PhaseMemory]
    host_peak_bytes: int
    host_pinned_bytes: int
    nvme_bytes: int
    total_peak_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "device_peak": self.device_peak.to_dict(),
            "device_steady": self.device_steady.to_dict(),
            "peak_phase": self.peak_phase,
            "phases": {name: phase.to_dict() for name, phase in self.phases.items()},
            "host_peak_bytes": self.host_peak_bytes,
            "host_pinned_bytes": self.host_pinned_bytes,
            "nvme_bytes": self.nvme_bytes,
            "total_peak_bytes": self.total_peak_bytes,
        }


def memory(resolved: Resolved) -> Memory:
    """What one rank of `resolved` holds."""
    model, world, stage = resolved.model, resolved.world_size, resolved.stage
    size = {"float32": 4}.get(resolved.dtype, 2)
    total = model.num_parameters
    shard = -(-total // world)
    tokens = resolved.micro_batch_size * resolved.run.data.sequence_length
    parameters = size * (shard if stage == 3 else total)
    gradients = size * (shard if stage >= 2 else total)
    master = 0 if stage == 0 else 4 * shard
    moments = 8 * (total if stage == 0 else shard)
    zero = resolved.deepspeed["zero_optimization"]
    buckets = size * int(zero.get("reduce_bucket_size", 0)) if stage else 0
    widths = 2 * (model.attention_size + model.key_value_size + model.intermediate_size)
    kept = size * tokens * (model.hidden_size if resolved.run.train.recompute else widths)
    activations = kept * model.num_hidden_layers
    logits = size * min(tokens * model.vocab_size, 2**27)
    host = Terms()
    nvme = 0
    if resolved.offload_optimizer is not None:
        states = Terms(gradients=4 * shard, master=master, optimizer=moments)
        if resolved.offload_optimizer == "nvme":
            nvme += states.total
        else:
            host += states
        gradients = gradients if stage == 1 else 0
        master = moments = 0
    if resolved.offload_param is not None:
        if resolved.offload_param == "nvme":
            nvme += parameters
        else:
            host += Terms(parameters=parameters)
        parameters = size * 2 * model.num_block_parameters
    built = Moment(Terms(parameters=parameters))
    steady = Moment(
        Terms(parameters=parameters, master=master, optimizer=moments, buckets=buckets), host
    )
    forward = steady + Moment(Terms(activations=activations, logits=logits))
    backward = forward + Moment(Terms(gradients=gradients))
    stepping = steady + Moment(Terms(gradients=gradients))
    phases = [
        phase("construct", built),
        phase("initialise", steady),
        phase("forward", forward),
        phase("backward", backward, stepping),
        phase("step", stepping, steady),
    ]
    return summed(phases, pinned=0, nvme=nvme)


def summed(phases: list[PhaseMemory], *, pinned: int, nvme: int) -> Memory:
    """The whole from its phases: each peak is the largest of theirs."""
    worst = max(phases, key=lambda each: each.device.peak.total)
    return Memory(
        device_peak=worst.device.peak,
        device_steady=phases[-1].device.now,
        peak_phase=worst.name,
        phases={each.name: each for each in phases},
        host_peak_bytes=max(each.host.peak.total for each in phases),
        host_pinned_bytes=pinned,
        nvme_bytes=nvme,
        total_peak_bytes=max(each.total.peak.total for each in phases),
    )
