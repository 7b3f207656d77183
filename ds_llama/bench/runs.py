"""From a cell to a run: its JSON, its data, and whether it can be run here at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_llama.bench.case import Case, Cell
from ds_llama.config import load_run
from ds_llama.config.resolve import Resolved, resolve
from ds_llama.config.run import Run
from ds_llama.data import ShardWriter
from ds_llama.errors import ConfigError, ConfigErrors
from ds_llama.planner.fit import Machine, fit
from ds_llama.planner.memory import Memory, memory
from ds_llama.selftest.cells import Cell as Strategy
from ds_llama.units import format_bytes

SEED = 1234
DOES_NOT_FIT = "does-not-fit"


@dataclass(frozen=True)
class Refusal:
    """Why a cell is not run: the rule that refuses it, and its words."""

    rule: str
    reason: str


@dataclass(frozen=True)
class Prepared:
    """A cell that can be run: its run, resolved, and what it will hold by plan."""

    run: Run
    resolved: Resolved
    memory: Memory


def prepare(case: Case, cell: Cell, out: Path, machine: Machine) -> Prepared | Refusal:
    """The cell's run in the folder of a benchmark; or the rule that refuses it, as for any run."""
    try:
        run = load_run(run_json(case, cell, out))
        resolved = resolve(run, cell.world_size, device=machine.device)
    except ConfigErrors as error:
        first = error.errors[0]
        return Refusal(first.code, first.what)
    except ConfigError as error:
        return Refusal(error.code, error.what)
    planned = memory(resolved)
    if (reason := does_not_fit(planned, machine)) is not None:
        return Refusal(DOES_NOT_FIT, reason)
    return Prepared(run, resolved, planned)


def does_not_fit(planned: Memory, machine: Machine) -> str | None:
    """The plan's word on a cell that this machine cannot hold; None for one that it can."""
    if machine.device == "cpu":
        need, there = planned.total_peak_bytes * machine.world_size, machine.host_bytes
        if there is None or need <= there:
            return None
        words = f"{format_bytes(need)} of tensors on {machine.world_size} ranks"
        return f"{words}, and {format_bytes(there)} are free"
    found = fit(planned, machine)
    if found.verdict != "no":
        return None
    peak = format_bytes(planned.device_peak.total)
    return f"{peak} a device; {found.resource} memory is exceeded, most of it {found.limit}"


def run_json(case: Case, cell: Cell, out: Path) -> dict[str, Any]:
    """What the cell is as a run JSON."""
    strategy = Strategy(cell.precision, cell.stage, cell.offload, cell.recompute, cell.accumulation)
    batch = cell.micro_batch_size * cell.accumulation * cell.world_size
    swap = swap_folder(case, out)
    swap.mkdir(parents=True, exist_ok=True)
    own: dict[str, Any] = {
        "model": cell.section,
        "data": {"train": str(shard(cell, out)), "sequence_length": cell.sequence_length},
        "optimizer": {"lr": 3e-4, "weight_decay": 0.1, "schedule": "constant"},
        "train": {
            "steps": case.warmup_steps + case.steps,
            "micro_batch_size": cell.micro_batch_size,
            "global_batch_size": batch,
            "seed": SEED,
        },
        "deepspeed": strategy.deepspeed(str(swap.parent)),
        "output": str(out / "cells" / cell.key),
    }
    if cell.compile:
        own["train"]["compile"] = True
    return _over(case.run, own)


def swap_folder(case: Case, out: Path) -> Path:
    """Where cells that swap do so; removed after each."""
    return Path(case.nvme_path or out) / "swap"


def shard(cell: Cell, out: Path) -> Path:
    """The prefix of the shard that a cell trains on."""
    return out / "data" / f"vocabulary-{load_model(cell).vocab_size}"


def load_model(cell: Cell) -> Any:
    """The cell's architecture."""
    from ds_llama.config.source import read_model

    return read_model(cell.section, path="case", base=Path())


def write_data(case: Case, cells: Sequence[Cell], out: Path) -> None:
    """A shard a vocabulary, with tokens enough for every cell; those that are there are kept.

    Token ids are drawn by Zipf's law, so that there is something to learn and losses fall.
    """
    steps = case.warmup_steps + case.steps + 16
    wanted: dict[Path, tuple[int, int]] = {}
    for cell in cells:
        rows = cell.micro_batch_size * cell.accumulation * cell.world_size
        tokens = steps * rows * cell.sequence_length + 1
        path, size = shard(cell, out), load_model(cell).vocab_size
        wanted[path] = (size, max(tokens, wanted.get(path, (0, 0))[1]))
    for path, (size, tokens) in wanted.items():
        if path.with_suffix(".bin").exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = np.random.default_rng(SEED).zipf(1.2, tokens) % size
        with ShardWriter(path, vocab_size=size) as writer:
            writer.add(drawn)


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` over `base`, objects key by key."""
    result = dict(base)
    for name, value in own.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = _over(result[name], value) if both else value
    return result
