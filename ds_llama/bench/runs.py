"""From a cell to a run: its JSON, its data, and whether it can be run here at all."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_llama.bench.case import AXES, OURS, Case, Cell, digest
from ds_llama.config import load_run
from ds_llama.config.resolve import Resolved, resolve
from ds_llama.config.run import Run
from ds_llama.data import ShardWriter
from ds_llama.errors import ConfigError, ConfigErrors
from ds_llama.planner.fit import Machine, fit, room
from ds_llama.planner.memory import Memory, memory
from ds_llama.selftest.cells import Cell as Strategy
from ds_llama.units import format_bytes

SEED = 1234
DOES_NOT_FIT = "does-not-fit"
# What says by being there that a cell is of a precision, recomputes, or offloads.
_SWITCHES = {"bf16", "fp16", "torch_autocast", "activation_checkpointing"}
_ZERO_SWITCHES = {"offload_optimizer", "offload_param"}
_FORM = {"unknown-key", "missing-key", "wrong-type", "wrong-value"}


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


def prepare(
    case: Case, cell: Cell, out: Path, machine: Machine, *, has_run: bool = False
) -> Prepared | Refusal:
    """The cell's run in the folder of a benchmark; or the rule that refuses it, as for any run.

    has_run: it did fit, whatever is free now. Raises ConfigError for a mistake in the case's `run`,
    which is no cell's.
    """
    try:
        run = load_run(run_json(case, cell, out))
        resolved = resolve(run, cell.world_size, device=machine.device)
    except ConfigErrors as error:
        for each in error.errors:
            _raise_if_written(case, each)
        return Refusal(error.errors[0].code, error.errors[0].what)
    planned = memory(resolved, room(machine) if machine.device != "cpu" else None)
    if not has_run and (reason := does_not_fit(planned, machine)) is not None:
        return Refusal(DOES_NOT_FIT, reason)
    return Prepared(run, resolved, planned)


def _raise_if_written(case: Case, error: ConfigError) -> None:
    """Raise a finding that is about the form of what `case.run` says."""
    if error.code not in _FORM:
        return
    key = error.where.partition(":")[2]
    at: Any = case.run
    for name in key.split("."):
        if not isinstance(at, dict) or name not in at:
            return
        at = at[name]
    raise ConfigError(error.what, where=f"case:run.{key}", remedy=error.remedy)


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
    """What the cell is as a run JSON: what is usual, over that `case.run`, over that the axes.

    Raises ConfigError where `case.run` contradicts what is the case's own.
    """
    strategy = Strategy(cell.precision, cell.stage, cell.offload, cell.recompute, cell.accumulation)
    batch = cell.micro_batch_size * cell.accumulation * cell.world_size
    deepspeed = strategy.deepspeed(str(swap_folder(case, cell, out)))
    usual = {
        "optimizer": {"lr": 3e-4, "weight_decay": 0.1, "schedule": "constant"},
        "train": {"seed": SEED},
        "deepspeed": {"gradient_clipping": deepspeed.pop("gradient_clipping")},
    }
    own: dict[str, Any] = {
        "model": cell.section,
        "data": {"train": str(shard(case, cell, out)), "sequence_length": cell.sequence_length},
        "train": {
            "steps": case.warmup + case.steps,
            "micro_batch_size": cell.micro_batch_size,
            "global_batch_size": batch,
        },
        "deepspeed": deepspeed,
        "output": str(out / "cells" / cell.key),
    }
    if cell.compile and cell.program == OURS:  # another program compiles in its own way
        own["train"]["compile"] = True
    given = _without_switches(case.run, own)
    for key in _contradicted(given, own):
        raise ConfigError(
            f"{key!r} is the case's own to say",
            where=f"case:run.{key}",
            remedy=f"leave it out: the keys of 'sweep' are {', '.join(AXES)}, "
            "and 'steps' and 'warmup_steps' are the case's",
        )
    return _over(_over(usual, given), own)


def _without_switches(run: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`run` without the sections by which a cell would be another than its axes say."""
    given = copy.deepcopy(run)
    if isinstance(train := given.get("train"), dict) and "compile" not in own["train"]:
        train.pop("compile", None)
    deepspeed, mine = given.get("deepspeed"), own["deepspeed"]
    if isinstance(deepspeed, dict):
        for name in _SWITCHES - mine.keys():
            deepspeed.pop(name, None)
        if isinstance(zero := deepspeed.get("zero_optimization"), dict):
            for name in _ZERO_SWITCHES - mine["zero_optimization"].keys():
                zero.pop(name, None)
    return given


def _contradicted(given: dict[str, Any], own: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Keys for which both have a value, and not the same."""
    for name in given.keys() & own.keys():
        mine, theirs = own[name], given[name]
        if isinstance(mine, dict) and isinstance(theirs, dict) and prefix + name != "model":
            yield from _contradicted(theirs, mine, f"{prefix}{name}.")
        elif mine != theirs:
            yield prefix + name


def swap_folder(case: Case, cell: Cell, out: Path) -> Path:
    """Where a cell that swaps to NVMe does so: a folder of its own, removed after each launch."""
    name = f"ds-llama-bench-{digest([str(out.resolve()), cell.key])}"
    return Path(case.nvme_path or out) / name


def shard(case: Case, cell: Cell, out: Path) -> Path:
    """The prefix of the shard that a cell trains on; another case's has another length."""
    length = digest([case.warmup, case.steps, [each.key for each in case.expanded]])
    return out / "data" / f"vocabulary-{load_model(cell).vocab_size}-{length}"


def load_model(cell: Cell) -> Any:
    """The cell's architecture."""
    from ds_llama.config.source import read_model

    return read_model(cell.section, path="case", base=Path())


def write_data(case: Case, cells: Sequence[Cell], out: Path) -> None:
    """A shard a vocabulary, with tokens enough for every cell; those that are there are kept.

    Token ids are drawn by Zipf's law, so that there is something to learn and losses fall.
    """
    steps = case.warmup + case.steps + 16  # those that are counted, parted and profiled too
    wanted: dict[Path, tuple[int, int]] = {}
    for cell in cells:
        rows = cell.micro_batch_size * cell.accumulation * cell.world_size
        tokens = steps * rows * cell.sequence_length + 1
        path, size = shard(case, cell, out), load_model(cell).vocab_size
        wanted[path] = (size, max(tokens, wanted.get(path, (0, 0))[1]))
    for path, (size, tokens) in wanted.items():
        if path.with_suffix(".idx").exists():  # the last that a writer makes
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
