"""One cell: the engine beside the reference, update by update.

Four updates on global batches with unequal numbers of valid tokens: losses, gradient norms,
clipping and fp32 parameters are compared after each.

What is left between the two sides is the order of fp32 sums, which is why nothing is exactly zero
(`cells.Limits` has the numbers). In half precision an amplifier is kept out: a master that differs
in its last bit rounds some weights to their other neighbour, and the next loss is off by 1e-4.
There the reference goes on from the engine's masters after each comparison, keeping its own
moments; in fp32 it never does.
"""

from __future__ import annotations

import gc
from functools import cache
from pathlib import Path
from typing import Any

import cpuinfo
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param

from ds_llama.config.run import Run
from ds_llama.errors import RunError
from ds_llama.selftest.cells import LOSS_SCALE, Cell
from ds_llama.selftest.outcome import Gaps
from ds_llama.selftest.reference import Reference
from ds_llama.selftest.sabotage import Sabotage
from ds_llama.selftest.tiny import OPTIMIZER, global_batch, make_run, split
from ds_llama.zero import engine as engines
from ds_llama.zero import world
from ds_llama.zero.construct import build
from ds_llama.zero.register import register, resolve_here
from ds_llama.zero.step import take_step

STEPS, MICRO = 4, 2
_UNTOUCHED = Sabotage("nothing")


def compare(cell: Cell, folder: Path, sabotage: Sabotage | None = None) -> Gaps:
    """The largest differences between engine and reference over all updates; collective.

    folder: the cell's own, which every rank sees; the resolved JSONs and what goes to NVMe are
    written there. `sabotage` is done to the last rank. Raises RunError for what can be compared
    with nothing: a skipped update, an Adam that counts wrongly, an NVMe that nothing went to.
    """
    world.join()
    run = _run(cell, folder)
    resolved = resolve_here(run)
    half = cell.precision != "fp32"
    reference = Reference(
        build(resolved, how="plain"),
        reduce_in_half=half and cell.accumulation == 1,
        eps=OPTIMIZER["eps"],
        loss_scale=LOSS_SCALE if cell.precision == "fp16" else 1.0,
    )
    engine = register(build(resolved), run)
    last = world.rank() == world.world_size() - 1
    try:
        return _trained(cell, engine, reference, (last and sabotage) or _UNTOUCHED)
    finally:
        engines.destroy(engine)
        del engine
        gc.collect()  # hooks and modules hold each other


def remember_processor() -> None:
    """Ask once what processor this is.

    DeepSpeedCPUAdam asks at each construction (deepspeed/ops/adam/cpu_adam.py:75), through a
    process that takes a second or more: as long as a cell.
    """
    cpuinfo.get_cpu_info = _cpu_info


@cache
def _cpu_info() -> Any:
    return cpuinfo.cpuinfo.get_cpu_info()


def reason_not_to_run(cell: Cell) -> str | None:
    """Why this device cannot run the cell; None where it can."""
    accelerator = get_accelerator()
    if cell.precision == "fp16" and not accelerator.is_fp16_supported():
        return "this device has no fast fp16, so DeepSpeed refuses it"
    if cell.precision == "bf16" and not accelerator.is_bf16_supported():
        return "this device has no bf16"
    return None


def _run(cell: Cell, folder: Path) -> Run:
    size = world.world_size()
    model = {}
    if cell.offload.startswith("nvme"):
        # DeepSpeed keeps what is below 1 MiB a rank in memory (runtime/swap_tensor/utils.py:14):
        # the optimizer's part of all parameters, or a parameter.
        wide = {"intermediate_size": 1024 * size}
        model = wide if cell.offload == "nvme" else {"vocab_size": 8192 * size}
        (folder / "swap").mkdir(parents=True, exist_ok=True)
    return make_run(
        folder,
        stage=cell.stage,
        precision=cell.precision,
        offload=cell.offload,
        accumulation=cell.accumulation,
        world=size,
        micro_batch_size=MICRO,
        model=model,
        optimizer=OPTIMIZER,
        deepspeed=cell.deepspeed(str(folder)),
    )


def _trained(cell: Cell, engine: Any, reference: Reference, sabotage: Sabotage) -> Gaps:
    size, rank, gaps = world.world_size(), world.rank(), Gaps()
    sabotage.engine(engine)
    for step in range(STEPS):
        batch = global_batch(step, MICRO * cell.accumulation * size)
        window = split(batch, MICRO, rank, size)
        result = take_step(engine, sabotage.window(window))
        everyones = split(batch, MICRO, 0, 1)
        loss, norm = reference.step(everyones, size)
        if result is None or result.grad_norm is None or result.clip_coef is None:
            raise _odd(cell, f"update {step + 1} was skipped")
        if step == 0 and engines.adam_step(engine) != 1:
            raise _odd(cell, f"Adam counts {engines.adam_step(engine)} updates after the first")
        gaps.see(
            Gaps(
                loss=abs(result.loss - loss),
                grad_norm=abs(result.grad_norm - norm) / norm,
                clip_coef=abs(result.clip_coef - reference.clip_coef(norm)),
                parameters=_parameter_gap(engine, reference, adopt=cell.precision != "fp32"),
            )
        )
    output = Path(engine.ds_llama.resolved.run.output)
    if cell.offload.startswith("nvme") and not _went_to_nvme(cell, output):
        raise _odd(cell, "DeepSpeed did not write to the NVMe folder what belongs there")
    return gaps


def _parameter_gap(engine: Any, reference: Reference, *, adopt: bool) -> float:
    """Largest difference of an fp32 parameter from the reference's master."""
    gap = Gaps()
    for name, parameter in engine.module.named_parameters():
        ours = parameter if engine.zero_optimization_stage() == 0 else None
        ours = (safe_get_full_fp32_param(parameter) if ours is None else ours).detach()
        gap.see(Gaps(parameters=reference.gap(name, ours)))
        if adopt:
            reference.adopt(name, ours)
    return gap.parameters


def _went_to_nvme(cell: Cell, folder: Path) -> bool:
    """Whether DeepSpeed's swap files are there for all that the cell sends to NVMe."""
    names = [path.name for path in (folder / "swap").rglob("*.swp") if path.stat().st_size]
    wanted = ("exp_avg", "param") if cell.offload == "nvme-all" else ("exp_avg",)
    return all(any(word in name for name in names) for word in wanted)


def _odd(cell: Cell, what: str) -> RunError:
    return RunError(what, where=cell.name, remedy="report it: this is not your mistake")
