"""One simulation, in a process of its own: construct, register and steps of the package itself."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ds_llama.config.resolve import Resolved
from ds_llama.measure import film, theory
from ds_llama.measure.accounting import Account
from ds_llama.measure.flops import Flops
from ds_llama.measure.phases import Phase, merged
from ds_llama.measure.traffic import Traffic
from ds_llama.model import init
from ds_llama.model.traits import traits_of
from ds_llama.simulator import patches, pinned, process, standins, window, world
from ds_llama.simulator.result import Request, SimulatedPhase, Simulation
from ds_llama.zero import construct, register
from ds_llama.zero.step import take_step


def simulate(request: Request) -> Simulation:
    """What `request` asks. Patches torch and DeepSpeed: only for a process that ends with it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="ds-llama-simulated-nvme-") as folder:
        return _simulate(request, _swapping_to(folder, process.resolved(request)), start)


def _simulate(request: Request, resolved: Resolved, start: float) -> Simulation:
    patches.apply(request.device)
    world.join(request.rank, request.world_size)
    account = Account(request.device, history=request.film != "no", stacks=request.film == "stacks")
    traffic, flops = Traffic(), Flops()
    counted = window.Counted(traffic, flops)
    account.observe(flops)
    account.ended = counted.ended
    short = resolved if request.every_micro_batch else window.shortened(resolved)
    with FakeTensorMode(allow_non_fake_inputs=True), account, traffic.under(account):
        model = construct.build(short, fill=partial(_fill_blocks, seed=0))
        engine = register.initialize(model, short, short.deepspeed, traits_of(model))
        edges, begun = [], []
        for _ in range(request.steps or window.steady_steps(resolved)):
            edges.append(len(account.phases))
            begun.append(len(account.edges))
            counted.begin()
            batches = window.batches(resolved)
            take_step(engine, batches[: short.accumulation_steps])
    first = account.phases[edges[0] : edges[1]] if len(edges) > 1 else account.phases[edges[0] :]
    moved, model_flops, hardware_flops = counted.of(resolved.accumulation_steps)
    return Simulation(
        world_size=request.world_size,
        rank=request.rank,
        device=request.device,
        stage=resolved.stage,
        parameters=resolved.model.num_parameters,
        phases=_phases([*account.phases[: edges[0]], *account.phases[edges[-1] :]]),
        first_step=_phases(first),
        seconds=time.perf_counter() - start,
        traffic=moved.collectives,
        moved=moved.to_dict(),
        theory=theory.beside(moved, resolved).to_dict(),
        flops=model_flops,
        hardware_flops=hardware_flops,
        host_pinned_bytes=pinned.peak_bytes(),
        nvme_bytes=standins.NVME.now_bytes,
        warnings=tuple(f"{p.key}: {p.message}; {p.remedy}" for p in resolved.problems),
        film=film.of(account, begun) if request.film != "no" else None,
    )


def _swapping_to(folder: str, resolved: Resolved) -> Resolved:
    """The run with its NVMe elsewhere: DeepSpeed empties the folders that it will swap to."""
    config = copy.deepcopy(resolved.deepspeed)
    for name in ("offload_optimizer", "offload_param"):
        section = config["zero_optimization"].get(name) or {}
        if section.get("nvme_path"):
            section["nvme_path"] = folder
    return replace(resolved, deepspeed=config)


def _fill_blocks(model: nn.Module, seed: int) -> None:
    """`construct.fill_initial_`, but of each parameter the first block only: there are no values.

    What it holds at its peak, a block beside the parameter's own part, is the same.
    """
    rules = init.rules(model)
    for name, parameter in model.named_parameters():
        with construct.own_part(parameter) as (target, start, stop):
            first = min(stop - start, init.BLOCK - start % init.BLOCK)
            init.fill_(target[:first], name, rules[name], start, seed)


def _phases(phases: Sequence[Phase]) -> tuple[SimulatedPhase, ...]:
    return tuple(
        SimulatedPhase(phase.name, phase.device, phase.host, phase.total)
        for phase in merged(phases)
    )
