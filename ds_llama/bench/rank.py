"""One cell on one rank of a launch of its own.

    construct, initialise, the first steps   live bytes, traffic and FLOPs are counted
    warm-up                                  nothing is counted
    measured steps                           each from the end of the one before: wall time
    three steps more                         parts of a step, every collective waited for at once
    a product of matrices                    what this device can do, all ranks at a time

FOLDER/plan.json says what to do, FOLDER/result.json what came of it; rank 0 writes it.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ds_llama.bench.energy import Meter
from ds_llama.bench.program import Program, open_program
from ds_llama.checkpoint import ranks
from ds_llama.config import load_run
from ds_llama.config.resolve import Resolved
from ds_llama.data import open_data
from ds_llama.data.loader import Loader
from ds_llama.measure import memory, rates, theory
from ds_llama.measure.accounting import Account
from ds_llama.measure.flops import Flops
from ds_llama.measure.phases import largest, merged
from ds_llama.measure.timers import StepTimer, synchronize_of
from ds_llama.measure.traffic import Traffic
from ds_llama.measure.waits import Waits
from ds_llama.simulator.window import steady_steps
from ds_llama.zero import register, world

PARTED_STEPS = 3
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def run_rank(folder: Path) -> None:
    """Measure the cell of FOLDER/plan.json; collective."""
    plan = json.loads((folder / "plan.json").read_text())
    world.join()
    resolved = register.resolve_here(load_run(plan["run"]))
    with _loader(resolved) as loader:
        measurement = _Measurement(plan, resolved, loader)
        result = measurement.everything()
    if world.rank() == 0:
        (folder / "result.json").write_text(json.dumps(result))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


class _Measurement:
    def __init__(self, plan: dict[str, Any], resolved: Resolved, loader: Loader) -> None:
        self.plan, self.resolved, self.loader = plan, resolved, loader
        self.device = world.device()
        self._synchronize = synchronize_of(self.device)
        self.losses: list[float] = []
        self.norms: list[float | None] = []

    def everything(self) -> dict[str, Any]:
        """What rank 0 writes; every rank takes part."""
        counted = self._count()
        for _ in range(self.plan["warmup_steps"]):
            self._step()
        timed = self._time()
        parts = self._parts()
        if self.plan["profile"]:
            self._profile(Path(self.plan["profile"]))
        self.program.close()
        del self.program
        gc.collect()
        rate = self._matmul_flops()
        return {
            **counted,
            **timed,
            "parts_s": parts,
            "losses": self.losses,
            "grad_norms": self.norms,
            "matmul_flops": rate,
            "device": self._device_name(),
            "threads": torch.get_num_threads(),
        }

    def _step(self) -> None:
        loss, norm = self.program.step(next(self.loader))
        self.losses.append(loss)
        self.norms.append(norm)

    def _open(self) -> None:
        options = self.plan["cell"]
        self.program: Program = open_program(self.plan["program"], self.resolved, options)

    def _count(self) -> dict[str, Any]:
        """Live bytes by phase, what moved and what was computed in a step like all later ones.

        A compiled model is not counted: its kernels pass no dispatcher.
        """
        began = time.perf_counter()
        if self.plan["cell"]["compile"]:
            self._open()
            return {"start_s": time.perf_counter() - began, "phases": None, "process": None}
        account = Account(self.device.type, process=True)
        traffic, flops = Traffic(), Flops()
        with account, traffic, flops:
            self._open()
            start_s = time.perf_counter() - began
            edges = [len(account.phases)]
            for _ in range(steady_steps(self.resolved)):
                traffic.reset()
                flops.reset()
                self._step()
                edges.append(len(account.phases))
        found = [*account.phases[: edges[0]], *account.phases[edges[-2] :]]
        everyones = ranks.gather([phase.to_dict() for phase in merged(found)])
        moved = traffic.read()
        return {
            "start_s": start_s,
            "phases": [largest(same) for same in zip(*everyones, strict=True)],
            "traffic": moved.to_dict() | {"theory": theory.beside(moved, self.resolved).to_dict()},
            "flops": flops.to_dict(),
        }

    def _time(self) -> dict[str, Any]:
        """Wall time of each step; what the process holds meanwhile; energy."""
        memory.reset_peaks(self.device)
        seconds, waits = list[float](), list[float]()
        torch.distributed.barrier()
        self._synchronize()
        with Meter() as energy:
            mark = time.perf_counter()
            for _ in range(self.plan["steps"]):
                begun = time.perf_counter()
                window = next(self.loader)
                waits.append(time.perf_counter() - begun)
                loss, norm = self.program.step(window)
                self._synchronize()
                self.losses.append(loss)
                self.norms.append(norm)
                now = time.perf_counter()
                seconds.append(now - mark)
                mark = now
        held = ranks.gather(memory.everything(self.device))
        return {
            "step_s": seconds,
            "data_wait_s": waits,
            "joules": energy.joules,
            "process": {
                key: max((each[key] for each in held if each[key] is not None), default=None)
                for key in held[0]
            },
        }

    def _parts(self) -> dict[str, float]:
        """Seconds of a step's parts, none of them within another; the slowest rank's total."""
        timer = StepTimer(self._synchronize, wait_at_parts=True)
        with timer, Waits(timer, self._synchronize):
            timer.open()
            for _ in range(PARTED_STEPS):
                with timer.part("data"):
                    window = next(self.loader)
                self.program.step(window)
                timer.step()
            window_s = timer.close()
        own = {name: window_s.part_s(name) for name in window_s.parts_s}
        own["other"] = max(0.0, window_s.step_s - sum(own.values()))
        own["optimizer"] = own.pop("step", 0.0)
        everyones = ranks.gather(own)
        return {name: sum(e.get(name, 0.0) for e in everyones) / len(everyones) for name in own}

    def _profile(self, path: Path) -> None:
        """torch's profiler over two steps of rank 0: a trace, and its operations by their time."""
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=kinds) as profiler:
            for _ in range(2):
                self._step()
        if world.rank() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(path))
            by = f"self_{self.device.type}_time_total"
            table = profiler.key_averages().table(sort_by=by, row_limit=40)
            path.with_suffix("").with_suffix(".txt").write_text(table)

    def _matmul_flops(self) -> float:
        torch.distributed.barrier()
        rate = rates.matmul(self.device, _DTYPES[self.resolved.dtype])
        every = ranks.gather(rate)
        return sum(every) / len(every)

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return str(torch.cuda.get_device_name())
        return self.device.type


@contextmanager
def _loader(resolved: Resolved) -> Iterator[Loader]:
    run = resolved.run
    dataset, order = open_data(run.data.train, run.data.sequence_length, run.train.seed)
    loader = Loader(
        dataset,
        order,
        global_batch_size=resolved.global_batch_size,
        micro_batch_size=resolved.micro_batch_size,
        rank=world.rank(),
        world_size=world.world_size(),
        vocab_size=resolved.model.vocab_size,
    )
    try:
        yield loader
    finally:
        loader.close()
