"""The real engine over fake tensors and a fake world: what a run will hold, phase by phase.

    process ──starts──> __main__ ──forks──> session
    (in any process,    (torch, deepspeed   world, accelerator, patches, stand-ins;
     without torch)      imported once)     construct, register, steps; then it ends

Nothing of torch or DeepSpeed is changed outside the processes that `process.Simulator` starts.
"""

from __future__ import annotations

from ds_llama.simulator.process import Simulator, simulate, simulate_many
from ds_llama.simulator.result import Request, SimulatedPhase, Simulation

__all__ = [
    "Request",
    "SimulatedPhase",
    "Simulation",
    "Simulator",
    "simulate",
    "simulate_many",
]
