"""One cell on one rank of a launch of its own.

    construct, initialise, the first steps   live bytes, traffic and FLOPs are counted (`counts`)
    warm-up                                  nothing is counted
    measured steps                           each from the end of the one before: wall time
    four steps more                          parts of a step, every collective waited for at once;
                                             the first of them warms that up (`parts`)
    products of matrices                     what this device can do, all ranks at a time

A case that does not measure `counts` or `parts` leaves those steps out. Before the measured steps
every cell of a case has taken equally many, so that its losses are those of the same steps.
FOLDER/plan.json says what to do, FOLDER/result.json what came of it; where a rule refuses the run
that only a rank can know of, FOLDER/refused.json says which. Rank 0 writes.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ds_llama.bench import operations
from ds_llama.bench.case import OURS
from ds_llama.bench.energy import Meter
from ds_llama.bench.program import Program, open_program
from ds_llama.checkpoint import ranks
from ds_llama.config import load_run
from ds_llama.config.resolve import Resolved
from ds_llama.data import open_corpora
from ds_llama.data.collate import Batch
from ds_llama.data.loader import Loader
from ds_llama.errors import ConfigError
from ds_llama.measure import memory, rates, theory
from ds_llama.measure.accounting import Account
from ds_llama.measure.flops import Flops
from ds_llama.measure.phases import largest, merged
from ds_llama.measure.timers import StepTimer, synchronize_of
from ds_llama.measure.traffic import Traffic
from ds_llama.measure.waits import Waits
from ds_llama.simulator.window import steady_steps
from ds_llama.zero import register, world
from ds_llama.zero.step import valid_tokens

COUNTED_STEPS = 3  # at most, with what is counted in them (`steady_steps`)
PARTED_STEPS = 3
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def run_rank(folder: Path) -> None:
    """Measure the cell of FOLDER/plan.json; collective."""
    plan = json.loads((folder / "plan.json").read_text())
    world.join()
    try:
        resolved = register.resolve_here(load_run(plan["run"]))
        with open_loader(resolved) as loader:
            result = Measurement(plan, resolved, loader).everything()
    except ConfigError as error:
        if world.rank() == 0:
            refusal = {"rule": error.code, "reason": error.what}
            (folder / "refused.json").write_text(json.dumps(refusal))
        raise
    if world.rank() == 0:
        (folder / "result.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


class Measurement:
    """What a rank does with the cell of a plan."""

    def __init__(
        self, plan: dict[str, Any], resolved: Resolved, loader: Iterator[list[Batch]]
    ) -> None:
        self.plan, self.resolved, self.loader = plan, resolved, loader
        self.device = world.device()
        self._synchronize = synchronize_of(self.device)
        self.losses: list[float] = []
        self.norms: list[float | None] = []

    def everything(self) -> dict[str, Any]:
        """What rank 0 writes; every rank takes part."""
        counted = self._start()
        while len(self.losses) < self._first_steps():
            self._step()
        timed = self._time()
        parts = self._parts() if "parts" in self.plan["measure"] else {"parts_s": None}
        profile = self._profile()
        self.program.close()
        del self.program
        gc.collect()
        return {
            **counted,
            **timed,
            **parts,
            "profile": profile,
            "warmup_steps": self.plan["warmup_steps"],
            "measure": self.plan["measure"],
            "losses": self.losses,
            "grad_norms": self.norms,
            "matmul_flops": self._matmul_flops(),
            "device": self._device_name(),
            "threads": torch.get_num_threads(),
            "affinity": ranks.gather(_affinity()),
        }

    def _step(self) -> None:
        loss, norm = self.program.step(next(self.loader))
        self.losses.append(loss)
        self.norms.append(norm)

    def _open(self) -> None:
        options = self.plan["cell"]
        self.program: Program = open_program(self.plan["program"], self.resolved, options)

    def _first_steps(self) -> int:
        """Steps before the measured ones; equally many for all cells of a case."""
        counted = COUNTED_STEPS if "counts" in self.plan["measure"] else 0
        return counted + int(self.plan["warmup_steps"])

    def _start(self) -> dict[str, Any]:
        """Construction and initialisation; counted, with the steps that are, if that is asked."""
        if "counts" in self.plan["measure"]:
            return self._count()
        began = time.perf_counter()
        memory.reset_peaks(self.device)
        self._open()
        start_s = time.perf_counter() - began
        held = _most(ranks.gather(memory.everything(self.device)))
        return {"start_s": start_s, "phases": None, "process_at_start": held}

    def _count(self) -> dict[str, Any]:
        """Live bytes by phase, what moved and what was computed in a step like all later ones.

        `start_s` is construction and initialisation, with what counting adds to them. A peer that
        compiles does so in a step before: under DDP torch would compile what watches along with the
        model (torch/_dynamo/convert_frame.py:2600).
        """
        began = time.perf_counter()
        account = Account(self.device.type, process=True)
        traffic, flops = Traffic(), Flops()
        with account, traffic, flops:
            self._open()
            start_s = time.perf_counter() - began
        if self.plan["cell"]["compile"] and self.plan["program"] != OURS:
            self._step()
        with account, traffic, flops:
            edges = [len(account.phases)]
            for _ in range(steady_steps(self.resolved)):
                traffic.reset()
                flops.reset()
                self._step()
                edges.append(len(account.phases))
        # The first update makes the optimizer's moments: its peak is nowhere else.
        first = [p for p in account.phases[edges[0] : edges[1]] if p.name == "step"]
        found = [*account.phases[: edges[0]], *(replace(p, name="first") for p in first)]
        found += account.phases[edges[-2] :]
        everyones = ranks.gather([phase.to_dict() for phase in merged(found)])
        phases = [largest(same) for same in zip(*everyones, strict=True)]
        starting = [p["process"] for p in phases if p["name"] in ("construct", "initialise")]
        moved = traffic.read()
        beside = theory.beside(moved, self.resolved).to_dict()
        return {
            "start_s": start_s,
            "phases": phases,
            "process_at_start": _most(starting) if starting else None,
            "traffic": moved.to_dict() | {"theory": beside},
            "flops": flops.to_dict(),
        }

    def _time(self) -> dict[str, Any]:
        """Wall time of each step, the slowest rank's; what processes hold meanwhile; energy."""
        memory.reset_peaks(self.device)
        seconds, waits = list[float](), list[float]()
        windows, imbalances = list[list[Batch]](), list[float | None]()
        torch.distributed.barrier()
        self._synchronize()
        with Meter() as energy:
            mark = time.perf_counter()
            for _ in range(self.plan["steps"]):
                begun = time.perf_counter()
                window = next(self.loader)
                waits.append(time.perf_counter() - begun)
                windows.append(window)
                imbalances.append(getattr(self.loader, "imbalance", None))
                loss, norm = self.program.step(window)
                self._synchronize()
                self.losses.append(loss)
                self.norms.append(norm)
                now = time.perf_counter()
                seconds.append(now - mark)
                mark = now
        tokens = sum(valid_tokens(batch) for window in windows for batch in window)
        return {
            "step_s": [max(same) for same in zip(*ranks.gather(seconds), strict=True)],
            "data_wait_s": [max(same) for same in zip(*ranks.gather(waits), strict=True)],
            "imbalance": imbalances,
            "tokens_per_step": round(sum(ranks.gather(tokens)) / len(windows)),
            "joules": energy.joules,
            "joules_of": energy.counted,
            "process": _most(ranks.gather(memory.everything(self.device))),
        }

    def _parts(self) -> dict[str, Any]:
        """Seconds of a step's parts, none within another, means over ranks; their sum.

        Nothing overlaps here, and every operation passes a dispatch mode: the sum is longer than
        a step, and what a part has of it is no share of a step.
        """
        timer = StepTimer(self._synchronize, wait_at_parts=True)
        with timer, Waits(timer, self._synchronize):
            for number in range(1 + PARTED_STEPS):
                if number == 1:
                    timer.open()
                with timer.part("data"):
                    window = next(self.loader)
                self.program.step(window)
                timer.step()
            found = timer.close()
        own = {name: found.part_s(name) for name in found.parts_s}
        rest = max(0.0, found.step_s - sum(own.values()))
        own["other"] = own.get("other", 0.0) + rest
        own["optimizer"] = own.pop("step", 0.0)
        parts = mean(ranks.gather(own))
        return {"parts_s": parts, "parts_step_s": sum(parts.values())}

    def _profile(self) -> dict[str, Any] | None:
        """Rank 0's steps as torch's profiler sees them; None where nobody asked."""
        if not self.plan["profile"]:
            return None
        trace = Path(self.plan["profile"]) if world.rank() == 0 else None
        return operations.profile(self._untimed, self.device, trace)

    def _untimed(self) -> None:
        self.program.step(next(self.loader))

    def _matmul_flops(self) -> float:
        torch.distributed.barrier()
        rate = rates.best_matmul(self.device, _DTYPES[self.resolved.dtype])
        every = ranks.gather(rate)
        return sum(every) / len(every)

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return str(torch.cuda.get_device_name())
        return self.device.type


def mean(everyones: list[dict[str, float]]) -> dict[str, float]:
    """Of each name over all ranks; what a rank has not is 0.0 there."""
    names = dict.fromkeys(name for own in everyones for name in own)
    return {n: sum(own.get(n, 0.0) for own in everyones) / len(everyones) for n in names}


def _most(held: list[dict[str, int | None]]) -> dict[str, int | None]:
    """Of each figure the largest; None where nobody knows it."""
    return {
        key: max((own[key] or 0 for own in held if own[key] is not None), default=None)
        for key in held[0]
    }


def _affinity() -> list[int]:
    """The cores that this process may run on, where the system says."""
    asked = getattr(os, "sched_getaffinity", None)
    return sorted(asked(0)) if asked else []


@contextmanager
def open_loader(resolved: Resolved) -> Iterator[Loader]:
    """This rank's batches of the run's data, in the run's order."""
    run = resolved.run
    dataset, order = open_corpora(run.data, run.data.train, run.train.seed)
    loader = Loader.of_run(resolved, dataset, order, rank=world.rank(), device=world.device())
    try:
        yield loader
    finally:
        loader.close()
