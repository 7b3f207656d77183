"""`plan`: every strategy for a run on a machine, and the one to take."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, NoReturn

from ds_llama.config.load import load_run
from ds_llama.config.run import Run
from ds_llama.errors import CallError
from ds_llama.planner import hardware as devices
from ds_llama.planner import recommend, search, strategies, written
from ds_llama.planner.fit import Machine, device_reserve, fit, host_reserve, room
from ds_llama.planner.hardware import Hardware
from ds_llama.planner.memory import memory
from ds_llama.planner.plan import Change, Cost, Plan, Strategy
from ds_llama.planner.strategies import Candidate, Refused
from ds_llama.planner.time import step_time
from ds_llama.planner.traffic import traffic
from ds_llama.units import format_bytes, parse_bytes

MOST_RANKS = 1_000_000
_LEAST_BYTES, _MOST_BYTES = 2**20, 2**60
_BILLION = 10**9


def plan(
    run: Run | str | os.PathLike[str] | Mapping[str, Any],
    *overrides: str,
    world_size: int = 8,
    gpu_memory: str | int | None = None,
    host_memory: str | int | None = None,
    nvme: str | int | None = None,
    hardware: str | None = None,
    gpus_per_node: int | None = None,
    internode: str | float | None = None,
    price: float | None = None,
    max: Literal["micro_batch", "micro-batch", "sequence"] | None = None,
    strategy: str | None = None,
    write: str | os.PathLike[str] | None = None,
    force: bool = False,
) -> Plan:
    """What every strategy of `run` costs on `world_size` devices, and the one to take.

    run: a Run, or what `load_run` reads, then with overrides. gpu_memory: of one device; the
    hardware's own when only that is given. host_memory and nvme: of one node, in bytes or as
    "512GiB"; not checked when not given. hardware: a name of `planner/devices.json`, without which
    no time is predicted. price: of one device and hour. max: also find the largest that fits.
    write: the file to write the recommended (or the named) strategy's DeepSpeed JSON to.
    Raises CallError for arguments that mean nothing, ConfigErrors where the run itself is wrong.
    """
    if not isinstance(run, Run):
        run = load_run(run, *overrides)
    device = _hardware(hardware, internode)
    machine = _machine(world_size, gpus_per_node, gpu_memory, host_memory, nvme, device)
    what = None if max is None else max.replace("-", "_")
    _check(price, device, what, machine)
    if strategy is not None and write is None:
        _refuse("--strategy says what is written", "--strategy", "give --write FILE too")
    if write is not None:
        written.check_target(write, force)
    rows, refused = _rows(run, machine, device, price)
    if strategy is not None:
        written.check_name(strategy, [row.name for row in rows])
    rows = [_with_largest(row, what) for row in rows]
    made = _recommended(run, machine, rows, None if device is None else device.key)
    made = replace(made, refused=tuple(refused))
    if write is not None:
        written.write(write, made, strategy, force)
    return made


def _recommended(run: Run, machine: Machine, rows: list[Strategy], hardware: str | None) -> Plan:
    order = recommend.ranked(rows)
    best = order[0].name if order else None
    second = order[1].name if len(order) > 1 else None
    changes, behind = tuple[Change, ...](), recommend.runner_up(order, machine)
    if machine.gpu_bytes is None:
        reason = recommend.unknown(rows, hardware)
    elif order:
        reason = recommend.reason(order, machine)
    else:
        changes = tuple(_changes(run, machine, rows))
        reason = recommend.nothing_fits(rows, changes, machine)
    rule = recommend.rule(rows, hardware)
    return Plan(machine, hardware, tuple(rows), (), best, second, reason, behind, rule, changes)


def _rows(
    run: Run, machine: Machine, device: Hardware | None, price: float | None = None
) -> tuple[list[Strategy], list[Refused]]:
    found, refused = strategies.candidates(
        run, machine.world_size, nvme=machine.nvme_bytes is not None, device=machine.device
    )
    return [_row(each, machine, device, price) for each in found], refused


def _row(
    candidate: Candidate, machine: Machine, device: Hardware | None, price: float | None
) -> Strategy:
    held = memory(candidate.resolved, room(machine))
    moved = traffic(candidate.resolved)
    row = Strategy(
        candidate=candidate,
        memory=held,
        traffic=moved,
        fit=fit(held, machine),
        machine=machine,
        reserve_bytes=device_reserve(held.device_peak.total, machine.world_size),
        host_reserve_bytes=host_reserve(machine),
    )
    time = step_time(candidate.resolved, device, moved, gpus_per_node=machine.gpus_per_node)
    if time is None:
        return row
    hours = _BILLION / time.tokens_per_s * machine.world_size / 3600
    cost = Cost(hours, None if price is None else hours * price)
    return replace(row, time=time, tokens_per_s=time.tokens_per_s, mfu=time.mfu, cost=cost)


def _with_largest(row: Strategy, what: str | None) -> Strategy:
    if what == "micro_batch":
        return replace(row, max_micro_batch=search.max_micro_batch(row.candidate, row.machine))
    if what == "sequence":
        return replace(row, max_sequence_length=search.max_sequence(row.candidate, row.machine))
    return row


def _changes(run: Run, machine: Machine, rows: list[Strategy]) -> Iterator[Change]:
    """The first change of each kind that makes something fit, and what fits then."""
    own = next(row.candidate.resolved for row in rows if row.candidate.own)
    peaks = [row.memory.device_peak for row in rows]
    beside_states = min(peak.activations + peak.logits for peak in peaks)
    for words, larger, fitting, held in search.changes(run, own, machine, beside_states):
        yield Change(words, fitting.name, held.device_peak.total, larger.world_size)
    hosts = [row for row in rows if row.fit.resource == "host" and row.device_fits]
    if hosts:
        least = min(hosts, key=lambda row: row.host_bytes)
        need = format_bytes(least.host_bytes + least.host_reserve_bytes)
        words = f"with {need} of host memory"
        yield Change(words, least.name, least.peak_bytes, machine.world_size)


def _hardware(name: str | None, internode: str | float | None) -> Hardware | None:
    if name is None and internode is not None:
        _refuse("only time depends on the network", "--internode", "give --hardware too")
    if name is None:
        return None
    found = devices.find(name)
    return found if internode is None else found.with_internode(internode)


def _machine(
    world_size: int,
    gpus_per_node: int | None,
    gpu_memory: str | int | None,
    host_memory: str | int | None,
    nvme: str | int | None,
    device: Hardware | None,
) -> Machine:
    known = None if device is None else device.memory_bytes
    in_node = 8 if device is None else device.devices_per_node
    return Machine(
        _whole(world_size, "--world-size", MOST_RANKS),
        in_node if gpus_per_node is None else _whole(gpus_per_node, "--gpus-per-node", 1024),
        known if gpu_memory is None else _size(gpu_memory, "--gpu-memory"),
        None if host_memory is None else _size(host_memory, "--host-memory"),
        None if nvme is None else _size(nvme, "--nvme"),
        "cpu" if device is not None and device.key == "cpu" else "cuda",
    )


def _whole(value: int, where: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        remedy = f"write a whole number from 1 to {most:,}"
        _refuse(f"{value!r} is not a number of devices", where, remedy)
    return value


def _size(value: str | int, where: str) -> int:
    size = parse_bytes(value, where=where)
    if not _LEAST_BYTES <= size <= _MOST_BYTES:
        least, most = format_bytes(_LEAST_BYTES), format_bytes(_MOST_BYTES)
        remedy = f"write a size from {least} to {most} with its unit, such as 80GiB"
        _refuse(f"{value!r} is no size that a memory has", where, remedy)
    return size


def _check(
    price: float | None, device: Hardware | None, what: str | None, machine: Machine
) -> None:
    if price is not None and not (math.isfinite(price) and price > 0):
        remedy = "write what one GPU costs in an hour, a number above 0"
        _refuse(f"{price} is not a price", "--price", remedy)
    if price is not None and device is None:
        remedy = "give --hardware too, for instance --hardware h100"
        _refuse("a price needs a predicted speed", "--price", remedy)
    if what not in (None, "micro_batch", "sequence"):
        _refuse(
            f"{what!r} is nothing to find the largest of", "--max", "write micro-batch or sequence"
        )
    if what is not None and machine.gpu_bytes is None:
        remedy = "give --gpu-memory too, for instance --gpu-memory 80GiB"
        _refuse("the largest that fits depends on the memory that there is", "--max", remedy)


def _refuse(what: str, where: str, remedy: str) -> NoReturn:
    raise CallError(what, where=where, remedy=remedy)
