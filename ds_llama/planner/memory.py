"""What a run will hold in memory, per rank: a run played through on integers.

    construct   the model, or this rank's slices of it                      planner/states.py
    initialise  masters, buckets, and what is held twice meanwhile          planner/states.py
    forward     activations, gathered weights                               planner/walk.py
    backward    gradients, and what reduces them                            planner/gradients.py
    step        moments, and the update's temporaries                       planner/states.py

Nothing is measured and no torch is imported: every term is a formula over the model's shapes, with
the place in DeepSpeed that allocates it. The step that is played is a later one: the optimizer has
made its moments in the first, and ZeRO-3 prefetches from the third micro-batch on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ds_llama.config.resolve import Resolved
from ds_llama.planner import gathers
from ds_llama.planner.activations import activations
from ds_llama.planner.flat import FlatReducer
from ds_llama.planner.gradients import Bf16Reducer, Reducer, is_bf16_optimizer
from ds_llama.planner.ledger import Ledger
from ds_llama.planner.passes import Passes
from ds_llama.planner.settings import Settings
from ds_llama.planner.sharded import ShardedReducer
from ds_llama.planner.states import States
from ds_llama.planner.terms import PhaseMemory, Terms
from ds_llama.planner.traffic import limits

__all__ = ["Memory", "PhaseMemory", "Terms", "memory"]

_BLOCK = 2**20  # elements; initial values are drawn in fp32 on the host (model/init.py)


@dataclass(frozen=True)
class Memory:
    """One rank's memory. `phases`: construct, initialise, forward, backward, step, in that order,
    the last three of any step after the first.

    `device_steady` is what stays between two steps. `total_peak` is of device and host together:
    what a run holds where the two are one. Pinned bytes are part of the host's.
    `unplayed`: what the run has that is not in any of these numbers.
    """

    device_peak: Terms
    device_steady: Terms
    peak_phase: str
    phases: dict[str, PhaseMemory]
    host_peak_bytes: int
    host_pinned_bytes: int
    nvme_bytes: int
    total_peak_bytes: int
    unplayed: tuple[str, ...] = ()
    total_peak: Terms = field(default_factory=Terms)

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
            "unplayed": list(self.unplayed),
        }


def memory(resolved: Resolved, device_memory_bytes: int | None = None) -> Memory:
    """What one rank of `resolved` holds.

    device_memory_bytes: what the device has. It decides one thing: stages 1 and 2 flatten the model
    on the device if it has room for a second copy, on the host otherwise (stage_1_and_2.py:452).
    None is room for everything.
    """
    settings, ledger = Settings(resolved), Ledger()
    states = States(settings, ledger, device_memory_bytes)
    with ledger.phase("construct"):
        states.construct()
        made = activations(settings, settings.width)
        ledger.hold("other", made.rotary)  # made to be checked, construct.py:44
        ledger.peek("other", 4 * min(settings.largest, _BLOCK), host=True)
    with ledger.phase("initialise"):
        states.initialise()
    order = gathers.visits(settings.model, settings.recompute, leaves=settings.leaves)
    windows = _windows(settings, order)
    passes = Passes(settings, ledger, _reducer(settings)(settings, ledger), order, windows)
    with ledger.phase("first"):
        states.moments()
    _step(settings, ledger, states, passes)
    return _summed(ledger, states)


def _reducer(settings: Settings) -> type[Reducer]:
    """What handles gradients in the engine that `deepspeed.initialize` makes."""
    if is_bf16_optimizer(settings):
        return Bf16Reducer
    return {0: Reducer, 3: ShardedReducer}.get(settings.stage, FlatReducer)


def _windows(settings: Settings, order: list[gathers.Visit]) -> list[gathers.Window]:
    if not (settings.gathered or settings.copies):
        return []
    sizes = gathers.weights(settings.model)
    trace = [visit.weights for visit in order]
    found = gathers.windows(trace, sizes, limits(settings.zero), settings.ranks, settings.copies)
    return found if settings.gathered else [w._replace(most=0, during=0, after=0) for w in found]


def _step(settings: Settings, ledger: Ledger, states: States, passes: Passes) -> None:
    """One optimizer step. Of its micro-batches the first and the last are played: those between
    hold what the last holds, or more, where the last reduces as it goes."""
    count = min(
        settings.resolved.accumulation_steps, 2 + (settings.stage == 1 and settings.overlap)
    )
    for number in range(count):
        passes.reducer.begin(first=number == 0, boundary=number == count - 1)
        with ledger.phase("forward"):
            passes.forward()
        with ledger.phase("backward"):
            passes.backward()
            passes.reducer.end()
            passes.finish()
    with ledger.phase("first"):
        passes.reducer.first_update()
    with ledger.phase("step"):
        states.step()
        passes.reducer.clear()
        passes.updated()


def _summed(ledger: Ledger, states: States) -> Memory:
    """The whole from its phases: each peak is the largest of theirs."""
    every = [*ledger.phases.values()]
    del ledger.phases["first"]
    worst = max(every, key=lambda each: each.device.peak.total)
    most = max((each.total.peak for each in every), key=lambda terms: terms.total)
    return Memory(
        device_peak=worst.device.peak,
        device_steady=ledger.phases["step"].device.now,
        peak_phase=worst.name,
        phases=ledger.phases,
        host_peak_bytes=max(each.host.peak.total for each in every),
        host_pinned_bytes=ledger.pinned,
        nvme_bytes=states.nvme_bytes,
        total_peak_bytes=most.total,
        unplayed=states.settings.unplayed,
        total_peak=most,
    )
