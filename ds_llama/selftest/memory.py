"""One cell of the matrix for real, with an Account around it: what every phase of it holds.

The same construction, registration and steps as `simulator.session`, over tensors with data and a
world of processes. The model is larger than that of the other cells, so that a difference of a few
hundred bytes (a flag, a counter) does not look like one of a part.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ds_llama.config.run import Run
from ds_llama.measure import theory
from ds_llama.measure.accounting import Account
from ds_llama.measure.flops import Flops
from ds_llama.measure.phases import merged
from ds_llama.measure.traffic import Traffic
from ds_llama.model.traits import traits_of
from ds_llama.selftest.cells import Cell
from ds_llama.selftest.tiny import make_run
from ds_llama.simulator.window import steady_steps
from ds_llama.zero import construct, register, world
from ds_llama.zero import engine as engines
from ds_llama.zero.step import Batch, take_step

PARTS = ("phases", "first_step")
MICRO, TOKENS = 1, 128
MODEL = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": TOKENS,
}


def memory_run(cell: Cell, folder: Path, world_size: int, **keys: Any) -> Run:
    """The cell as a run of `world_size` processes; `keys` are laid over its DeepSpeed JSON."""
    if cell.offload.startswith("nvme"):
        (folder / "swap").mkdir(parents=True, exist_ok=True)
    return make_run(
        folder,
        stage=cell.stage,
        precision=cell.precision,
        offload=cell.offload,
        accumulation=cell.accumulation,
        world=world_size,
        micro_batch_size=MICRO,
        model=MODEL,
        deepspeed=cell.deepspeed(str(folder)) | keys,
        data={"train": "unused", "sequence_length": TOKENS},
    )


@dataclass(frozen=True)
class Difference:
    """Bytes in total at one phase's end ("now") or peak, measured and simulated."""

    phase: str
    what: str
    measured_bytes: int
    simulated_bytes: int

    @property
    def share(self) -> float:
        """0.01 where the simulation has 1 % more."""
        return self.simulated_bytes / self.measured_bytes - 1


def differences(measured: Mapping[str, Any], simulated: Mapping[str, Any]) -> Iterator[Difference]:
    """Both as dicts of `phases` and `first_step`, as a Simulation's `to_dict` has them."""
    for part in PARTS:
        for real, fake in zip(measured[part], simulated[part], strict=True):
            assert real["name"] == fake["name"], (real["name"], fake["name"])
            name = ("first " if part == "first_step" else "") + real["name"]
            for what in ("now", "peak"):
                sizes = (phase["total"][f"{what}_bytes"] for phase in (real, fake))
                yield Difference(name, what, *sizes)


def measure(run: Run) -> dict[str, Any]:
    """Both PARTS and what a step moves and computes, as a Simulation's `to_dict` has them.

    This rank's; collective.
    """
    world.join()
    resolved = register.resolve_here(run)
    account, traffic, flops = Account(world.device().type), Traffic(), Flops()
    with account, traffic, flops:
        model = construct.build(resolved)
        engine = register.initialize(model, resolved, resolved.deepspeed, traits_of(model))
        del model
        edges = []
        for step in range(steady_steps(resolved)):
            edges.append(len(account.phases))
            traffic.reset()
            flops.reset()
            take_step(engine, window(step, resolved))
    engines.destroy(engine)
    del engine
    gc.collect()  # hooks and modules hold each other
    phases = account.phases
    found = ([*phases[: edges[0]], *phases[edges[-1] :]], phases[edges[0] : edges[1]])
    named = {
        part: [phase.to_dict() for phase in merged(those)]
        for part, those in zip(PARTS, found, strict=True)
    }
    moved = traffic.read()
    return {
        **named,
        "traffic": moved.collectives,
        "moved": moved.to_dict(),
        "theory": theory.beside(moved, resolved).to_dict(),
        "flops": flops.model,
        "hardware_flops": flops.hardware,
    }


def window(step: int, resolved: Any) -> list[Batch]:
    """A rank's micro-batches of random tokens."""
    generator = torch.Generator().manual_seed(1000 * step + world.rank())
    shape = (resolved.micro_batch_size, resolved.run.data.sequence_length)
    vocabulary = resolved.model.vocab_size
    window = []
    for _ in range(resolved.accumulation_steps):
        ids = torch.randint(0, vocabulary, shape, generator=generator)
        window.append({"input_ids": ids, "labels": ids.clone()})
    return window
