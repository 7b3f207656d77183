"""A plan as a value: one Strategy for each row, and what is recommended of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ds_llama.planner.fit import Fit, Machine
from ds_llama.planner.fit import fit as judge
from ds_llama.planner.memory import Memory
from ds_llama.planner.sizes import sizes
from ds_llama.planner.strategies import Candidate, Refused
from ds_llama.planner.time import StepTime
from ds_llama.planner.traffic import Traffic


@dataclass(frozen=True)
class Cost:
    """What a billion tokens take; money where a price is given, in its unit."""

    gpu_hours_per_billion_tokens: float
    cost_per_billion_tokens: float | None


@dataclass(frozen=True)
class Strategy:
    """One row. `memory` and `traffic` are one rank's; `host_bytes` and the like are one node's."""

    candidate: Candidate
    memory: Memory
    traffic: Traffic
    fit: Fit
    machine: Machine
    reserve_bytes: int
    host_reserve_bytes: int
    time: StepTime | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    cost: Cost | None = None
    max_micro_batch: int | None = None
    max_sequence_length: int | None = None

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def peak_bytes(self) -> int:
        return self.memory.device_peak.total

    @property
    def host_bytes(self) -> int:
        return self.machine.ranks_per_node * self.memory.host_peak_bytes

    @property
    def pinned_bytes(self) -> int:
        return self.machine.ranks_per_node * self.memory.host_pinned_bytes

    @property
    def nvme_bytes(self) -> int:
        return self.machine.ranks_per_node * self.memory.nvme_bytes

    @property
    def moved_bytes(self) -> int:
        """By one rank in one step: collectives by tensor size, host link and NVMe."""
        moved = self.traffic
        inside = sum(moved.collectives.values()) + moved.host_link_bytes
        return inside + moved.nvme_read_bytes + moved.nvme_write_bytes

    @property
    def device_fits(self) -> bool:
        """Whether the device's memory, where it is known, would be enough."""
        device = replace(self.machine, host_bytes=None, nvme_bytes=None)
        return judge(self.memory, device).verdict in ("fits", None)

    @property
    def tokens_per_s_per_gpu(self) -> float | None:
        """A share of the world's tokens."""
        return None if self.tokens_per_s is None else self.tokens_per_s / self.machine.world_size

    def to_dict(self) -> dict[str, Any]:
        resolved, fit = self.candidate.resolved, self.fit
        offload = {
            "optimizer": resolved.offload_optimizer,
            "parameters": resolved.offload_param,
        }
        recompute = resolved.run.train.recompute
        return {
            "name": self.name,
            "stage": resolved.stage,
            "offload": offload,
            "recompute": None if recompute is None else recompute.model_dump(),
            "own": self.candidate.own,
            "device": {
                "peak_bytes": self.peak_bytes,
                "steady_bytes": self.memory.device_steady.total,
                "terms": self.memory.device_peak.to_dict(),
                "steady_terms": self.memory.device_steady.to_dict(),
                "peak_phase": self.memory.peak_phase,
                "reserve_bytes": self.reserve_bytes,
            },
            "host": {
                "peak_bytes": self.host_bytes,
                "pinned_bytes": self.pinned_bytes,
                "reserve_bytes": self.host_reserve_bytes,
                "rank_peak_bytes": self.memory.host_peak_bytes,
            },
            "nvme_bytes": self.nvme_bytes,
            "unplayed": list(self.memory.unplayed),
            "sizes": [size.to_dict() for size in sizes(resolved)],
            "traffic": {**self.traffic.to_dict(), "moved_bytes": self.moved_bytes},
            "time": None if self.time is None else self.time.to_dict(),
            "tokens_per_s": self.tokens_per_s,
            "tokens_per_s_per_gpu": self.tokens_per_s_per_gpu,
            "mfu": self.mfu,
            "gpu_hours_per_billion_tokens": (
                None if self.cost is None else self.cost.gpu_hours_per_billion_tokens
            ),
            "cost_per_billion_tokens": (
                None if self.cost is None else self.cost.cost_per_billion_tokens
            ),
            "max_micro_batch": self.max_micro_batch,
            "max_sequence_length": self.max_sequence_length,
            "fits": None if fit.verdict is None else fit.verdict == "fits",
            "verdict": fit.verdict,
            "limit": fit.limit,
            "limited_by": fit.resource,
        }


@dataclass(frozen=True)
class Change:
    """Something that makes a run fit where nothing did: what to write, and what fits then."""

    change: str
    strategy: str
    peak_bytes: int
    world_size: int

    def to_dict(self) -> dict[str, Any]:
        return {
            "change": self.change,
            "strategy": self.strategy,
            "peak_bytes": self.peak_bytes,
            "world_size": self.world_size,
        }


@dataclass(frozen=True)
class Plan:
    """What each strategy costs, in a fixed order; `recommended` and `runner_up` are names."""

    machine: Machine
    hardware: str | None
    strategies: tuple[Strategy, ...]
    refused: tuple[Refused, ...]
    recommended: str | None
    runner_up: str | None
    reason: str
    runner_up_reason: str | None
    rule: str
    changes: tuple[Change, ...] = ()

    @property
    def world_size(self) -> int:
        return self.machine.world_size

    def strategy(self, name: str) -> Strategy | None:
        """The row of that name."""
        return next((row for row in self.strategies if row.name == name), None)

    @property
    def own(self) -> Strategy:
        """The row of the run as it was given."""
        return next(row for row in self.strategies if row.candidate.own)

    def to_dict(self) -> dict[str, Any]:
        own = self.own.candidate.resolved
        return {
            "world_size": self.world_size,
            "machine": {**self.machine.to_dict(), "hardware": self.hardware},
            "run": {
                "num_parameters": own.model.num_parameters,
                "dtype": own.dtype,
                "sequence_length": own.run.data.sequence_length,
                "micro_batch_size": own.micro_batch_size,
                "accumulation_steps": own.accumulation_steps,
                "global_batch_size": own.global_batch_size,
            },
            "strategies": [row.to_dict() for row in self.strategies],
            "refused": [each.to_dict() for each in self.refused],
            "recommended": self.recommended,
            "runner_up": self.runner_up,
            "reason": self.reason,
            "runner_up_reason": self.runner_up_reason,
            "rule": self.rule,
            "changes": [each.to_dict() for each in self.changes],
        }
