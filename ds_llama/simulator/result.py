"""What a simulation is asked, and what it answers: plain data, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ds_llama.config.run import Run
from ds_llama.measure.film import Film
from ds_llama.measure.phases import Bytes

Device = Literal["sim", "cpu"]


@dataclass(frozen=True)
class Request:
    """One simulation: `rank` of `world_size` through `steps` optimizer steps of `run`.

    steps: None is as many as make the last one as every later one (`simulator.window`).
    every_micro_batch: run all of a window; otherwise three stand for more.
    film: keep every change of memory; with "stacks", the lines of Python that made it too.
    """

    run: Run
    world_size: int
    device: Device = "sim"
    rank: int = 0
    steps: int | None = None
    every_micro_batch: bool = False
    film: Literal["no", "yes", "stacks"] = "no"


@dataclass(frozen=True)
class SimulatedPhase:
    """One phase of one rank. `total` has a peak of its own: peaks do not add."""

    name: str
    device: Bytes
    host: Bytes
    total: Bytes

    def to_dict(self) -> dict[str, Any]:
        places = {"device": self.device, "host": self.host, "total": self.total}
        return {"name": self.name, **{key: place.to_dict() for key, place in places.items()}}


@dataclass(frozen=True)
class Simulation:
    """What one rank of the run holds and sends.

    `phases`: construct, initialise, and forward, backward and step of the last simulated step;
    `first_step`: those three of the first, in which the optimizer makes its state. Of the last too:
    `traffic` (bytes of each kind of collective), `moved` (`measure.traffic.Moved`) and `theory`
    (the collectives beside the paper's, `measure.theory`), `flops` of the model on this rank and
    `hardware_flops`, what is computed twice among them. `host_pinned_bytes`: the most host memory
    that was page-locked at once; `nvme_bytes`: the files at the end.
    """

    world_size: int
    rank: int
    device: Device
    stage: int
    parameters: int
    phases: tuple[SimulatedPhase, ...]
    first_step: tuple[SimulatedPhase, ...]
    seconds: float
    traffic: dict[str, int] = field(default_factory=dict)
    moved: dict[str, Any] = field(default_factory=dict)
    theory: dict[str, Any] = field(default_factory=dict)
    flops: int | None = None
    hardware_flops: int | None = None
    host_pinned_bytes: int = 0
    nvme_bytes: int = 0
    warnings: tuple[str, ...] = ()
    film: Film | None = field(default=None, repr=False)

    @property
    def peak(self) -> dict[str, int]:
        """The largest of all phases' peaks, the first step's among them."""
        every = [*self.phases, *self.first_step]
        return {
            "device_bytes": max(phase.device.peak_bytes for phase in every),
            "host_bytes": max(phase.host.peak_bytes for phase in every),
            "total_bytes": max(phase.total.peak_bytes for phase in every),
        }

    def phase(self, name: str) -> SimulatedPhase:
        """The phase of that name, in the last step if there are several."""
        return next(phase for phase in self.phases if phase.name == name)

    def to_dict(self) -> dict[str, Any]:
        return {
            "world_size": self.world_size,
            "rank": self.rank,
            "device": self.device,
            "stage": self.stage,
            "parameters": self.parameters,
            "phases": [phase.to_dict() for phase in self.phases],
            "first_step": [phase.to_dict() for phase in self.first_step],
            "peak": self.peak,
            "traffic": dict(self.traffic),
            "moved": dict(self.moved),
            "theory": dict(self.theory),
            "flops": self.flops,
            "hardware_flops": self.hardware_flops,
            "host_pinned_bytes": self.host_pinned_bytes,
            "nvme_bytes": self.nvme_bytes,
            "warnings": list(self.warnings),
            "seconds": self.seconds,
        }
